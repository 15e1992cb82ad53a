"""Second moments of networks at initialisation: profiles over depth and factors per layer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from experiments.harness import tables
from experiments.harness.intervals import LEVEL


@dataclasses.dataclass(frozen=True)
class Factor:
    """A predicted factor, and the measured one with its interval."""

    predicted: float
    measured: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        """Return whether the prediction lies in the interval."""
        return self.low <= self.predicted <= self.high

    @property
    def width(self) -> float:
        """Return half the width of the interval, as a fraction of the measured factor."""
        return (self.high - self.low) / 2 / self.measured

    def __str__(self) -> str:
        return (
            f"predicted {self.predicted:.4f}, measured {self.measured:.4f} "
            f"({self.low:.4f} to {self.high:.4f})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Second moments of a network at initialisation, layer by layer."""

    net: str  # the network's name
    arm: str  # its initialisation
    direction: str  # 'forward', E[y²], or 'backward', E[Δy²]
    layers: tuple[str, ...]  # the layers' names ``[L]``
    predicted: np.ndarray  # logs of the moments by theory ``[L]``
    measured: np.ndarray  # logs of the moments of each seed ``[n, L]``

    def interval(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Return the log of the mean over the seeds ``[L]``, and half its interval ``[L]``."""
        return log_normal_mean(self.measured, level)

    def inside(self, level: float) -> np.ndarray:
        """Return whether each layer's prediction lies in its interval ``[L]``."""
        log, half = self.interval(level)
        return np.asarray(np.abs(self.predicted - log) <= half)

    def factor_per_layer(self, stage: Sequence[str], level: float) -> Factor:
        """Return the factor of a layer, a geometric mean from end to end of a stage."""
        ends = [self.layers.index(stage[i]) for i in (0, -1)]
        first, last = ends if self.direction == "forward" else reversed(ends)
        steps = abs(last - first)
        predicted = self.predicted[last] - self.predicted[first]
        log, half = log_normal_mean(self.measured[:, last] - self.measured[:, first], level)
        return Factor(*(float(np.exp(v / steps)) for v in (predicted, log, log - half, log + half)))


def log_normal_mean(logs: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the log of the mean of a log-normal variable, and half its interval.

    A product of many random layers is nearly log-normal, and so skewed that the plain mean of any
    affordable number of draws lies far below its expectation: E = exp(mean + variance / 2).

    Args:
        logs: of n draws ``[n, ...]``.
        level: of the interval.
    """
    n = len(logs)
    variance = logs.var(axis=0, ddof=1)
    error = np.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    half = special.stdtrit(n - 1, (1 + level) / 2) * error
    return logs.mean(axis=0) + variance / 2, half


def markdown(profiles: Sequence[Profile], level: float) -> str:
    """Return a table: how often the theory lies in the intervals, and how wide these are.

    A half-width of × 2 is an interval from half the measured moment to twice the moment.
    """
    n = len(profiles[0].measured)
    heads = ["net", "initialisation", "direction", "layers in the interval"]
    rows = []
    for p in profiles:
        inside, widths = p.inside(level), np.exp(p.interval(level)[1])
        factors = [f"× {np.median(widths):.3g}", f"× {widths.max():.3g}"]
        rows.append([p.net, p.arm, p.direction, f"{inside.sum()} of {len(inside)}", *factors])
    return tables.document(
        f"Layers whose predicted moment lies in the {100 * level:g} % interval of the mean over "
        f"n = {n} seeds, and half the width of these intervals as a factor: × 2 is from half the "
        "measured moment to twice it.",
        tables.markdown([*heads, "median half-width", "largest half-width"], rows),
    )


def means(profiles: Sequence[Profile]) -> list[list[Any]]:
    """Return a table with a row for every layer of every profile; moments as decimal logarithms."""
    numbers = ("predicted", "measured", "low", "high")
    logs = []
    for p in profiles:
        log, half = p.interval()
        logs.append(np.stack([p.predicted, log, log - half, log + half], axis=1))
    return _rows(profiles, logs, [f"log10_{name}" for name in numbers])


def seeds(profiles: Sequence[Profile]) -> list[list[Any]]:
    """Return a table with the moments of every seed, a row for each layer of each profile."""
    columns = [f"log10_seed_{seed}" for seed in range(len(profiles[0].measured))]
    return _rows(profiles, [p.measured.T for p in profiles], columns)


def _rows(
    profiles: Sequence[Profile], logs: Sequence[np.ndarray], columns: Sequence[str]
) -> list[list[Any]]:
    """Return a table with natural logarithms ``[L, columns]`` of profiles as decimal ones."""
    table: list[list[Any]] = [
        ["net", "initialisation", "direction", "layer", "seeds", *columns],
    ]
    for p, of_layers in zip(profiles, logs, strict=True):
        for layer, row in zip(p.layers, of_layers / np.log(10), strict=True):
            known = [p.net, p.arm, p.direction, layer, len(p.measured)]
            table.append([*known, *(f"{value:.4f}" for value in row)])
    return table
