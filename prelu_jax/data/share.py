"""Which part of every batch a process reads."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process of several reads of every batch: the ``index``-th of ``count`` equal parts.

    The examples of a batch, their order and their crops are the same for any number of processes.
    """

    index: int = 0
    count: int = 1

    def place(self, i: int, batch_size: int) -> int:
        """Where the i-th example that the process reads lies among all, batch after batch."""
        part = batch_size // self.count
        batch, row = divmod(i, part)
        return batch * batch_size + self.index * part + row


ALL = Share()
