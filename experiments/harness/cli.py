"""The command line of experiments: flags parsed once, errors in words, exit statuses."""

import contextlib
import dataclasses
import functools
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from experiments.harness import configs, machine, record, schedule
from experiments.harness.claims import Claim
from experiments.harness.experiment import Experiment
from prelu_jax import entry, extras, files, names
from prelu_jax.entry import Status
from prelu_jax.runs import processes
from prelu_jax.runs.recorder import StoppedError
from prelu_jax.training import config as config_lib

with extras.needed("the package experiments", "train"):
    from ml_collections import config_flags

_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")
_FLAGS = (
    *("scale", "workdir", "seeds", "config", *_PROCESSES, "part", "stall_timeout"),
    "strict",
)
_MOST_SEEDS = 10_000

Group = tuple[str | None, int | None, int | None]  # arguments of `processes.join`


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line of an experiment."""

    scale: str  # name of the configuration
    config: Any  # the configuration, with the fields that the command line sets
    workdir: Path  # folder of the runs
    seeds: int  # their number
    strict: bool  # claims that are undecided fail too
    part: schedule.Part | None  # the runs to train; None for all of them and the report
    processes: Group | None  # None for one process
    stall_timeout: float  # seconds without progress after which the process ends; 0 for none


def main(experiment: Experiment) -> NoReturn:
    """Run an experiment from the command line and exit with its status.

    The status is 1 if a claim fails, or with --strict if one is undecided; `launch.statuses` lists
    all statuses.
    """
    with entry.command():
        report, status = None, 0
        with processes.exit_all_on_failure(), _errors_in_words():
            options = parse(experiment)
            if options.processes:
                processes.join(*options.processes)
            with _marked(options) as (started, stopped):
                try:
                    report = experiment.run(
                        options.config,
                        options.workdir,
                        options.seeds,
                        options.part,
                        options.stall_timeout,
                    )
                except StoppedError as stop:
                    entry.complain(f"\nStopped {stop}. The same command continues from there.")
                    status = Status.STOPPED
        if report:
            print("\nClaims:", *report.claims, sep="\n")
            seconds = time.monotonic() - started
            record.write(
                *(options.workdir, experiment.name, options.scale, options.seeds, seconds, stopped),
                report.claims,
            )
            status = exit_status(report.claims, options.strict)
        elif options.part and not status and processes.is_first():
            print("\nThis part is trained. The same command without --part ends the experiment.")
        sys.exit(status)


def exit_status(claims: Sequence[Claim], strict: bool) -> int:
    """Return the status of an experiment by its claims; ``strict``: undecided ones fail too."""
    failed = {"FAIL", "UNDECIDED"} if strict else {"FAIL"}
    return Status.CLAIM_FAILED if failed & {claim.outcome for claim in claims} else 0


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
    """Exit with a message where the body ends with an error of a flag, a file or the data."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        if processes.is_of_lost_process(error):
            raise
        if logging.get_verbosity() > 0:
            entry.complain(traceback.format_exc())
        entry.complain(f"error: {error} (--verbosity=1 shows where.)")
        raise SystemExit(Status.CRASHED if _may_pass(error) else Status.REFUSED) from error
    except KeyboardInterrupt:
        entry.complain("\nInterrupted. The same command continues where it stopped.")
        # Ctrl-C can leave a thread half started that never ends.
        entry.end_now(Status.INTERRUPTED)


def _may_pass(error: Exception) -> bool:
    """Return whether an error may be gone at the next start: of a disk, not of a wrong path."""
    wrong = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, OSError) and not isinstance(error, wrong)


@contextlib.contextmanager
def _marked(options: Options) -> Iterator[tuple[float, bool]]:
    """Mark the work folder as that of a command that has started, until its record is written.

    Yields:
        The time, and whether the work folder has runs whose time is in no record.
    """
    stopped = processes.is_first() and record.mark_started(options.workdir)
    try:
        # The time of a part is in no record, but the mark remains.
        yield time.monotonic(), stopped or options.part is not None
    except (ValueError, ImportError, OSError) as error:
        if processes.is_first() and not processes.is_of_lost_process(error):
            record.clear_mark(options.workdir, stopped or options.part is not None)
        raise


def parse(experiment: Experiment) -> Options:
    """Return the command line as `Options`; nothing else reads a flag.

    Raises:
        SystemExit: a flag is refused.
        ValueError: the same, where the flag itself can be.
    """
    arguments = entry.parse_flags(functools.partial(_define, experiment))
    values = flags.FLAGS
    if len(arguments) > 1:
        raise app.UsageError(f"Unexpected arguments: {arguments[1:]}; flags begin with --.")
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        machine.quiet_orbax()
    if values.scale != _scale():
        raise SystemExit("error: give --scale on the command line, not in a flag file.")
    workdir = Path(f"runs/{experiment.name}_{values.scale}")
    if values["workdir"].present and not values.workdir:
        raise ValueError("--workdir is empty, expected a folder for the runs.")
    if values.workdir:
        workdir = files.local_path(values.workdir, "--workdir")
    part = schedule.parse_part(values.part) if values.part else None
    if part and not experiment.plan:
        raise ValueError("This experiment does one thing after another: give no --part.")
    _check_workdir(workdir)
    group = _processes()
    if group and not experiment.plan:
        raise ValueError("This experiment is for one process: give no flag of several.")
    return Options(
        scale=values.scale,
        config=configs.checked(values.config),
        workdir=workdir,
        seeds=values.seeds,
        strict=values.strict,
        part=part,
        processes=group,
        stall_timeout=values.stall_timeout,
    )


def _define(experiment: Experiment) -> entry.Fields:
    """Define the flags, and return the fields of the configuration at the scale asked for."""
    flags.DEFINE_string("scale", "laptop", f"One of {', '.join(experiment.scales)}.")
    flags.DEFINE_string("workdir", "", "Where runs go; default runs/<name>_<scale>.")
    flags.DEFINE_integer("seeds", experiment.default_seeds, "How many seeds.", 1, _MOST_SEEDS)
    flags.DEFINE_bool("strict", False, "Status 1 for a claim that is UNDECIDED, too.")
    # The scale decides the configuration whose fields are the other flags.
    config = experiment.config(_scale())
    texts = config_lib.field_texts(type(config))
    fields = {
        field.name: entry.Field(getattr(config, field.name), texts.get(field.name, ""))
        for field in dataclasses.fields(config)
    }
    sys.argv = _with_present_names(sys.argv)
    _check_fields(sys.argv, fields)
    about = "The configuration of this scale; --config.FIELD=VALUE sets a field."
    config_flags.DEFINE_config_dataclass("config", config, about)
    _define_processes()
    for flag in _FLAGS:  # --help shows these
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])
    return fields


def _define_processes() -> None:
    flags.DEFINE_bool("distributed", False, "One of several processes of a TPU pod or a SLURM job.")
    flags.DEFINE_string("coordinator_address", None, "Elsewhere: address of process 0, host:port.")
    flags.DEFINE_integer("num_processes", None, "Elsewhere: their number.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Elsewhere: the number of this one.", lower_bound=0)
    flags.DEFINE_string(
        "part", None, "I/N: train every Nth run, from the Ith on, 0 the first; then end."
    )
    flags.DEFINE_float(
        "stall_timeout",
        600,
        "Seconds without progress, as when a disk hangs, after which the run ends with status "
        f"{Status.CRASHED}, for a launcher to start it again; 0 for none.",
        lower_bound=0,
    )
    flags.register_validator("stall_timeout", math.isfinite, "expected a number of seconds.")


def _scale() -> str:
    """Return the scale that the command line itself asks for."""
    values = flags.FlagValues()
    flags.DEFINE_string("scale", "laptop", "", flag_values=values)
    arguments = [sys.argv[0]]
    for i, argument in enumerate(sys.argv[1:], start=1):
        if argument.lstrip("-").startswith("scale="):
            arguments.append(argument)
        elif argument in ("--scale", "-scale"):
            arguments.extend(sys.argv[i : i + 2])
    values(arguments)
    return str(values.scale)


def _with_present_names(argv: Sequence[str]) -> list[str]:
    """Return the arguments with renamed fields under their present names; warn of each."""
    arguments = list(argv)
    for old, new in config_lib.RENAMED.items():
        pattern = re.compile(rf"(--?config\.){old}(?==|$)")
        if any(map(pattern.match, arguments)):
            entry.complain(f"--config.{old} is now --config.{new}; the old name will be removed.")
            arguments = [pattern.sub(rf"\g<1>{new}", argument) for argument in arguments]
    return arguments


def _check_fields(argv: Sequence[str], fields: entry.Fields) -> None:
    """Raise a ValueError if a flag names a field that the configuration has not."""
    for argument in argv[1:]:
        flag = argument.lstrip("-").partition("=")[0].removeprefix("no")
        if argument.startswith("-") and flag.startswith("config."):
            names.check("config field", flag.removeprefix("config."), fields)


def _check_workdir(folder: Path) -> None:
    """Raise a ValueError if runs cannot be written to a folder, which need not exist."""
    paths = (folder, *folder.absolute().parents)
    there = next(path for path in paths if os.path.exists(path))  # False where it may not look
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise ValueError(f"--workdir is {folder}, but {there} {why}; give a folder for the runs.")


def _processes() -> Group | None:
    """Return the arguments of `processes.join`; None if the flags ask for one process.

    Raises:
        ValueError: the flags do not go together.
    """
    values = flags.FLAGS
    group = (values.coordinator_address, values.num_processes, values.process_id)
    if len({value is None for value in group}) > 1:
        raise ValueError(
            "Expected all of --coordinator_address, --num_processes and --process_id, or none."
        )
    if group[0] and not values.process_id < values.num_processes:
        raise ValueError(
            f"--process_id is {values.process_id}, expected below --num_processes, "
            f"{values.num_processes}."
        )
    return group if group[0] or values.distributed else None
