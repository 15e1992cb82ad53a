"""What every experiment shares: its flags, its scales, its runs and its exit status."""

import dataclasses
import functools
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from experiments import machine, record, results
from experiments.results import Claim
from prelu_jax import entry, files, names
from prelu_jax.runs import processes, recorder, trainer
from prelu_jax.training import config as config_lib
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel

_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")
_FLAGS = (
    *("scale", "workdir", "seeds", "config", *_PROCESSES, "part", "stall_timeout"),
    "strict",
)

_MOST_SEEDS = 10_000

Run = Callable[[Any, Path, int], list[Claim]]  # (config, workdir, seeds) -> claims


def main(
    name: str,
    configs: Mapping[str, Callable[[], Any]],
    run: Run,
    default_seeds: int = 3,
    alone: bool = False,
) -> None:
    """Run an experiment from the command line and exit; the status is 1 if a claim fails.

    With --strict, a claim that is undecided fails too. `launch.statuses` lists all statuses.

    Args:
        name: of the experiment, for the default work folder.
        configs: scale -> its configuration, a dataclass whose fields are flags, --config.FIELD.
        run: takes the configuration, the work folder and the number of seeds.
        default_seeds: how many, where the command does not say.
        alone: it does one thing after another, in one process: no parts.
    """
    values = flags.FLAGS
    of_command_line = ""  # the scale

    def define() -> entry.Fields:
        nonlocal of_command_line
        flags.DEFINE_string("scale", "laptop", f"One of {', '.join(configs)}.")
        flags.DEFINE_string("workdir", "", "Where runs go; default runs/<name>_<scale>.")
        flags.DEFINE_integer("seeds", default_seeds, "How many seeds.", 1, _MOST_SEEDS)
        flags.DEFINE_bool("strict", False, "Status 1 for a claim that is UNDECIDED, too.")
        # The scale decides the configuration whose fields are the other flags: read it first.
        values(_only(sys.argv, "scale"))
        of_command_line = values.scale
        names.check("scale", of_command_line, configs)
        config = configs[of_command_line]()
        _check_fields(sys.argv, config)
        values.unparse_flags()
        about = "The configuration of this scale; --config.FIELD=VALUE sets a field."
        config_flags.DEFINE_config_dataclass("config", config, about)
        _define_processes()
        for flag in _FLAGS:  # what --help shows
            values.register_key_flag_for_module(sys.argv[0], values[flag])
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

    def start(argv: list[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(f"Unexpected arguments: {argv[1:]}; flags begin with --.")
        if not values["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            machine.quiet_orbax()
        if values.scale != of_command_line:
            raise SystemExit("error: give --scale on the command line, not in a flag file.")
        with processes.exit_all_on_failure():
            return _run(name, run, alone)

    entry.run(start, define)


def _run(name: str, run: Run, alone: bool) -> int:
    """Run the experiment that the flags describe; return the exit status."""
    values = flags.FLAGS
    folder = Path(f"runs/{name}_{values.scale}")
    started, stopped = time.monotonic(), False
    try:
        if values["workdir"].present and not values.workdir:
            raise ValueError("--workdir is empty, expected a folder for the runs.")
        if values.workdir:
            folder = files.local_path(values.workdir, "--workdir")
        _resolve_paths(values.config)
        part = _part()
        if alone and part:
            raise ValueError("This experiment does one thing after another: give no --part.")
        _check_workdir(folder)
        config_lib.check_values(values.config)
        _join(alone)
        # The time of a part is in no record: neither is it forgotten that there was one.
        stopped = processes.is_first() and (record.begin(folder) or part is not None)
        claims = run(values.config, folder, values.seeds)
    except (ValueError, ImportError, OSError) as error:
        if processes.is_of_lost_process(error):
            raise
        if processes.is_first():
            record.refuse(folder, stopped)
        if logging.get_verbosity() > 0:
            entry.complain(traceback.format_exc())
        entry.complain(f"error: {error} (--verbosity=1 shows where.)")
        raise SystemExit(entry.CRASHED if _passes(error) else entry.REFUSED) from error
    except KeyboardInterrupt:
        entry.complain("\nInterrupted. The same command goes on where it stopped.")
        # Ctrl-C can leave a thread half started that never ends.
        entry.end_now(entry.INTERRUPTED)
    except recorder.StoppedError as stop:
        entry.complain(f"\nStopped {stop}. The same command goes on from there.")
        return entry.STOPPED
    seconds = time.monotonic() - started
    print("\nClaims:")
    for claim in claims:
        print(claim)
    record.write(folder, name, values.scale, values.seeds, seconds, stopped, claims)
    return exit_status(claims, values.strict)


def exit_status(claims: Sequence[Claim], strict: bool) -> int:
    """Return the status of an experiment by its claims; ``strict``: undecided ones fail too."""
    failed = {"FAIL", "UNDECIDED"} if strict else {"FAIL"}
    return entry.CLAIM_FAILED if failed & {claim.outcome for claim in claims} else 0


def _passes(error: Exception) -> bool:
    """Return whether an error may be gone at the next start: of a disk, not of a wrong path."""
    wrong = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, OSError) and not isinstance(error, wrong)


def _resolve_paths(config: Any) -> None:
    """Expand ``~`` in the fields of a configuration that are folders of runs.

    Raises:
        ValueError: a folder is the address of a bucket.
    """
    for field in ("data_dir", "pretrained", "runs"):
        if written := getattr(config, field, ""):
            path = str(files.local_path(written, f"config.{field}"))
            # The reader of datasets expands data_dir; config.json keeps it as written.
            setattr(config, field, written if field == "data_dir" else path)


def _check_workdir(folder: Path) -> None:
    """Raises a ValueError if runs cannot be written there; it makes nothing."""
    paths = (folder, *folder.absolute().parents)
    there = next(path for path in paths if os.path.exists(path))  # False where it may not look
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise ValueError(f"--workdir is {folder}, but {there} {why}; give a folder for the runs.")


def _define_processes() -> None:
    flags.DEFINE_bool("distributed", False, "One of several processes, as TPU pods and SLURM tell.")
    flags.DEFINE_string("coordinator_address", None, "Elsewhere: of process 0, host:port.")
    flags.DEFINE_integer("num_processes", None, "Elsewhere: how many there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Elsewhere: which this one is.", lower_bound=0)
    flags.DEFINE_string(
        "part", None, "I/N: train every Nth run, from the Ith on, 0 the first; then end."
    )
    flags.DEFINE_float(
        "stall_timeout",
        600,
        "Seconds without progress, as when a disk hangs, after which the run ends with status "
        f"{entry.CRASHED}, for a launcher to start it again; 0 for none.",
        lower_bound=0,
    )
    flags.register_validator("stall_timeout", math.isfinite, "expected a number of seconds.")


def _join(alone: bool) -> None:
    """Joins the other processes of the run, if the flags say that there are any.

    Raises:
        ValueError: the flags do not go together, or the experiment is for one process alone.
    """
    values = flags.FLAGS
    told = (values.coordinator_address, values.num_processes, values.process_id)
    if len({value is None for value in told}) > 1:
        raise ValueError(
            "Expected all of --coordinator_address, --num_processes and --process_id, or none."
        )
    if told[0] and not values.process_id < values.num_processes:
        raise ValueError(
            f"--process_id is {values.process_id}, expected below --num_processes, "
            f"{values.num_processes}."
        )
    if told[0] or values.distributed:
        if alone:
            raise ValueError("This experiment is for one process: give no flag of several.")
        processes.join(*told)


def _part() -> tuple[int, int] | None:
    """Which part of the runs, of how many, the flags say; None: all of them.

    Raises:
        ValueError: there is no such part.
    """
    text = _flag("part")
    if not text:
        return None
    told = re.fullmatch(r"(\d+)/(\d+)", text)
    if not told or not int(told[1]) < int(told[2]):
        raise ValueError(f"--part is {text!r}, expected I/N with I from 0 to N - 1, as in 0/4.")
    return int(told[1]), int(told[2])


def check_in_one_piece(what: str) -> None:
    """Raises a ValueError if the flags ask for a part of it, or several processes."""
    if _part() or processes.is_multiprocess():
        raise ValueError(
            f"{what} is for one process and in one piece: give no --part and no flag of several "
            "processes."
        )


def _flag(flag: str) -> Any:
    """What the command says; None where there is no command, as in a notebook."""
    return flags.FLAGS[flag].value if flag in flags.FLAGS else None


def _only(argv: Sequence[str], flag: str) -> list[str]:
    """The program's name and the arguments that set one flag."""
    kept = [argv[0]]
    for i, argument in enumerate(argv[1:], start=1):
        if argument.lstrip("-").startswith(f"{flag}="):
            kept.append(argument)
        elif argument in (f"--{flag}", f"-{flag}"):
            kept.extend(argv[i : i + 2])
    return kept


def _check_fields(argv: Sequence[str], config: Any) -> None:
    fields = [field.name for field in dataclasses.fields(config)]
    for argument in argv[1:]:
        flag = argument.lstrip("-").partition("=")[0].removeprefix("no")
        if argument.startswith("-") and flag.startswith("config."):
            names.check("config field", flag.removeprefix("config."), fields)


def check_unset(config: Any, fields: Sequence[str], instead: str = "") -> None:
    """Raises a ValueError if a field that an experiment sets for each run is not at its default.

    Args:
        config: of the experiment.
        fields: those.
        instead: what the user may set, for the error.
    """
    for field in fields:
        if getattr(config, field) != getattr(type(config), field):
            see = f" See {instead}." if instead else ""
            raise ValueError(f"config.{field} is set for each run; leave it as it is.{see}")


def check_fractions(config: Any, *fields: str) -> None:
    """Raise a ValueError if an error that claims compare with is not from 0 to 1."""
    for field in fields:
        value = getattr(config, field)
        if not all(0 <= one <= 1 for one in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(
                f"config.{field} is {value}, expected fractions from 0 to 1: 0.2 is an error of "
                "20 %."
            )


def train_config(config: TrainConfig, **fields: Any) -> TrainConfig:
    """The run of an experiment's configuration: its own fields left out, some others set."""
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**{**own, **fields})


def train_all(
    runs: Mapping[Path, tuple[str, TrainConfig]], parallel: Parallel | None = None
) -> None:
    """Trains every run that its folder does not hold finished, one after another.

    A run is left out that takes its weights from one of these that diverged.

    Of several processes, all but the first end here; with --part, all of them.

    Args:
        runs: folder -> (label, configuration).
        parallel: the devices; all that the smallest batch can feed by default.
    """
    parallel = parallel or machine.devices(min(config.batch_size for _, config in runs.values()))
    for _, config in runs.values():
        trainer.check(config, parallel)  # all of them before the first trains
    with processes.preemption() as asked:
        for folder in _of_part(runs):
            label, config = runs[folder]
            source = Path(config.pretrained)
            diverged = functools.partial(results.diverged, source)
            if source in runs and processes.broadcast_from_process_0(diverged):
                continue  # nothing to start from: it has no folder, and counts as diverged
            _train(folder, config, label, parallel, asked)
    if _part() and processes.is_first():
        print("\nThis part is trained. The same command without --part ends the experiment.")
    if _part() or not processes.is_first():
        sys.exit(0)


def _of_part(runs: Mapping[Path, tuple[str, TrainConfig]]) -> list[Path]:
    """The runs that the flags ask for; those of a part wait for no other run's weights."""
    part = _part()
    if not part:
        return list(runs)
    first, step = part
    apart = [f for f, (_, config) in runs.items() if Path(config.pretrained) not in runs]
    return apart[first::step]


def _train(
    folder: Path,
    config: TrainConfig,
    label: str,
    parallel: Parallel,
    stop: Callable[[], bool],
) -> None:
    """Trains a run and shows how far it is."""
    with tqdm(
        total=config.num_steps,
        desc=label,
        unit="step",
        smoothing=0.1,
        mininterval=1,
        disable=not processes.is_first(),
    ) as bar:

        def progress(step: int, error: float | None) -> None:
            bar.set_postfix_str(f"error {error:.1%}" if error is not None else "", False)
            bar.update(step - bar.n)

        timeout = _flag("stall_timeout") or 0
        status = trainer.train(config, folder, progress, parallel, stop, timeout)
        bar.set_postfix_str(f"{status['status']} at step {status['step']}")
