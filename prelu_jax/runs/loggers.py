"""Receivers of a run's metrics: TensorBoard, and loggers of the user's choice."""

import inspect
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from prelu_jax.runs.events import EventsWriter, event_pb2, summary_pb2


class Logger(Protocol):
    """A receiver of a run's metrics.

    `trainer.train` calls the loggers in process 0 only, and closes them in every process. An error
    that a logger raises becomes a warning; training continues. A resumed run does not repeat the
    records that metrics.jsonl already held. An example for Weights & Biases::

        import wandb
        class WandbLogger:
            def __init__(self, **options):
                self.run = wandb.init(**options)
            def write(self, step, metrics):
                self.run.log(metrics, step=step)
            def close(self):
                self.run.finish()

    A resumed run continues the same curves if it has the same ``id``::

        logger = WandbLogger(project="prelu", id="he_seed_0", resume="allow")
        trainer.train(config, folder, loggers=[logger])

    With several processes, ``loggers=[WandbLogger(...)] if processes.is_first() else []`` begins
    one run instead of one per process.
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a record; there may be several of one step, with other metrics.

        Args:
            step: the number of steps taken; it never decreases within one call of `train`.
            metrics: by name, values by layer as 'name/layer': of metrics.jsonl, and
                'steps_per_second'.
        """

    def close(self) -> None:
        """Finish: the run has ended, has stopped or has failed.

        A run whose configuration is refused has not begun, and closes nothing.
        """


def check_loggers(loggers: Iterable[Logger]) -> tuple[Logger, ...]:
    """Return the loggers, all of which have the methods of `Logger`.

    Raises:
        TypeError: one lacks such a method, or ``loggers`` is no iterable.
    """
    methods = "with write(step, metrics) and close()"
    try:
        checked = tuple(loggers)
    except TypeError:
        raise TypeError(f"loggers is {loggers!r}, expected a list of objects {methods}.") from None
    for i, logger in enumerate(checked):
        if not (_takes(logger, "write", 0, {}) and _takes(logger, "close")):
            raise TypeError(f"loggers[{i}] is {logger!r}, expected an object {methods}.")
    return checked


def _takes(logger: Logger, method: str, *arguments: Any) -> bool:
    """Return whether a logger has a method that can be called with these arguments."""
    function: Any = getattr(logger, method, None)
    try:
        inspect.signature(function).bind(*arguments)  # a class lacks `self`
    except TypeError:
        return False
    except ValueError:  # the signature of a function in C is not known
        pass
    return True


class Guarded:
    """A logger whose errors are warnings. Only the first of several in a row is logged.

    Args:
        logger: the logger.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._last_write_failed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give a record to the logger."""
        try:
            self._logger.write(step, metrics)
            self._last_write_failed = False
        except Exception as error:
            if not self._last_write_failed:
                text = "%s has not taken the metrics of step %d (%s); training continues."
                logging.warning(text, type(self._logger).__name__, step, _text(error))
            self._last_write_failed = True

    def close(self) -> None:
        """Close the logger."""
        try:
            self._logger.close()
        except Exception as error:
            logging.warning("%s is not closed (%s).", type(self._logger).__name__, _text(error))


def _text(error: Exception) -> str:
    """Return the class of an error and its text, which may itself raise an error."""
    return "".join(traceback.format_exception_only(error)).strip()


class TensorBoard:
    """Writer of TensorBoard's events.

    Args:
        folder: where the files of events go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # No SummaryWriter: Ctrl-C can stop the queue to its thread, which it waits for at the end.
        self._events: EventsWriter | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append an event. Raise an OSError if the disk refuses; the next call begins a file."""
        # One event for all: one event each would take longer than the measurements.
        scalars = summary_pb2.Summary()
        for name, value in metrics.items():
            scalars.value.add(tag=name, simple_value=value)
        try:
            if self._events is None:
                self._events = self._begin(step)
            event = event_pb2.Event(wall_time=time.time(), step=step, summary=scalars)
            self._events.write_event(event)
            self._events.flush()
        except OSError:
            self._events = None  # readers stop at a truncated event: begin a new file
            raise

    def _begin(self, step: int) -> EventsWriter:
        events = EventsWriter(str(self._folder / "events"))
        # TensorBoard hides the events that a stopped run wrote from this step on.
        begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        events.write_event(event_pb2.Event(step=step, session_log=begun))
        return events

    def close(self) -> None:
        """Close the file."""
        if self._events is not None:
            self._events.close()
