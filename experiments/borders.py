"""The dense test of He et al. 2015 (§3) beside crops of the same windows, with models A.

    python -m experiments.borders --scale=laptop --config.runs=runs/large_models_laptop

The dense test computes one map of a whole image: at the edge of a window it has the rest of the
image, where a crop has zeros. A network that relies on the zeros errs more in the dense test, and a
comparison of the two tests (Tables 5 and 6) is then a comparison of padding.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import common, large_models, results, testing
from experiments.large_models import A_RELU, A
from experiments.results import Claim
from prelu_jax import files

Errors = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]  # model -> test -> of each seed


@dataclasses.dataclass
class Config(large_models.Config):
    """The runs, their tests and the limit in the claims."""

    runs: str = ""  # work folder of large_models, whose runs are taken; empty for none
    apart: float = 0.03  # the dense test errs at most this much more than the crops, on average


def of_scale(scale: str) -> Config:
    """The configuration of `experiments.large_models`."""
    return Config(**dataclasses.asdict(large_models.SCALES[scale]()))


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Train the runs that are missing, test all of them both ways, and write the table."""
    common.check_fractions(config, "apart")
    runs = large_models.folder_of_runs(config.runs, workdir)
    which = [(m, seed) for seed in range(config.seed, config.seed + seeds) for m in (A_RELU, A)]
    tests = [test(side) for side in config.scales for test in (testing.at, testing.crops_at)]
    errors: dict[str, dict[str, list[tuple[float, float]]]] = {
        model: {test: [] for test in tests} for model in (A_RELU, A)
    }
    for (model, _), tested in large_models.train_and_test(config, which, runs, tests).items():
        for test in tests:
            errors[model][test].append(testing.errors(tested, test))
    workdir.mkdir(parents=True, exist_ok=True)
    text = markdown(config, errors)
    table, rows = workdir / "table.md", workdir / "errors.csv"
    files.write_text(table, text)
    testing.write_csv(errors, range(config.seed, config.seed + seeds), rows)
    print(f"\n{text}\nWritten:", table, rows, sep="\n  ")
    return judge(config, errors)


def judge(config: Config, errors: Errors) -> list[Claim]:
    """Judge at every scale whether the dense test errs more than its crops do."""
    return [
        results.below_zero_claim(
            f"{model}, s = {side}: the dense test errs at most {100 * config.apart:g} points more "
            "than crops of the same windows",
            [more - config.apart for more in _more(errors[model], side)],
            " points",
            100,
            f"difference less {100 * config.apart:g} points",
            claims=len(errors) * len(config.scales),
        )
        for model in errors
        for side in config.scales
    ]


def _more(of_model: Mapping[str, Sequence[tuple[float, float]]], side: int) -> list[float]:
    """Return how much more the dense test errs, of every seed."""
    pairs = zip(of_model[testing.at(side)], of_model[testing.crops_at(side)], strict=True)
    return [dense[0] - crops[0] for dense, crops in pairs]


def markdown(config: Config, errors: Errors) -> str:
    """Return the table: a row for each scale."""
    heads = [f"{model}: {test}" for model in errors for test in ("crops", "densely")]
    lines = [
        f"Top-1 / top-5 error, %. {results.heading(len(next(iter(errors[A].values()))))} of "
        f"{config.dataset}. A run that diverged counts 100 %.",
        "",
        f"| shorter side | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for side in config.scales:
        cells = [
            testing.cell(errors[model][test(side)])
            for model in errors
            for test in (testing.crops_at, testing.at)
        ]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    scales = {scale: functools.partial(of_scale, scale) for scale in large_models.SCALES}
    common.main("borders", scales, run, default_seeds=5)
