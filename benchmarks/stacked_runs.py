"""What runs of a small network cost as one program, beside the same runs one after another."""

from typing import Any

import jax
import numpy as np

from benchmarks.timing import Ratio, Result, Row, device, samples
from benchmarks.training import Case
from prelu_jax import arch
from prelu_jax.training import stack, state, step

NET = "small_30_reduced"
# By backend: (images of a batch, numbers of runs). On a CPU a stack is slower.
CASES = {"gpu": ((64, (2, 4, 16)), (128, (2, 4, 16))), "cpu": ((16, (2, 4)),)}
GOAL = {16: 0.25}  # number of runs -> what a stack may take of their time, on a GPU


def run(net: str = NET, cases: Any = None, steps: int = 10, repeats: int = 7) -> Result:
    """Time of a step of every run: two initialisers, each of half as many seeds and batches."""
    cases = cases or CASES[device()]
    goal = GOAL if device() == "gpu" else {}
    return Result.joined(
        _of_batch(arch.get(net), batch_size, numbers, steps, repeats, goal)
        for batch_size, numbers in cases
    )


def _of_batch(
    net: arch.Arch,
    batch_size: int,
    numbers: tuple[int, ...],
    steps: int,
    repeats: int,
    goal: dict[int, float],
) -> Result:
    case = Case(net, batch_size, "relu")

    def state_of(seed: int, initializer: str) -> state.TrainState:
        drawn = case.state(seed, initializer)
        return drawn.replace(model=drawn.model.uninitialized(), flip=True)

    def batches(count: int) -> dict[str, np.ndarray]:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *map(case.batch, range(count)))

    def taking(a_step: Any, now: Any, batch: Any) -> Any:
        def program() -> Any:
            after = now
            for _ in range(steps):  # queued, as in training
                after, _ = a_step(after, batch)
            return after

        return program

    programs = {"1 run": taking(jax.jit(step.train_step), state_of(0, "he_normal"), case.batch())}
    for n in numbers:
        states = [state_of(i // 2, ("he_normal", "xavier_normal")[i % 2]) for i in range(n)]
        stacked = stack.together(states, [i // 2 for i in range(n)])
        programs[f"{n} runs"] = taking(jax.jit(stack.train_step), stacked, batches(n // 2))
    taken = samples(programs, repeats)
    where = f"{net.name}, batch {batch_size}"
    rows = {
        what: Row(where, what, "ms a step", [1e3 * s / steps for s in seconds])
        for what, seconds in taken.items()
    }
    parts = {n: rows[f"{n} runs"].median / n / rows["1 run"].median for n in numbers}
    return Result(
        list(rows.values()),
        [
            Ratio(f"time: {n} runs stacked / {n} separate", where, part, goal[n])
            for n, part in parts.items()
            if n in goal
        ],
        [
            f"{where}: {n} runs stacked take {part:.2f} of the time of {n} separate"
            for n, part in parts.items()
            if n not in goal
        ],
    )
