"""A run is a folder: what it was asked, what it measured, how it ended.

config.json        the `TrainConfig`
init_report.json   every parameter: shape, rule, fans, std by the rule and at the start, whether it
                   is pretrained, frozen, decays
calibration.json   with `datadep`: what each method did, layer by layer (`CalibrationReport`)
metrics.jsonl      a line per logging interval, evaluation and measurement of the signal; no clock
                   in it, so that an interrupted run and an undisturbed one write the same bytes
events.*           the same for TensorBoard, with steps per second
status.json        'running', 'done' or 'diverged', and the step; at the end also how many images
                   were left out or enlarged, if any were
odd_images.json    their keys, if there are any, at the last checkpoint
intervals.json     of steps at which the run was stopped: metrics since the last logging interval
checkpoints/       see `checkpoint`
lock               who trains it; held as long as that process lives
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from prelu_jax.training.config import TrainConfig
from prelu_jax.training.events import EventsWriter, event_pb2, summary_pb2

RUNNING, DONE, DIVERGED = "running", "done", "diverged"


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: of the folder.
        writes: False in a process that leaves that to another: what logs and writes does nothing.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        # No SummaryWriter: Ctrl-C can stop the queue to its thread, which it waits for at the end.
        self._events: EventsWriter | None = None
        self._lines: list[str] = []  # of metrics.jsonl, also those that could not be written
        self._written = self._size = 0  # lines and bytes that were
        self._refused = False  # whether the last could not be
        self._lock: TextIO | None = None

    def claim(self, config: TrainConfig) -> None:
        """Makes the folder this configuration's, and this process's until `close` or its end.

        Raises:
            ValueError: it was written by another configuration, and the error lists the fields; or
                another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._hold()
        if (self.path / "config.json").exists():
            self.check(config)
        else:
            _write_json(self.path / "config.json", dataclasses.asdict(config))

    def check(self, config: TrainConfig) -> None:
        """Raises a ValueError if another configuration wrote the folder; it lists the fields."""
        asked = dataclasses.asdict(config)
        file = self.path / "config.json"
        # A field that an older version did not have is at its default, which changes nothing.
        written = {**dataclasses.asdict(TrainConfig()), **json.loads(file.read_text())}
        if unknown := sorted(set(written) - set(asked)):
            raise ValueError(
                f"{self.path} was written by a newer version of prelu_jax: {', '.join(unknown)} in "
                "its config.json is unknown here. Install that version, or choose another folder "
                "(--workdir)."
            )
        differing = [
            f"{key}: {written[key]!r} there, {asked[key]!r} asked"
            for key in sorted(asked)
            if written[key] != asked[key]
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds a run of another configuration ({'; '.join(differing)}). "
                "Give what it has, or choose another folder (--workdir)."
            )

    def status(self) -> dict[str, Any]:
        """The last status written; ``{'status': 'running', 'step': 0}`` for a new run."""
        file = self.path / "status.json"
        return json.loads(file.read_text()) if file.exists() else {"status": RUNNING, "step": 0}

    def write_status(self, status: str, step: int, **details: Any) -> dict[str, Any]:
        record = {"status": status, "step": step, **details}
        self._write("status.json", record)
        return record

    def write_init_report(self, report: list[dict[str, Any]]) -> None:
        self._write("init_report.json", report)

    def write_calibration(self, reports: list[dict[str, Any]]) -> None:
        self._write("calibration.json", reports)

    def write_odd_images(self, keys: dict[str, list[str]]) -> None:
        """Keeps what the run has met so far, if anything; a start from a checkpoint reads it."""
        if any(keys.values()):
            self._write("odd_images.json", keys)

    def odd_images(self) -> dict[str, list[str]]:
        """What `write_odd_images` kept."""
        file = self.path / "odd_images.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def write_interval(self, step: int, metrics: list[dict[str, float]]) -> None:
        """Keeps the metrics since the last logging interval, of a step that is saved within one."""
        self._write("intervals.json", {**self._intervals(), str(step): metrics})

    def interval(self, step: int) -> list[dict[str, float]]:
        """What `write_interval` kept of a step; none of one at an interval's end."""
        return self._intervals().get(str(step), [])

    def _intervals(self) -> dict[str, list[dict[str, float]]]:
        file = self.path / "intervals.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def rewind(self, step: int) -> dict[str, Any]:
        """Forgets the metrics after a step, which a resumed run will write again.

        Returns:
            The latest value of every metric that is left.
        """
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        # A line that a crash cut short lacks its newline; it lies after the last checkpoint.
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        kept = [record for record in records if record["step"] <= step]
        self._lines = [json.dumps(record) + "\n" for record in kept]
        _write_atomically(file, "".join(self._lines))
        self._written, self._size = len(self._lines), file.stat().st_size
        return {name: value for record in kept for name, value in record.items()}

    def log(self, record: dict[str, Any], **clock: float) -> None:
        """Appends a line to metrics.jsonl and the scalars to TensorBoard.

        What cannot be written now is said, kept, and written as soon as the disk takes it.

        Args:
            record: 'step' and what was measured there; by-layer values nest one level.
            **clock: what the machine's speed decides, for TensorBoard alone.
        """
        if not self._writes:
            return
        self._lines.append(json.dumps(record) + "\n")
        try:
            self.flush()
            self._tell_tensorboard(record, clock)
            self._refused = False
        except OSError as error:
            self._events = None  # what is cut short ends a file of events
            if not self._refused:
                text = "The metrics from step %d on are not yet written (%s); training goes on."
                logging.warning(text, record["step"], error)
            self._refused = True

    def flush(self) -> None:
        """Writes what `log` could not. Raises an OSError if it still cannot."""
        if not self._writes:
            return
        file = self.path / "metrics.jsonl"
        if file.exists() and file.stat().st_size == self._size:
            with file.open("a") as appended:
                appended.writelines(self._lines[self._written :])
        else:  # a full disk has cut a line short, or somebody removed the file
            _write_atomically(file, "".join(self._lines))
        self._written, self._size = len(self._lines), file.stat().st_size

    def _tell_tensorboard(self, record: dict[str, Any], clock: dict[str, float]) -> None:
        step = record["step"]
        if self._events is None:
            self._events = EventsWriter(str(self.path / "events"))
            # TensorBoard hides what a run that was stopped has written from this step on.
            begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.write_event(event_pb2.Event(step=step, session_log=begun))
        # One event for all: one each would take longer than to measure what is in them.
        scalars = summary_pb2.Summary()
        for name, value in {**record, **clock}.items():
            values = value if isinstance(value, dict) else {"": value}
            for suffix, scalar in values.items():
                scalars.value.add(tag=f"{name}/{suffix}" if suffix else name, simple_value=scalar)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=scalars)
        self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk: all that counts is in metrics.jsonl
                self._events.close()
        if self._lock is not None:
            self._lock.close()

    def _hold(self) -> None:
        lock = (self.path / "lock").open("a+")
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(
                f"{self.path} is being trained by {holder}. Wait for it, or choose another "
                "--workdir."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        self._lock = lock

    def _write(self, name: str, content: Any) -> None:
        if self._writes:
            _write_json(self.path / name, content)


def _write_json(file: Path, content: Any) -> None:
    _write_atomically(file, json.dumps(content, indent=2) + "\n")


def _write_atomically(file: Path, text: str) -> None:
    temporary = file.with_suffix(file.suffix + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, file)
