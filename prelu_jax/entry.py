"""Entry point of every command: its streams, its flags, its help and its exit statuses.

    with entry.command():
        arguments = entry.parse_flags()
        ...

It imports neither JAX nor anything of the project: launchers and `experiments.report` need none.
"""

import contextlib
import difflib
import enum
import faulthandler
import inspect
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import app, command_name, flags, logging


class Status(enum.IntEnum):
    """Exit status of a command that did not succeed."""

    CLAIM_FAILED = 1  # of an experiment that ran to its end
    CRASHED = 70  # sysexits.h, EX_SOFTWARE: a launcher starts the command again
    STOPPED = 75  # sysexits.h, EX_TEMPFAIL: saved; a launcher starts the command again
    REFUSED = 78  # sysexits.h, EX_CONFIG: a flag, the data or a folder; refused again if repeated
    INTERRUPTED = 130  # Ctrl-C, as shells report it


# Flags that absl defines and only `absl.app.run` carries out.
_DEBUGGING = ("run_with_pdb", "pdb_post_mortem", "run_with_profiling", "profile_file")
_HELP = ("h", "help", "helpshort", "?")
_WIDTH = 100


class Field(NamedTuple):
    """The default of a field of --config, and its meaning."""

    default: Any
    text: str = ""


Fields = Mapping[str, Field]  # by name


class _Lossy(io.FileIO):
    """A file descriptor whose writes never fail; `lost` is True once it has dropped something."""

    lost = False

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:  # a full disk, a closed pipe, a terminal that is gone
            written = None
        if written is None:
            self.lost = True
            return memoryview(data).nbytes
        return written


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Exit with the status of a command for every way in which the body of the `with` ends.

    Output that cannot be written or encoded never ends the command. An error that refuses the
    command (`SystemExit` with a message, `app.UsageError`) exits with `Status.REFUSED`, any other
    exception with `Status.CRASHED` and its traceback, without waiting for threads.
    """
    keep_streams()
    try:
        yield
    except SystemExit as end:
        sys.exit(status_of(end))
    except app.UsageError as error:
        sys.exit(status_of(SystemExit(f"error: {error}")))
    except KeyboardInterrupt:
        complain("Interrupted.")
        end_now(Status.INTERRUPTED)
    except BaseException:
        complain(traceback.format_exc())
        end_now(Status.CRASHED)


def parse_flags(define: Callable[[], Fields] = dict) -> list[str]:
    """Set the flags from `sys.argv` and return the other arguments, program first.

    A request for help is answered, and the command ends with status 0.

    Args:
        define: defines flags that depend on others, and returns the fields of --config, for hints
            and help.

    Raises:
        SystemExit: a flag is refused; its message names the flag that was meant, if one is near.
    """
    _check_flag_files(sys.argv[1:])
    try:
        fields = define()
    except (flags.Error, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    app.define_help_flags()
    command_name.make_process_name_useful()
    logging.use_absl_handler()
    arguments = _parse(sys.argv, fields)
    _check_debugging()
    if flags.FLAGS.only_check_args:
        raise SystemExit(0)
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.INFO)
    with contextlib.suppress(Exception):  # stderr may be closed
        faulthandler.enable()
    return arguments


def _check_debugging() -> None:
    """Refuse the flags of absl that have no effect here."""
    for name in _DEBUGGING:
        if flags.FLAGS[name].value != flags.FLAGS[name].default:
            raise SystemExit(
                f"error: --{name} has no effect here. Use Python's own: python -m pdb -m MODULE, "
                "python -m cProfile -m MODULE."
            )


def status_of(end: SystemExit) -> int:
    """Return the exit status of a `SystemExit`; its message, if it has one, is printed."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    complain(str(end.code))
    return Status.REFUSED


def complain(message: str) -> None:
    """Print a message to stderr; to stdout where stderr is closed or full."""
    print(message, file=sys.stderr, flush=True)
    if getattr(_raw(sys.stderr), "lost", False):
        print(message, flush=True)


def end_now(status: int) -> NoReturn:
    """Exit without waiting for threads, which an ordinary exit does."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def keep_streams() -> None:
    """Make stdout and stderr drop or escape all output that they cannot write, without an error.

    Descriptors that are closed are opened on /dev/null: else the next file that is opened, a
    checkpoint for instance, would have their number, and C++ libraries would log there.
    """
    closed = []
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            closed.append(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is None or _is_of_interpreter(old, descriptor):
            stream = _lossy(old, descriptor, descriptor in closed)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if handler := logging.get_absl_handler():
        # It holds the stream that was there when absl was imported.
        handler.python_handler.stream = sys.stderr


def _is_of_interpreter(stream: Any, descriptor: int) -> bool:
    """Return whether a stream is the one that Python starts with, not a notebook's or a test's."""
    raw = _raw(stream)
    is_plain = isinstance(raw, io.FileIO) and not isinstance(raw, _Lossy)
    return is_plain and not raw.closed and raw.fileno() == descriptor


def _raw(stream: Any) -> Any:
    """Return the raw file below a stream's buffers; None if there is none."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _lossy(old: Any, descriptor: int, closed: bool) -> io.TextIOWrapper:
    """Return a stream like ``old`` whose writes never fail; ``closed``: nobody reads it."""
    with contextlib.suppress(OSError, AttributeError):
        old.flush()
    raw = _Lossy(descriptor, "w", closefd=False)
    raw.lost = closed
    unbuffered = getattr(old, "write_through", False)  # python -u
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=getattr(old, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=descriptor == 2 or getattr(old, "line_buffering", False),
        write_through=unbuffered,
    )


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for help, before any `--`."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(a.startswith("-") and a.lstrip("-").partition("=")[0] in _HELP for a in own)


def answer_help(fields: Fields | None = None) -> None:
    """Print the help of this command and exit with status 0, if the command line asks for it."""
    if asks_for_help(sys.argv[1:]):
        keep_streams()
        print(help_text(fields or {}))
        raise SystemExit(0)


def help_text(fields: Fields) -> str:
    """Return the docstring of the command, its own flags and the fields of its --config."""
    lines = [inspect.cleandoc(sys.modules["__main__"].__doc__ or "")]
    own = sorted(flags.FLAGS.get_key_flags_for_module(sys.argv[0]), key=lambda flag: flag.name)
    if own:
        lines += ["", "Flags:"]
    for flag in own:
        shown = str(flag.default_as_str or "").strip("'")
        default = f" [{shown}]" if shown and flag.name != "config" else ""
        lines.append(_wrapped(f"--{flag.name}{default}  {flag.help}", "      "))
    if fields:
        lines += ["", "Fields of --config and their defaults at this scale:"]
        for name, (default, text) in fields.items():
            shown = repr(default).replace(", ", ",")
            lines.append(_wrapped(f"{name} [{shown}]  {text}", "      "))
    return "\n".join([*lines, "", "--helpfull lists the flags of all libraries too."])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _check_flag_files(arguments: Sequence[str]) -> None:
    """Refuse flag files that cannot be read, which absl does with a traceback."""
    named = [a.split("=", 1)[1] for a in arguments if re.match(r"--?flagfile=", a)]
    for file in ",".join(named).split(",") if named else ():
        try:
            Path(file.strip()).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            raise SystemExit(
                f"error: --flagfile={file} cannot be read ({error}); give a file of one flag a "
                "line."
            ) from error


def _parse(arguments: Sequence[str], fields: Fields) -> list[str]:
    """Parse the flags; a bad one is refused in words, with the flag that was meant if one is."""
    answer_help(fields)
    try:
        return flags.FLAGS(arguments)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        # absl ends --helpfull and --helpxml with 1.
        raise SystemExit(0) from end
    except flags.UnrecognizedFlagError as error:
        nearest = nearest_flag(error.flagname, flags.FLAGS, fields)
        hint = f" Did you mean --{nearest}?" if nearest else ""
        raise SystemExit(
            f"error: Unknown flag --{error.flagname}.{hint} --help lists the flags."
        ) from error
    except (flags.Error, OSError, ValueError) as error:
        words = re.sub(r"^flag (?=--)", "", str(error)).rstrip(" .")
        raise SystemExit(f"error: {words}. --help lists the flags.") from error


def nearest_flag(given: str, known: Iterable[str], fields: Iterable[str]) -> str | None:
    """Return the flag that somebody who typed ``given`` most likely means; None if none is near.

    Args:
        given: name without dashes before it.
        known: names of flags.
        fields: of --config, whose flags are `config.FIELD`.
    """
    fields = list(fields)
    meant = {name: name for name in known} | {field: f"config.{field}" for field in fields}
    text = given.replace("-", "_").lower().removeprefix("config.")
    # 'no' switches a boolean off, or begins a name.
    for name in (text, text.removeprefix("no").lstrip("_")):
        if name in fields:
            return f"config.{name}"
        if near := difflib.get_close_matches(name, meant, n=1, cutoff=0.75):
            return meant[near[0]]
    return None
