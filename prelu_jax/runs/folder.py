"""The folder of a run.

config.json        the `TrainConfig`
init_report.json   every parameter: shape, rule, fans, std by the rule and at the start, whether it
                   is pretrained, frozen, decays
calibration.json   with `datadep`: the report of each method, layer by layer (`CalibrationReport`)
metrics.jsonl      a line per logging interval, evaluation and measurement of the signal; no clock
                   in it, so that an interrupted run and an uninterrupted one write the same bytes
events.*           the same for TensorBoard, with steps per second
status.json        'running', 'done' or 'diverged', and the step; at the end also the number of
                   images that were left out or enlarged, if any were
odd_images.json    the keys of such images at the last checkpoint, for people
intervals.json     in runs of earlier versions; now a checkpoint holds its content
checkpoints/       see `checkpoint`
lock               the process that trains the run; held as long as that process lives
"""

import contextlib
import fcntl
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from prelu_jax import files
from prelu_jax.files import DamagedFileError
from prelu_jax.runs import identity
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.loggers import Logger
from prelu_jax.runs.metrics import MetricsLog
from prelu_jax.training.config import TrainConfig

RUNNING, DONE, DIVERGED = "running", "done", "diverged"
_ODD = ("left_out", "enlarged")  # kinds of odd images
_REBUILT = "The command that trained the run rebuilds it."  # advice about a damaged file


class RunFolder:
    """Reader and writer of the files of one run.

    Args:
        path: of the folder.
        writes: False in a process that leaves writing to another: nothing is logged or written.
        loggers: receivers of the metrics, beside TensorBoard.

    Attributes:
        metrics: metrics.jsonl, TensorBoard's events and the loggers.
    """

    def __init__(self, path: Path, writes: bool = True, loggers: Sequence[Logger] = ()) -> None:
        self.path = path
        self.metrics = MetricsLog(path, writes, loggers)
        self._writes = writes
        self._lock: TextIO | None = None

    def claim(self, config: TrainConfig, data: dict[str, Any] | None = None) -> None:
        """Lock the folder for this process and write or compare its configuration.

        Raises:
            ValueError: as `check`; or another process holds the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._hold()
        self.check(config, data)

    def check(self, config: TrainConfig, data: dict[str, Any] | None = None) -> None:
        """Refuse the folder of another run, by its config.json and its newest checkpoint.

        A lost config.json is written again if the checkpoint holds the same configuration.

        Args:
            config: of the run.
            data: `identity.data_facts` of the run's data; None: not compared.

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
                f"{lost.removesuffix(' It is written again.')} Nothing else holds the "
                f"configuration of the run in {self.path}. Put a copy of the file there, or "
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
            ValueError: this version can read none; ``name`` is the field of the folder.
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
        """Return whether the folder holds more than a new run may replace."""
        checkpoints = self.path / "checkpoints"
        saved = checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())
        return saved or self.status()["status"] in (DONE, DIVERGED)

    def status(self) -> dict[str, Any]:
        """Return the last status written; ``{'status': 'running', 'step': 0}`` for a new run.

        A damaged status counts as that of a new run: the run continues from its newest checkpoint
        and writes the status again.
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
        if not self.metrics.is_whole(config, step):
            damaged.append(self.metrics.file)
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
        """Write status.json and return its content."""
        record = {"status": status, "step": step, **details}
        self._write("status.json", record)
        return record

    def write_init_report(self, report: list[dict[str, Any]]) -> None:
        """Write init_report.json."""
        self._write("init_report.json", report)

    def write_calibration(self, reports: list[dict[str, Any]]) -> None:
        """Write calibration.json."""
        self._write("calibration.json", reports)

    def write_odd_images(self, keys: dict[str, list[str]]) -> None:
        """Write the keys of bad images, if there are any."""
        if any(keys.values()):
            self._write("odd_images.json", keys)

    def odd_images(self) -> dict[str, list[str]]:
        """Return the keys of bad images, which checkpoints of earlier versions do not hold."""
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

    def close(self) -> None:
        """Close the loggers and release the lock."""
        try:
            self.metrics.close()
        finally:  # Ctrl-C while a logger is closed
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
