"""Errors of tested runs, in tables and claims."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import intervals
from experiments.harness.claims import Claim
from experiments.harness.testing import TEN_VIEW, Scores
from prelu_jax import evaluation
from prelu_jax.training.config import TrainConfig

_FIVE_VIEW = "5-view"

Pair = tuple[float, float]  # top-1 and top-5 error
ByTest = Mapping[str, Mapping[str, Sequence[Pair]]]  # arm -> test -> errors of every seed


def errors(scores: Scores | None, test: str) -> Pair:
    """Return the top-1 and top-5 error; with five classes or fewer the latter is not a number.

    A run that diverged has no scores and is wrong everywhere.
    """
    if scores is None:
        return 1.0, 1.0
    predicted, labels = scores.by_test[test], scores.labels
    top_5 = evaluation.top_error(predicted, labels, 5) if predicted.shape[1] > 5 else math.nan
    return evaluation.top_error(predicted, labels, 1), top_5


def by_test(scores: Mapping[str, Sequence[Scores | None]], tests: Sequence[str]) -> ByTest:
    """Return the errors of every arm in every test from the scores of its seeds."""
    return {
        arm: {test: [errors(one, test) for one in of_seeds] for test in tests}
        for arm, of_seeds in scores.items()
    }


def top_1(scores: Scores | None, test: str) -> float:
    """Return the top-1 error of a run for a figure; not a number for a run that diverged."""
    return math.nan if scores is None else errors(scores, test)[0]


def learned(top_1: Mapping[str, Sequence[float]], at_most: float, config: TrainConfig) -> Claim:
    """Return the claim that every run learns, by its top-1 error in ten views or five."""
    views = label(TEN_VIEW, config)
    return Claim(
        f"Every run learns: {views} top-1 error at most {at_most:.0%} in every seed",
        max(error for of_arm in top_1.values() for error in of_arm) <= at_most,
        "\n      ".join(f"{arm}: {intervals.summary(e, ' %', 100)}" for arm, e in top_1.items()),
    )


def label(test: str, config: TrainConfig) -> str:
    """Return the label of a test: ten views are five where training mirrors no image."""
    return _FIVE_VIEW if test == TEN_VIEW and not config.flip else test


def beside_paper(config: TrainConfig) -> str:
    """Return the label of the paper's test in ten views in a table beside that of the runs."""
    views = label(TEN_VIEW, config)
    return views if views == TEN_VIEW else f"{TEN_VIEW} in the paper, {views} here"


def unmirrored(config: TrainConfig) -> str:
    """Return the sentence of a table whose tests mirror no image; empty if they mirror."""
    return "" if config.flip else " As in training, no image is mirrored."


def cell(of_seeds: Sequence[Pair]) -> str:
    """Return a cell of a table: top-1 / top-5 error in %; – for an error that there is not."""
    by_k = zip(*of_seeds, strict=True)
    return " / ".join("–" if np.isnan(of_k).any() else intervals.short(of_k, 100) for of_k in by_k)


def rows(
    errors: Mapping[str, Mapping[str, Sequence[Pair]]], seeds: Sequence[int | str]
) -> list[list[Any]]:
    """Return a table with a row for every run and test, the heads first.

    Args:
        errors: arm -> test -> top-1 and top-5 error of each seed; a cell is empty where an error
            is not a number.
        seeds: in the order of the errors.
    """
    table: list[list[Any]] = [["arm", "test", "seed", "top_1_error", "top_5_error"]]
    for arm, by_test in errors.items():
        for test, of_seeds in by_test.items():
            for seed, pair in zip(seeds, of_seeds, strict=True):
                cells = ("" if math.isnan(error) else error for error in pair)
                table.append([arm, test, seed, *cells])
    return table
