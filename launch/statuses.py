"""Exit statuses of experiments, as launchers read them."""

# Done; a claim failed or something was refused; usage; Ctrl-C. After any other status the same
# command goes on where the run has saved itself.
FINAL = (0, 1, 2, 130)
