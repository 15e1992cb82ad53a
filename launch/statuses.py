"""What the exit status of an experiment asks of a launcher."""

FINAL = (0, 1, 2, 130)  # done; a claim failed or something was refused; usage; Ctrl-C
STOPPED = 75  # has saved itself and is to be started again; any other status is a crash
