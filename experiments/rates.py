"""Which learning rates train the 30-layer net, with He's initialisation and with Xavier's.

    python -m experiments.rates --scale=laptop

Everything else is as in `convergence_30`. A run ends at the first test error below 50 %, or
untrained at its last step: ``num_steps``, or earlier at high rates, when rate × steps reaches
``rate_times_steps``. Where Xavier's net trains, it does so at a rate × steps of 2 to 12
(docs/findings/late-starts.md).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.harness import cli, configs, convergence, tables, until_trained
from experiments.harness.claims import Claim
from experiments.harness.configs import every
from experiments.harness.convergence import HE, XAVIER
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Plan


@dataclasses.dataclass
class Config(convergence.ConvergenceConfig):
    """The comparison.

    Attributes:
        rates: the learning rates.
        learning_rate: set for each run; leave it at 0.
        rate_times_steps: rate × steps at which a run ends, but between 1,000 and num_steps steps.
    """

    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1)
    learning_rate: float = 0.0
    rate_times_steps: float = 20.0


SCALES = {
    # Digits at 32 pixels: about four hours on two cores.
    "laptop": Config(
        **until_trained.LAPTOP, arch="small_30_reduced", num_steps=6000, **every(50, 50, 500)
    )
}


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of every rate with both initialisations."""
    if not all(rate > 0 for rate in config.rates):
        raise ValueError(f"config.rates is {config.rates}, expected rates above 0.")
    configs.check_unset(config, ["initializer", "learning_rate"], "config.rates")
    return until_trained.plan(config, workdir, seeds, _cases(config))


def _cases(config: Config) -> until_trained.Cases:
    return {
        (arm.name, f"rate {rate:g}"): {
            **arm.fields,
            "learning_rate": rate,
            "num_steps": last_step(config, rate),
        }
        for rate in config.rates
        for arm in convergence.arms(config)
    }


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the table and the claims."""
    curves = until_trained.read(workdir, seeds, _cases(config))
    needed = {case: until_trained.steps(config, of_case) for case, of_case in curves.items()}
    written = until_trained.tables(config, curves)
    return Report(judge(config, needed), markdown(config, curves), written)


def last_step(config: Config, rate: float) -> int:
    """Return the step at which an untrained run of a rate ends."""
    return min(config.num_steps, max(1000, round(config.rate_times_steps / rate)))


def judge(config: Config, needed: Mapping[until_trained.Case, Sequence[float]]) -> list[Claim]:
    """Judge the claims on any choice of the rate.

    A run of Xavier that ends untrained before He's slowest has trained does not decide the first.
    """
    slowest, rate = min((max(steps), rate) for (arm, rate), steps in needed.items() if arm == HE)
    seen = min(last_step(config, rate) for rate in config.rates)
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
            None if seen < slowest < first else slowest < first,
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
    rows = []
    for rate in config.rates:
        cells = (until_trained.cell(config, curves[a, f"rate {rate:g}"]) for a in (HE, XAVIER))
        rows.append([f"{rate:g}", *cells, f"{last_step(config, rate):,}"])
    return tables.document(
        until_trained.explain(config, "the last step of its rate, in the last column"),
        tables.markdown(("rate", HE, XAVIER, "last step"), rows),
    )


EXPERIMENT = Experiment("rates", SCALES, report, plan)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
