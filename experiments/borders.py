"""Dense test of He et al. 2015 (§3) against crops of the same windows, for model A.

    python -m experiments.borders --scale=laptop --config.runs=runs/large_models_laptop

The dense test computes one map of a whole image: at the edge of a window it has the rest of the
image, where a crop has zeros. A network that relies on the zeros errs more in the dense test, and a
comparison of the two tests (Tables 5 and 6) is then a comparison of padding.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import large_models
from experiments.harness import claims, cli, configs, errors, intervals, tables, testing
from experiments.harness.claims import Claim
from experiments.harness.errors import ByTest, Pair
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Arm, Plan
from experiments.harness.testing import crops_test_name, dense_test_name
from experiments.large_models import A_RELU, A


@dataclasses.dataclass
class Config(large_models.Config):
    """The runs, their tests and the limit in the claims.

    Attributes:
        runs: work folder of large_models, whose runs are taken; empty for none.
        apart: claim: the dense test errs at most this much more than the crops, on average.
    """

    runs: str = ""
    apart: float = 0.03


SCALES = {
    scale: Config(**dataclasses.asdict(config)) for scale, config in large_models.SCALES.items()
}


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of models A."""
    large_models.check(config)
    configs.check_fractions(config, "apart")
    runs = large_models.folder_of_runs(config.runs, workdir)
    return testing.plan(config, runs, seeds, _arms(config), _tests(config))


def _arms(config: Config) -> list[Arm]:
    return [arm for arm in large_models.arms(config) if arm.name in (A_RELU, A)]


def _tests(config: Config) -> list[str]:
    return [name(side) for side in config.scales for name in (dense_test_name, crops_test_name)]


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the table and the claims."""
    runs = large_models.folder_of_runs(config.runs, workdir)
    tests = _tests(config)
    by_model = errors.by_test(testing.score_all(config, runs, seeds, _arms(config), tests), tests)
    rows = errors.rows(by_model, seeds)
    return Report(judge(config, by_model), markdown(config, by_model), {"errors.csv": rows})


def judge(config: Config, by_model: ByTest) -> list[Claim]:
    """Judge at every scale whether the dense test errs more than its crops do."""
    return [
        claims.below_zero_claim(
            f"{model}, s = {side}: the dense test errs at most {100 * config.apart:g} points more "
            "than crops of the same windows",
            [more - config.apart for more in _more(by_model[model], side)],
            " points",
            100,
            f"difference less {100 * config.apart:g} points",
            claims=large_models.number_of_claims(config.scales),
        )
        for model in by_model
        for side in config.scales
    ]


def _more(of_model: Mapping[str, Sequence[Pair]], side: int) -> list[float]:
    """Return how much more the dense test errs, for every seed."""
    pairs = zip(of_model[dense_test_name(side)], of_model[crops_test_name(side)], strict=True)
    return [dense[0] - crops[0] for dense, crops in pairs]


def markdown(config: Config, by_model: ByTest) -> str:
    """Return the table: a row for each scale."""
    heads = [f"{model}: {test}" for model in by_model for test in ("crops", "densely")]
    tests = (crops_test_name, dense_test_name)
    rows = [
        [str(side), *(errors.cell(by_model[m][name(side)]) for m in by_model for name in tests)]
        for side in config.scales
    ]
    return tables.document(
        f"Top-1 / top-5 error, %. {intervals.heading(len(next(iter(by_model[A].values()))))} of "
        f"{config.dataset}. A run that diverged counts 100 %.",
        tables.markdown(["shorter side", *heads], rows),
    )


EXPERIMENT = Experiment("borders", SCALES, report, plan, default_seeds=5)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
