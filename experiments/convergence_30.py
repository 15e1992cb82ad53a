"""He et al. 2015, Figure 3: a 30-layer rectifier network, He's initialisation against Xavier's.

    python -m experiments.convergence_30 --scale=laptop

27 convolutional and 3 fully connected layers, ReLU, Gaussian weights of variance 2 / fan_out
(Eq. 14) against 1 / fan_out, the variance in the figure's legend; everything else equal.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from experiments.harness import claims, cli, configs, convergence, intervals
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, DIGITS, FASHION_MNIST, IMAGENET
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Plan
from experiments.harness.results import Curve


@dataclasses.dataclass
class Config(convergence.ConvergenceConfig):
    """The comparison and the limits in its claims."""

    converged: float = 0.10  # He's final error is at most this
    stalled: float = 0.80  # Xavier's error is never below this; chance on digits is 0.90
    times: float = 20  # with stop_error: Xavier is at chance this many times He's steps


def laptop() -> Config:
    """Digits at 32 pixels: under half a minute a run on two cores."""
    return Config(
        **DIGITS,
        arch="small_30_reduced",
        learning_rate=0.002,  # at 0.01 most of He's runs die (docs/findings.md)
        num_steps=500,
        log_every=25,
        eval_every=25,
        checkpoint_every=100,
    )


def stall() -> Config:
    """The digits with biases frozen, until He trains; Xavier has 6,000 steps.

    About ten minutes for a pair of runs on two cores. Biases stay at zero, as those of the paper
    nearly do beside inputs in [-128, 128]. Xavier can then train by the gradient of its kernels
    alone, and the weight decay is larger (docs/findings.md, "A stall and a late start").
    """
    return dataclasses.replace(
        laptop(), frozen="bias", num_steps=6000, stop_error=0.10, checkpoint_every=500
    )


def cifar10() -> Config:
    """CIFAR-10 photos, the same network: about three minutes a run on two cores."""
    return Config(
        converged=0.65,
        stalled=0.85,
        **CIFAR10,
        arch="small_30_reduced",
        learning_rate=0.002,
        num_steps=2000,
        log_every=50,
        eval_every=100,
        checkpoint_every=500,
    )


def fashion_mnist() -> Config:
    """Fashion-MNIST, the same network: under a minute a run on two cores."""
    return Config(
        converged=0.40,
        stalled=0.80,
        **FASHION_MNIST,
        arch="small_30_reduced",
        learning_rate=0.002,
        num_steps=1500,
        log_every=50,
        eval_every=100,
        checkpoint_every=500,
    )


def imagenet() -> Config:
    """The paper's own setting: 224-pixel crops, batch 128, 3,000 random validation images."""
    return Config(
        converged=0.90,  # read off the figure: 80 % at epoch 10
        stalled=0.99,
        **IMAGENET,
        test_examples=3000,
        max_side=256,  # Table 2: the small model is trained at one scale
        arch="small_30",
        num_steps=100_000,  # 10 epochs, the figure's range
        plateau_patience=50,
        eval_every=1000,
        checkpoint_every=5000,
    )


def judge(config: Config, he: Sequence[Curve], xavier: Sequence[Curve]) -> list[Claim]:
    """Judge the claims of the figure on the curves of each arm."""
    he_errors = [curve.final_error() for curve in he]
    xavier_errors = [curve.lowest_error() for curve in xavier]
    judged = [
        Claim(
            f"He converges: final error at most {config.converged:.0%} in every seed",
            max(he_errors) <= config.converged,
            intervals.summary(he_errors, " %", 100),
        ),
        Claim(
            f"Xavier stays at chance for the {config.num_steps:,} steps of the run: "
            f"error never below {config.stalled:.0%} in any seed",
            claims.all_above(xavier, config.stalled),
            f"lowest error of each run: {intervals.summary(xavier_errors, ' %', 100)}",
        ),
    ]
    return [*judged, _stall(config, he, xavier)] if config.stop_error else judged


def _stall(config: Config, he: Sequence[Curve], xavier: Sequence[Curve]) -> Claim:
    """Judge whether Xavier's runs are at chance for many times the steps in which He's train."""
    needed = max(curve.steps_to(config.stop_error) for curve in he)
    seen = min((curve.steps[-1] for curve in xavier if len(curve.steps)), default=0)
    return Claim(
        f"Xavier is at chance for at least {config.times:g} times the steps that He needs to reach "
        f"{config.stop_error:.0%} error, in every seed",
        claims.all_above(xavier, config.stalled) and seen >= config.times * needed,
        f"He reaches it in at most {needed:,.0f} steps; Xavier's runs have {seen:,}",
    )


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of both initialisations."""
    configs.check_fractions(config, "converged", "stalled", "stop_error")
    return convergence.plan(config, workdir, seeds)


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the figure and its claims."""
    title = "30 layers, after He et al. 2015, Figure 3"
    return convergence.report(config, workdir, seeds, title, functools.partial(judge, config))


SCALES = {
    "laptop": laptop,
    "stall": stall,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenet": imagenet,
}
EXPERIMENT = Experiment("convergence_30", SCALES, report, plan)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
