"""The share of one process in every batch."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that one process reads: the ``index``-th of ``count`` equal parts.

    The examples of a batch, their order and their crops are the same for any number of processes.
    """

    index: int = 0
    count: int = 1

    def place(self, i: int, batch_size: int) -> int:
        """Return the global position of the i-th example that this process reads."""
        part = batch_size // self.count
        batch, row = divmod(i, part)
        return batch * batch_size + self.index * part + row


ALL = Share()
