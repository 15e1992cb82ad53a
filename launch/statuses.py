"""What the exit status of an experiment asks of a launcher.

After any that is not final, the same command goes on where the run has saved itself.
"""

FINAL = (0, 1, 2, 130)  # done; a claim failed or something was refused; usage; Ctrl-C
STOPPED = 75  # it has saved itself and is to be started again; any other status is a crash
