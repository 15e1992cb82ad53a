"""Exit statuses of experiments, and those that are final for a launcher.

0    no claim is refuted                         final
1    a claim is refuted (--strict: or undecided) final
2    usage of Python itself                      final
70   crash: an exception or a stall              the same command is started again
75   stopped by SIGTERM, with a checkpoint       the same command is started again
78   invalid: a flag, the data or a folder       final
130  Ctrl-C                                      final

Every other status, such as that of a signal, is a crash. After a status that is not final, the same
command continues from the last checkpoint.
"""

from prelu_jax.entry import Status

STOPPED = Status.STOPPED
FINAL = (0, Status.CLAIM_FAILED, 2, Status.REFUSED, Status.INTERRUPTED)
