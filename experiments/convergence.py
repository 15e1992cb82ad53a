"""He against Xavier on one network: what Figures 2 and 3 of He et al. 2015 have in common."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import common, figures, results
from experiments.results import Claim, Curve
from prelu_jax.training.config import TrainConfig

HE, XAVIER = "He", "Xavier"

# Inputs of the reduced nets. Eq. 14 keeps the gradient; forward it leaves 2 c_1 / d_L of the second
# moment (by Eq. 9; layer 1 has no rectifier before it): 2 · 3 / 32 in both nets, which inputs of
# this root mean square, √(16/3), undo.
PIXEL_RMS = 2.309
NEVER = 1_000_000  # evaluations that no run has: the learning rate stays

Judge = Callable[[Sequence[Curve], Sequence[Curve]], list[Claim]]  # (He's, Xavier's)


@dataclasses.dataclass
class ConvergenceConfig(TrainConfig):
    """A `TrainConfig` whose initialiser is that of the arm."""

    he_initializer: str = "he_normal"  # Eq. 14: variance 2 / fan_out
    xavier_initializer: str = "xavier_normal"  # as the figures' legends: variance 1 / fan_out
    initializer: str = ""  # set for each arm; leave it empty


def run(
    config: ConvergenceConfig,
    workdir: Path,
    seeds: int,
    title: str,
    judge: Judge,
) -> list[Claim]:
    """Trains both arms over the seeds, writes the figure, the table and the claims.

    Args:
        config: of every run but for its seed and initialiser.
        workdir: holds a folder for each run, then figure.png, figure.pdf, curves.csv.
        seeds: how many, from ``config.seed`` on.
        title: of the figure.
        judge: what the figure claims.
    """
    common.check_unset(config, ["initializer"], "config.he_initializer, config.xavier_initializer")
    arms = {HE: config.he_initializer, XAVIER: config.xavier_initializer}
    runs = {
        workdir / arm.lower() / f"seed_{seed}": (arm, _of_arm(config, initializer, seed))
        for seed in range(config.seed, config.seed + seeds)
        for arm, initializer in arms.items()
    }
    common.train_all({k: (f"{arm:6} seed {c.seed}", c) for k, (arm, c) in runs.items()})

    curves = [results.read_curve(folder, arm) for folder, (arm, _) in runs.items()]
    claims = judge(*([c for c in curves if c.arm == arm] for arm in arms))
    written = figures.error_curves(curves, title, _caption(config, seeds), workdir / "figure")
    table = workdir / "curves.csv"
    results.write_csv(curves, table)
    print("\nWritten:", *written, table, *runs, sep="\n  ")
    return claims


def _of_arm(config: ConvergenceConfig, initializer: str, seed: int) -> TrainConfig:
    return common.train_config(config, initializer=initializer, seed=seed)


def _caption(config: ConvergenceConfig, seeds: int) -> str:
    last = config.seed + seeds - 1
    frozen = f"; frozen: {config.frozen}" if config.frozen else ""
    return (
        f"{config.arch}, {config.rectifier}, {config.dataset}; SGD {config.learning_rate:g}, "
        f"momentum {config.momentum:g}, batch {config.batch_size}; {config.he_initializer} against "
        f"{config.xavier_initializer}, {config.mode};\npadding {config.padding}{frozen}; seeds "
        f"{config.seed} to {last}; thin: each seed, bold: median"
    )
