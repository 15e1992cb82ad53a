"""Which learning rates train the 30-layer net, from He's start and from Xavier's.

    python -m experiments.rates --scale=laptop

Everything else is as in `convergence_30`. A run ends at the first test error below 50 %, or
untrained at its last step: ``num_steps``, or earlier at high rates, when rate × steps reaches
``rate_times_steps``. Xavier's net trains at a rate × steps of 3 to 12 (docs/findings.md).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import common, convergence, until_trained
from experiments.convergence import HE, XAVIER
from experiments.results import Claim
from prelu_jax import files


@dataclasses.dataclass
class Config(convergence.ConvergenceConfig):
    """The comparison."""

    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1)
    learning_rate: float = 0.0  # set for each run; leave it at 0
    rate_times_steps: float = 20.0  # of every run, but between 1,000 and num_steps steps


def laptop() -> Config:
    """Digits at 32 pixels: about two hours on two cores."""
    return Config(
        **until_trained.LAPTOP,
        arch="small_30_reduced",
        num_steps=6000,
        log_every=50,
        eval_every=50,
    )


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Train at every rate from both starts, write the table, and judge the claims."""
    common.check_unset(config, ["initializer", "learning_rate"], "config.rates")
    initializers = {HE: config.he_initializer, XAVIER: config.xavier_initializer}
    cases = {
        (arm, f"rate {rate:g}"): {
            "initializer": initializer,
            "learning_rate": rate,
            "num_steps": last_step(config, rate),
        }
        for rate in config.rates
        for arm, initializer in initializers.items()
    }
    curves = until_trained.train(config, workdir, seeds, cases)
    text = markdown(config, curves)
    files.write_text(workdir / "table.md", text)
    tables = ("table.md", "steps.csv", "curves.csv")
    print(f"\n{text}\nWritten:", *map(workdir.joinpath, tables), sep="\n  ")
    return judge({case: until_trained.steps(config, of_case) for case, of_case in curves.items()})


def last_step(config: Config, rate: float) -> int:
    """Return the step at which an untrained run of a rate ends."""
    return min(config.num_steps, max(1000, round(config.rate_times_steps / rate)))


def judge(needed: Mapping[until_trained.Case, Sequence[float]]) -> list[Claim]:
    """Judge the claims on any choice of the rate."""
    slowest, rate = min((max(steps), rate) for (arm, rate), steps in needed.items() if arm == HE)
    first = min(min(steps) for (arm, _), steps in needed.items() if arm == XAVIER)
    pairs = [
        pair
        for (arm, rate), of_he in needed.items()
        if arm == HE
        for pair in zip(of_he, needed[XAVIER, rate], strict=True)
    ]
    return [
        Claim(
            "At its best rate He trains in every seed, earlier than any run of Xavier at any rate",
            slowest < first,
            f"He at {rate}: {_shown(slowest)} in the slowest seed; Xavier's first: {_shown(first)}",
        ),
        Claim(
            "At no rate does Xavier train earlier than He of the same seed",
            all(he <= xavier for he, xavier in pairs),
            f"earlier in {sum(xavier < he for he, xavier in pairs)} of {len(pairs)} pairs; both "
            f"train in {sum(math.isfinite(he + xavier) for he, xavier in pairs)}",
        ),
    ]


def _shown(steps: float) -> str:
    return f"{steps:,.0f} steps" if math.isfinite(steps) else "not trained"


def markdown(config: Config, curves: until_trained.Curves) -> str:
    """Return the table: a row for each rate, with every seed."""
    lines = [
        f"{until_trained.explain(config)} At high rates a run ends earlier, in the last column.",
        "",
        "| rate | He | Xavier | last step |",
        "|---|---|---|---|",
    ]
    for rate in config.rates:
        cells = (
            until_trained.cell(config, curves[arm, f"rate {rate:g}"]) for arm in (HE, XAVIER)
        )  # fmt: skip
        lines.append(f"| {rate:g} | {' | '.join(cells)} | {last_step(config, rate):,} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    common.main("rates", {"laptop": laptop}, run)
