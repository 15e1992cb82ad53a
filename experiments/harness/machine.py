"""Settings of JAX and the C library for the machine that experiments run on."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import logging

from prelu_jax.runs import processes
from prelu_jax.training.parallel import Parallel

_EXAMPLES_A_CORE = 16  # of a batch, at least
_THREADS_A_CORE = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MOST = -1, -3, 2**31 - 1  # malloc.h; bytes


def devices(batch_size: int) -> Parallel:
    """Return all devices that a batch can feed; compiled programs are kept between commands."""
    cache_compilations()
    keep_freed_memory()
    use_every_core(batch_size)
    return Parallel()


def use_every_core(batch_size: int) -> None:
    """On a CPU, make a device of every core that a batch can feed.

    Convolutions of a few channels gain little from threads: the reduced model C takes 1.2 times as
    many steps a second on two devices as on one of two threads, others as many or a few more.
    Accelerators, and a number of devices that the user has chosen, are left alone.
    """
    # XLA runs all devices of a CPU on one pool of threads, by default one for each core, and a
    # thread that waits for another device's part of a sum stays taken: with two devices on two
    # cores, a queue of steps may wait for ever. NPROC is read when JAX first looks for devices.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("NPROC", str(_THREADS_A_CORE * (cores or 1)))
    chosen = os.environ.get("XLA_FLAGS", "") + " ".join(os.environ)
    if "host_platform_device_count" in chosen or "JAX_NUM_CPU_DEVICES" in chosen:
        return
    uncompiled: bool = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if processes.is_multiprocess() or uncompiled:
        return  # one a process; step by step, one is faster than two
    fitting = range(1, min(cores or 1, batch_size // _EXAMPLES_A_CORE) + 1)
    devices = max((n for n in fitting if batch_size % n == 0), default=1)
    with contextlib.suppress(RuntimeError):  # JAX has its devices already, as in a notebook
        jax.config.update("jax_num_cpu_devices", devices)


def keep_freed_memory() -> None:
    """On Linux, keep the memory that a step frees in the process, for the next step.

    By default glibc returns blocks above 32 MB at once, and the kernel clears every page of them
    again in the next step: a third of a 30-layer step of 64 images on one CPU device.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another library of C than glibc
            libc = ctypes.CDLL("libc.so.6")
            # Before 2.35 it refuses; the second alone would fix the first where it is, lower.
            if libc.mallopt(_M_MMAP_THRESHOLD, _MOST):
                libc.mallopt(_M_TRIM_THRESHOLD, _MOST)


def cache_compilations() -> None:
    """Keep compiled programs between commands, unless the user has chosen a place.

    Nothing is kept where there is no home folder, or one that cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if folder := _cache_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A run starts with dozens of small programs, which together take seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _cache_folder() -> Path | None:
    """Return the folder of compiled programs, made; None where there can be none."""
    try:
        chosen = os.environ.get("XDG_CACHE_HOME")
        if not chosen and not Path.home().is_dir():  # as a container's user may have it
            return None
        folder = Path(chosen or Path.home() / ".cache") / "prelu_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: neither $HOME nor an entry in passwd
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def quiet_orbax() -> None:
    """Silence Orbax's tracebacks: a run reports in a line whatever it cannot write or read."""
    logging.get_absl_logger().addFilter(lambda line: "/orbax/" not in line.pathname)

    def hook(unraisable: Any) -> None:
        # TensorStore reports a damaged checkpoint to an event loop that Orbax has closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
