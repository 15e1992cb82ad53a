"""Errors of missing optional dependencies: they name the extra of pip that installs them."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator


def require(what: str, extra: str, *modules: str) -> None:
    """Check that modules of other packages are installed, without importing them.

    Args:
        what: needs them, the subject of the error.
        extra: name of the extra that installs them.
        *modules: their top-level names.

    Raises:
        ImportError: some are not installed.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ImportError(_message(what, extra, missing))


@contextlib.contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
    """Name the extra if an import in the body of the `with` does not find another package.

    Args:
        what: contains the imports, the subject of the error.
        extra: name of the extra that installs the packages.

    Raises:
        ImportError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "prelu_jax"):
            raise
        raise ImportError(_message(what, extra, [package])) from error


def check_command(command: str, extra: str, *modules: str) -> None:
    """End a command in whose environment modules are missing, with one line instead of a traceback.

    Args:
        command: the name in the error.
        extra: name of the extra that installs them.
        *modules: their top-level names.

    Raises:
        SystemExit: some are not installed; the status is `entry.Status.REFUSED`.
    """
    try:
        require(command, extra, *modules)
    except ImportError as error:
        from prelu_jax import entry

        raise SystemExit(entry.status_of(SystemExit(f"error: {error}"))) from error


def is_starting_command() -> bool:
    """Return whether `python -m` is importing the packages that contain the command's module."""
    return sys.argv[:1] == ["-m"]  # by Python's documentation, until the module is found


def _message(what: str, extra: str, missing: list[str]) -> str:
    are = "is" if len(missing) == 1 else "are"
    return (
        f"{what} needs {', '.join(missing)}, which {are} not installed: "
        f"pip install 'prelu_jax[{extra}]'"
    )
