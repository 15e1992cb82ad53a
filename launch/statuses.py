"""Exit statuses of experiments, and which of them are final for a launcher.

0    no claim is refuted                         final
1    a claim is refuted (--strict: or undecided) final
2    usage of Python itself                      final
70   it crashed: an exception, a stall           the same command is started again
75   it was stopped and has saved itself         the same command is started again
78   refused: a flag, the data or a folder       final
130  Ctrl-C                                      final

Every other status, a signal's too, is a crash. After one that is not final, the same command
continues where the run has saved itself.
"""

from prelu_jax.entry import Status

STOPPED = Status.STOPPED
FINAL = (0, Status.CLAIM_FAILED, 2, Status.REFUSED, Status.INTERRUPTED)
