"""One of several processes that `test_processes` starts; it prints a line of JSON at its end."""

import json
import os
import signal
import sys
from pathlib import Path

import jax

from prelu_jax import arch
from prelu_jax.runs import processes, recorder, trainer
from prelu_jax.runs.folder import RunFolder
from prelu_jax.training import step
from prelu_jax.training.parallel import Parallel
from tests.training.conftest import TINY, interrupt_at, make_batch, make_state, tiny_config


def train(folder, stop=0, **fields):
    """The status at the end of a run, or None if it was stopped at a step."""
    try:
        config = tiny_config(**{"rectifier": "prelu", **fields})
        return trainer.train(config, Path(folder), interrupt_at(stop))
    except KeyboardInterrupt:
        return None


def logged(folder):
    """Return how many records a logger of this process got, and how often it was closed."""
    counts = {"written": 0, "closed": 0}

    class Counter:
        def write(self, step, metrics):
            counts["written"] += 1

        def close(self):
            counts["closed"] += 1

    config = tiny_config(rectifier="prelu")
    trainer.train(config, Path(folder), loggers=[Counter()])
    return counts


def preempted(folder, at=0, **fields):
    """Train until the scheduler asks the second process to stop, at a step; return the step."""

    def progress(step, error):
        if step == at and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with processes.preemption() as asked:
        try:
            return trainer.train(tiny_config(**fields), Path(folder), progress, stop=asked)
        except recorder.StoppedError as stopped:
            return str(stopped)


def replicas(steps):
    """The parameters' bytes, hashed, in every process after some steps on shares of batches."""
    parallel, state = Parallel(), make_state()
    for i in range(steps):
        whole = make_batch(16, seed=i)
        rows = slice(8 * parallel.share.index, 8 * (parallel.share.index + 1))
        part = {key: value[rows] for key, value in whole.items()}
        state, _ = parallel.train_step(state, parallel.split(part))
    leaves = [leaf.tobytes().hex() for leaf in jax.tree.leaves(jax.device_get(state.params))]
    return len(set(map(str, processes.all_gather_json(leaves))))


def without_mean(steps):
    """`replicas`, of a step that forgets to take the mean of the gradients."""
    step.jax.lax.pmean = lambda tree, axis_name: tree
    return replicas(steps)


def differing(folder):
    """Return the error of processes with different configurations."""
    try:
        train(folder, seed=jax.process_index(), learning_rate=0.01 + jax.process_index())
    except ValueError as error:
        return str(error)


def unreadable(folder):
    """Return every process's error for a run whose folder process 0 cannot read."""
    if processes.is_first():
        RunFolder(Path(folder)).claim(tiny_config(rectifier="prelu"))
        Path(folder, "checkpoints").mkdir(parents=True)
        Path(folder, "checkpoints/4").mkdir()
    try:
        train(folder)
    except OSError as error:
        return str(error)


def losing():
    """Print the error that process 0 gets when process 1 is killed, and how it is classified."""
    if jax.process_index() == 1:
        processes.all_gather_json("here")
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            processes.all_gather_json("here")
    except Exception as error:
        print(json.dumps([processes.is_of_lost_process(error), str(error)]))
        raise  # else it would wait for the second at its end


def failing(folder):
    """Nothing: the second process fails in its third batch."""

    def progress(at, error):
        if jax.process_index() == 1:
            raise RuntimeError("as if a disk had failed")

    trainer.train(tiny_config(num_steps=1000), Path(folder), progress)


if __name__ == "__main__":
    address, count, index, devices, scenario, arguments = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    if not jax.config.jax_enable_x64:  # as in tests/conftest.py
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    arch.REGISTRY["tiny"] = TINY
    with processes.exit_all_on_failure():
        processes.join(address, int(count), int(index))
        found = globals()[scenario](**json.loads(arguments))
        print(json.dumps(found))
