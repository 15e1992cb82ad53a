"""Steps until a net trains, against its depth, with He's initialisation and with Xavier's.

    python -m experiments.takeoff --scale=laptop

The small net with more or fewer layers in its last stage, everything else equal. A run ends at the
first test error below 50 %, or untrained at its last step. Xavier halves both second moments in
every layer, so that the gradients of a net of L layers shrink as 2^(-L/2). If they alone hold it
back, the steps until it trains grow as 2^(L/2) / (L - 2) (docs/findings/late-starts.md, "How late
Xavier starts: theory"), and He's do not depend on the depth.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.harness import (
    claims,
    cli,
    configs,
    convergence,
    intervals,
    tables,
    takeoff_figures,
    until_trained,
)
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, every
from experiments.harness.convergence import HE, XAVIER
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Plan

Points = Mapping[str, Mapping[int, Sequence[float]]]  # arm -> layers -> steps of every seed
_LEVEL = intervals.confidence(3)  # three claims on the same runs are decided by an interval


@dataclasses.dataclass
class Config(convergence.ConvergenceConfig):
    """The comparison and the limits in its claims.

    Attributes:
        depths: numbers of layers, for which there are networks of the name small_<depth>_reduced.
        arch: set for each depth; leave it empty.
        soon: claim: steps within which He trains.
        flat: claim: He's steps grow by less than this factor a layer.
    """

    depths: tuple[int, ...] = (14, 18, 22, 26, 30, 36, 44)
    arch: str = ""
    num_steps: int = 20_000
    soon: int = 1000
    flat: float = 1.1


SCALES = {
    # Digits at 32 pixels: some three hours on two cores, most of them for 36 and 44 layers.
    "laptop": Config(**until_trained.LAPTOP, learning_rate=0.002, **every(25, 25, 500)),
    "cifar10": Config(
        depths=(14, 22, 30),
        **CIFAR10,
        learning_rate=0.002,
        stop_error=0.7,
        **every(100, 100, 500),
        **until_trained.CHECKPOINTS,
    ),
}


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of every depth with both initialisations."""
    configs.check_unset(config, ["initializer", "arch"], "config.depths")
    return until_trained.plan(config, workdir, seeds, _cases(config))


def _cases(config: Config) -> until_trained.Cases:
    return {
        (arm.name, f"layers {depth}"): {**arm.fields, "arch": f"small_{depth}_reduced"}
        for depth in config.depths
        for arm in convergence.arms(config)
    }


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the table, the figure and the claims."""
    curves = until_trained.read(workdir, seeds, _cases(config))
    points = {
        arm: {
            depth: until_trained.steps(config, curves[arm, f"layers {depth}"])
            for depth in config.depths
        }
        for arm in (HE, XAVIER)
    }
    fitted = predicted(points[XAVIER])
    theory = {"theory: 2^(L/2) / (L - 2)": fitted} if fitted else {}
    title = f"{config.dataset}: steps until {config.stop_error:.0%} error, by depth"
    caption, limit = _caption(config, seeds), config.num_steps
    return Report(
        judge(config, points),
        markdown(config, curves, points),
        until_trained.tables(config, curves),
        {"figure": takeoff_figures.takeoff(points, theory, title, caption, limit=limit)},
    )


def predicted(measured: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Return 2^(L/2) / (L - 2) at every depth L, times the factor that fits the steps best.

    Only depths at which every seed trained count for the fit; none: an empty prediction.
    """
    trained = _trained(measured)
    if not trained:
        return {}
    offsets = [np.mean(np.log(steps)) - _log_theory(L) for L, steps in trained.items()]
    return {L: float(np.exp(np.mean(offsets) + _log_theory(L))) for L in measured}


def _trained(measured: Mapping[int, Sequence[float]]) -> dict[int, Sequence[float]]:
    """Return the depths at which every seed trained."""
    return {depth: steps for depth, steps in measured.items() if np.isfinite(steps).all()}


def _log_theory(depth: int) -> float:
    return depth / 2 * math.log(2) - math.log(depth - 2)


@dataclasses.dataclass(frozen=True)
class Growth:
    """The factor by which the steps grow from a layer to the next, with its interval.

    Factors are not numbers where fewer than two depths trained.
    """

    factor: float
    low: float
    high: float
    theory: float  # between the same depths by 2^(L/2) / (L - 2), fitted in the same way
    depths: tuple[int, ...]  # at which every seed trained

    def holds_theory(self) -> bool | None:
        """Return whether the theory's factor lies in the interval.

        None if there is no interval, or one so wide that it contains 1, no growth at all.
        """
        if math.isnan(self.low) or self.low <= min(1.0, self.theory) <= self.theory <= self.high:
            return None
        return self.low <= self.theory <= self.high

    def __str__(self) -> str:
        if math.isnan(self.factor):
            return "no factor: it needs two depths and three runs where every seed trained"
        return (
            f"× {self.factor:.3f} a layer, {100 * _LEVEL:.4g} % interval {self.low:.3f} to "
            f"{self.high:.3f}, over {', '.join(map(str, self.depths))} layers"
        )


def growth(measured: Mapping[int, Sequence[float]]) -> Growth:
    """Fit log(steps) with a line over the depths at which every seed trained."""
    trained = _trained(measured)
    x = np.array([L for L, steps in trained.items() for _ in steps], np.float64)
    y = np.array([np.log(value) for steps in trained.values() for value in steps])
    theory = np.array([_log_theory(L) for L, steps in trained.items() for _ in steps])
    if len(trained) < 2 or len(x) < 3:
        return Growth(math.nan, math.nan, math.nan, math.nan, tuple(trained))
    slope, half = intervals.line(x, y, _LEVEL)
    by_theory, _ = intervals.line(x, theory)
    factor, low, high, of_theory = np.exp([slope, slope - half, slope + half, by_theory]).tolist()
    return Growth(factor, low, high, of_theory, tuple(trained))


def judge(config: Config, points: Points) -> list[Claim]:
    """Judge the cost of depth with each initialisation."""
    he, xavier = points[HE], points[XAVIER]
    pairs = [pair for depth in he for pair in zip(he[depth], xavier[depth], strict=True)]
    ratios = [other / mine for mine, other in pairs if math.isfinite(mine)]
    of_he, of_xavier = growth(he), growth(xavier)
    return [
        Claim(
            f"He trains at every depth in every seed: below {config.stop_error:.0%} error within "
            f"{config.soon:,} steps",
            max(mine for mine, _ in pairs) <= config.soon,
            f"at most {max(mine for mine, _ in pairs):,.0f} steps, n = {len(pairs)} runs",
        ),
        Claim(
            "Xavier needs more steps than He at every depth in every seed",
            all(mine < other for mine, other in pairs),
            f"the least ratio: {min(ratios):.3g}" if ratios else "He trains in no run",
        ),
        Claim(
            f"He's steps grow by a factor below {config.flat:g} a layer",
            claims.is_below(config.flat, of_he.low, of_he.high),
            f"{of_he}",
        ),
        Claim(
            f"Xavier's steps grow with every layer by more than He's limit, {config.flat:g}",
            claims.is_below(-config.flat, -of_xavier.high, -of_xavier.low),
            f"{of_xavier}",
        ),
        Claim(
            "Xavier's steps grow as 2^(L/2) / (L - 2): that factor lies in the interval",
            of_xavier.holds_theory(),
            f"{of_xavier}"
            if math.isnan(of_xavier.theory)
            else f"theory × {of_xavier.theory:.3f} a layer; measured {of_xavier}",
        ),
    ]


def markdown(config: Config, curves: until_trained.Curves, points: Points) -> str:
    """Return the table: a row for each depth, with every seed."""
    rows = []
    for depth in points[HE]:
        ratio = float(np.median(points[XAVIER][depth])) / float(np.median(points[HE][depth]))
        cells = (until_trained.cell(config, curves[a, f"layers {depth}"]) for a in (HE, XAVIER))
        rows.append([str(depth), *cells, f"{ratio:.3g}" if math.isfinite(ratio) else "–"])
    heads = ("layers", HE, XAVIER, "median Xavier / median He")
    return tables.document(
        until_trained.explain(config, f"{config.num_steps:,} steps"), tables.markdown(heads, rows)
    )


def _caption(config: Config, seeds: Sequence[int]) -> str:
    frozen = f", frozen: {config.frozen}" if config.frozen else ""
    return (
        f"{config.rectifier}; SGD {config.learning_rate:g}, momentum {config.momentum:g}, batch "
        f"{config.batch_size}{frozen}; {config.he_initializer} against "
        f"{config.xavier_initializer}, {config.mode};\n"
        f"{intervals.seeds(seeds)} at each depth"
    )


EXPERIMENT = Experiment("takeoff", SCALES, report, plan, default_seeds=5)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
