"""The experiment that faults are injected into, with a reader that fails on demand.

    python -m tests.faults.victim --scale=laptop ...

If $FAULT_FILE exists and holds 'stall INDEX', the reading threads in the process with that index
hang; with 'corrupt INDEX', they read records that are not images.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax

from experiments import convergence_30
from experiments.harness import cli
from prelu_jax.data import pipeline, sources

_whole = pipeline._labelled


def _faulty(split: sources.Split, index: int) -> sources.Record:
    record: dict[str, Any] = _whole(split, index)
    fault = Path(os.environ["FAULT_FILE"])
    kind, _, process = fault.read_text().partition(" ") if fault.exists() else ("", "", "-1")
    if int(process) != jax.process_index():
        return record
    if kind == "stall":
        time.sleep(3600)
    return {**record, "image": b"no image"}


if __name__ == "__main__":
    pipeline._labelled = _faulty
    sys.argv[0] = convergence_30.__file__
    cli.main(dataclasses.replace(convergence_30.EXPERIMENT, name="faults"))
