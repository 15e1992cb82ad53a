"""The experiment that faults are injected into; its reading can be made to fail from outside.

    python -m tests.faults.victim --scale=laptop ...

Where $FAULT_FILE is there and holds 'stall INDEX', the threads that read in the process of that
index do not come back; with 'corrupt INDEX', what they read there is no image.
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
