"""metrics.jsonl of a run, the same for loggers, and the records that a damaged file lacks."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from prelu_jax import files
from prelu_jax.runs.loggers import Guarded, Logger, TensorBoard
from prelu_jax.training.config import TrainConfig

Record = dict[str, Any]

_EVALUATION, _INTERVAL, _SIGNAL = "test_error", "train_loss", "signal_"  # first fields of each kind


def _expected(config: TrainConfig, step: int) -> Iterator[tuple[int, str]]:
    """Yield the step and the kind of every record that a run has written by the end of a step."""
    if step >= 0:
        yield 0, _EVALUATION
    for at in range(1, step + 1):
        last = at == config.num_steps
        if config.signal_every and at % config.signal_every == 0:
            yield at, _SIGNAL
        if at % config.log_every == 0 or last:
            yield at, _INTERVAL
        if at % config.eval_every == 0 or last:
            yield at, _EVALUATION


def _kind(record: Record) -> str:
    kinds = (_EVALUATION, _INTERVAL)
    return next((kind for kind in kinds if kind in record), _SIGNAL)


def missing(config: TrainConfig, records: Sequence[Record], step: int) -> list[int]:
    """Return the steps up to ``step`` that lack a record."""
    present = {(record["step"], _kind(record)) for record in records}
    return [at for at, kind in _expected(config, step) if (at, kind) not in present]


class MetricsLog:
    """Writer of metrics.jsonl, of TensorBoard's events, and to other loggers.

    Args:
        folder: of the run.
        writes: False in a process that leaves writing to another: `log` and `flush` do nothing.
        loggers: the other loggers.
    """

    def __init__(self, folder: Path, writes: bool = True, loggers: Sequence[Logger] = ()) -> None:
        self.file = folder / "metrics.jsonl"
        self._writes = writes
        self._tensorboard = Guarded(TensorBoard(folder))
        self._loggers = [Guarded(logger) for logger in loggers]
        self._logged: set[tuple[int, str]] = set()  # step and kind, before the run was resumed
        self._lines: list[str] = []  # of metrics.jsonl, also those that could not be written
        self._written = self._size = 0  # lines and bytes in the file
        self._last_write_failed = False

    def records(self) -> list[Record]:
        """Return the records that can be read; log which lines are damaged."""
        try:
            records, damaged = files.read_records(self.file)
        except FileNotFoundError:
            return []
        if damaged:
            logging.warning(
                "%s is damaged in %d lines, from line %d on; %d records are whole.",
                *(self.file, len(damaged), damaged[0], len(records)),
            )
        return records

    def is_whole(self, config: TrainConfig, step: int) -> bool:
        """Return whether the file holds every record up to a step and no damaged line."""
        if not self.file.exists():
            return step < 0
        records, damaged = files.read_records(self.file)
        is_cut = bool(records) and not files.read_bytes(self.file).endswith(b"\n")
        return not (damaged or is_cut or missing(config, records, step))

    def rewind(self, records: list[Record], step: int) -> Record:
        """Remove the records after a step, which a resumed run writes again.

        Args:
            records: `records`.
            step: of the checkpoint; -1 for none.

        Returns:
            The latest value of every metric that is left.
        """
        kept = [record for record in records if record["step"] <= step]
        self._logged = {(record["step"], _kind(record)) for record in records}
        self._lines = [json.dumps(record) + "\n" for record in kept]
        files.write_text(self.file, "".join(self._lines))
        self._written, self._size = len(self._lines), self.file.stat().st_size
        return {name: value for record in kept for name, value in record.items()}

    def last_evaluation(self) -> Record | None:
        """Return the latest record with a test error, if there is one."""
        records = map(json.loads, reversed(self._lines))
        return next((record for record in records if _EVALUATION in record), None)

    def log(self, record: Record, **clock: float) -> None:
        """Append a line to metrics.jsonl and give the record to TensorBoard and the loggers.

        If the disk refuses, a warning is logged, and the next call writes the line too. TensorBoard
        does without the record: every attempt would begin a new file on a full disk.

        Args:
            record: 'step' and the metrics; values by layer nest one level.
            **clock: metrics that depend on the machine's speed, which metrics.jsonl does not have.
        """
        if not self._writes:
            return
        self._lines.append(json.dumps(record) + "\n")
        step, scalars = record["step"], _scalars({**record, **clock})
        try:
            self.flush()
            self._last_write_failed = False
            self._tensorboard.write(step, scalars)  # from this step on it hides a stopped run's
        except OSError as error:
            if not self._last_write_failed:
                text = "The metrics from step %d on are not yet written (%s); training continues."
                logging.warning(text, step, error)
            self._last_write_failed = True
        if (step, _kind(record)) not in self._logged:
            for logger in self._loggers:
                logger.write(step, dict(scalars))  # a logger may change its own

    def flush(self, to_disk: bool = False) -> None:
        """Write the lines that are not yet in the file. Raise an OSError if the disk refuses.

        Args:
            to_disk: wait until they are on the disk: a checkpoint must not be newer than its
                records.
        """
        if not self._writes:
            return
        if self.file.exists() and self.file.stat().st_size == self._size:
            with self.file.open("a", encoding="utf-8") as appended:
                appended.writelines(self._lines[self._written :])
                if to_disk:
                    appended.flush()
                    os.fsync(appended.fileno())
        else:  # a full disk has cut a line short, or somebody removed the file
            files.write_text(self.file, "".join(self._lines))
        self._written, self._size = len(self._lines), self.file.stat().st_size

    def close(self) -> None:
        """Close TensorBoard's events and the loggers."""
        with contextlib.ExitStack() as stack:  # Ctrl-C while one is closed: the others are too
            for logger in reversed((self._tensorboard, *self._loggers)):
                stack.callback(logger.close)


def _scalars(record: Record) -> dict[str, float]:
    """Return the metrics of a record, with 'name/layer' for values by layer."""
    scalars: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            scalars |= {f"{name}/{layer}": number for layer, number in value.items()}
        elif name != "step":
            scalars[name] = value
    return scalars
