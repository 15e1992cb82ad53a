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
odd_images.json    their keys, if there are any, at the last checkpoint; for people
intervals.json     in runs of earlier versions; now a checkpoint holds what it held
checkpoints/       see `checkpoint`
lock               who trains it; held as long as that process lives
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from prelu_jax import files
from prelu_jax.files import DamagedFileError
from prelu_jax.training import identity, metrics
from prelu_jax.training.checkpoint import Checkpoints
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.events import EventsWriter, event_pb2, summary_pb2

RUNNING, DONE, DIVERGED = "running", "done", "diverged"
_ODD = ("left_out", "enlarged")  # kinds of odd images
_REBUILT = "The command that trained the run rebuilds it."  # what to do about a damaged file


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

    def claim(self, config: TrainConfig, data: dict[str, Any] | None = None) -> None:
        """Make the folder this configuration's, and this process's until `close` or its end.

        Raises:
            ValueError: as `check`; or another process holds the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._hold()
        self.check(config, data)

    def check(self, config: TrainConfig, data: dict[str, Any] | None = None) -> None:
        """Refuse a folder of another run, by its config.json and by its newest checkpoint.

        A config.json that is lost is written again if the checkpoint holds the same configuration.

        Args:
            config: asked for.
            data: `identity.data_facts` of what the run would read; None: not compared.

        Raises:
            ValueError: the folder holds another configuration, and the error lists the fields; or
                a run on other data; or its configuration is not known.
        """
        file, notes, lost = self.path / "config.json", self._notes(), ""
        sources = {}
        try:
            sources["config.json"] = files.read_json(file, dict, "It is written again.")
        except FileNotFoundError:
            lost = f"{file} is missing. It is written again."
        except DamagedFileError as error:
            lost = str(error)
        if "config" in notes:
            sources["checkpoint"] = notes["config"]
        if lost and not sources and (notes or self._has_begun()):
            raise ValueError(
                f"{lost.removesuffix(' It is written again.')} Nothing else tells which "
                f"configuration the run in {self.path} has. Put a copy of the file there, or "
                "choose another folder (--workdir)."
            )
        identity.check_config(config, self.path, sources)
        if data is not None:
            identity.check_data(self.path, notes.get("data", {}), data)
        if lost:
            if sources or file.exists():
                logging.warning("%s", lost)
            files.write_json(file, identity.to_fields(config, self.path))

    def config(self, name: str = "run") -> TrainConfig:
        """Return the configuration of the run, of its newest checkpoint if config.json is lost.

        Raises:
            ValueError: there is none that this version can read; ``name`` is what named the folder.
        """
        file = self.path / "config.json"
        try:
            fields = files.read_json(file, dict, _REBUILT)
        except (FileNotFoundError, DamagedFileError) as error:
            if "config" not in (notes := self._notes()):
                raise ValueError(
                    f"{name} is {self.path}, whose configuration cannot be read: {error}"
                ) from error
            logging.warning("%s: its configuration is taken from its checkpoint.", error)
            fields = notes["config"]
        return identity.to_config(fields, self.path, f"{name} is {self.path}, whose config.json")

    def _notes(self) -> dict[str, Any]:
        """Return the notes of the newest checkpoint; nothing if there is none."""
        if not (self.path / "checkpoints").exists():
            return {}
        with contextlib.closing(Checkpoints(self.path / "checkpoints", owned=False)) as checkpoints:
            return checkpoints.newest_notes()

    def _has_begun(self) -> bool:
        """Return whether there is more in the folder than what a new run may replace."""
        checkpoints = self.path / "checkpoints"
        saved = checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())
        return saved or self.status()["status"] in (DONE, DIVERGED)

    def status(self) -> dict[str, Any]:
        """Return the last status written; ``{'status': 'running', 'step': 0}`` for a new run.

        A damaged one is logged and taken for that too: the run then continues from its newest
        checkpoint, and writes it again when that was the last.
        """
        file = self.path / "status.json"
        try:
            status: dict[str, Any] = files.read_json(file, dict, _REBUILT)
            if status.get("status") not in (RUNNING, DONE, DIVERGED) or not (
                type(status.get("step")) is int and status["step"] >= 0
            ):
                raise DamagedFileError(f"{file} is damaged (it holds {status}). {_REBUILT}")
            return status
        except FileNotFoundError:
            pass
        except DamagedFileError as error:
            logging.warning("%s", error)
        return {"status": RUNNING, "step": 0}

    def final_status(self, config: TrainConfig) -> dict[str, Any] | None:
        """Return the status of a run that has ended and whose files are whole; else None.

        Raises:
            ValueError: it has ended, a file is damaged, and no checkpoint is left to rebuild it.
        """
        status = self.status()
        if status["status"] not in (DONE, DIVERGED):
            return None
        step = status["step"]
        if status["status"] == DIVERGED:
            step = (step - 1) // config.log_every * config.log_every
        damaged = self.damaged_reports(config)
        if (file := self.path / "metrics.jsonl").exists():
            records, lines = files.read_records(file)
            is_cut = not files.read_bytes(file).endswith(b"\n")
            if lines or (records and is_cut) or metrics.missing(config, records, step):
                damaged.append(file)
        elif step >= 0:
            damaged.append(file)
        if not damaged:
            return status
        names = ", ".join(map(str, damaged))
        if status["status"] == DONE and not self._notes():
            raise ValueError(
                f"{names}: damaged or missing, and there is no checkpoint to rebuild it from. Put "
                "a copy there, or remove the run folder to train again."
            )
        logging.warning("%s: damaged or missing. The run continues from a checkpoint.", names)
        return None

    def damaged_reports(self, config: TrainConfig) -> list[Path]:
        """Return the reports on the start of a run that cannot be read."""
        names = ["init_report.json"] + ["calibration.json"] * (config.datadep != "none")
        damaged = []
        for file in (self.path / name for name in names):
            try:
                files.read_json(file, list, _REBUILT)
            except (FileNotFoundError, DamagedFileError):
                damaged.append(file)
        return damaged

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
        """Return what `write_odd_images` kept; a checkpoint of an earlier version has no copy."""
        kept = self._earlier("odd_images.json", "Images that the checkpoint lists are counted.")
        lists = {k: v for k, v in kept.items() if isinstance(v, list) and k in _ODD}
        return {kind: [key for key in keys if isinstance(key, str)] for kind, keys in lists.items()}

    def interval(self, step: int) -> list[dict[str, float]]:
        """Return the metrics since the last logging interval, as earlier versions kept them."""
        kept = self._earlier("intervals.json", "The interval's mean is of its other steps.")
        interval = kept.get(str(step), [])
        return interval if isinstance(interval, list) else []

    def _earlier(self, name: str, loss: str) -> dict[str, Any]:
        try:
            return dict(files.read_json(self.path / name, dict, loss))
        except FileNotFoundError:
            return {}
        except DamagedFileError as error:
            logging.warning("%s", error)
            return {}

    def records(self) -> list[dict[str, Any]]:
        """Return the whole records of metrics.jsonl; damaged lines are logged."""
        file = self.path / "metrics.jsonl"
        try:
            records, damaged = files.read_records(file)
        except FileNotFoundError:
            return []
        if damaged:
            logging.warning(
                "%s is damaged in %d lines, from line %d on; %d records are whole.",
                *(file, len(damaged), damaged[0], len(records)),
            )
        return records

    def rewind(self, records: list[dict[str, Any]], step: int) -> dict[str, Any]:
        """Remove the records after a step, which a resumed run will write again.

        Args:
            records: `records`.
            step: of the checkpoint; -1 for none.

        Returns:
            The latest value of every metric that is left.
        """
        file = self.path / "metrics.jsonl"
        kept = [record for record in records if record["step"] <= step]
        self._lines = [json.dumps(record) + "\n" for record in kept]
        files.write_text(file, "".join(self._lines))
        self._written, self._size = len(self._lines), file.stat().st_size
        return {name: value for record in kept for name, value in record.items()}

    def last_evaluation(self) -> dict[str, Any] | None:
        """Return the latest record with a test error, if there is one."""
        records = map(json.loads, reversed(self._lines))
        return next((record for record in records if "test_error" in record), None)

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

    def flush(self, to_disk: bool = False) -> None:
        """Write what `log` could not. Raise an OSError if it still cannot.

        Args:
            to_disk: wait until it is there: a checkpoint must not be newer than its records.
        """
        if not self._writes:
            return
        file = self.path / "metrics.jsonl"
        if file.exists() and file.stat().st_size == self._size:
            with file.open("a", encoding="utf-8") as appended:
                appended.writelines(self._lines[self._written :])
                if to_disk:
                    appended.flush()
                    os.fsync(appended.fileno())
        else:  # a full disk has cut a line short, or somebody removed the file
            files.write_text(file, "".join(self._lines))
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
        lock = (self.path / "lock").open("a+", encoding="utf-8", errors="replace")
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
            files.write_json(self.path / name, content)
