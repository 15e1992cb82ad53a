"""He et al. 2015, Figure 3: a 30-layer rectifier network, He's initialisation against Xavier's.

    python -m experiments.convergence_30 --scale=laptop

27 convolutional and 3 fully connected layers, ReLU, Gaussian weights of variance 2 / fan_out
(Eq. 14) against 1 / fan_out, the variance in the figure's legend; everything else equal.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.harness import claims, cli, convergence
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, DIGITS, FASHION_MNIST, IMAGENET, every
from experiments.harness.results import Curve


@dataclasses.dataclass
class Config(convergence.ConvergenceConfig):
    """The comparison and the limits in its claims.

    Attributes:
        converged: claim: He's final error is at most this.
        stalled: claim: Xavier's error is never below this; a little below 1 - 1 / classes, chance.
        times: claim, with stop_error: Xavier is at chance for this many times He's steps.
    """

    converged: float = 0.10
    stalled: float = 0.80
    times: float = 20


# At a learning rate of 0.01 many of He's runs start late or die (docs/findings/late-starts.md).
_REDUCED: dict[str, Any] = {"arch": "small_30_reduced", "learning_rate": 0.002}
_LAPTOP = Config(**DIGITS, **_REDUCED, num_steps=500, **every(25, 25, 100))
SCALES = {
    # Digits at 32 pixels: under half a minute a run on two cores.
    "laptop": _LAPTOP,
    # The digits with biases frozen, until He trains; Xavier has 6,000 steps. About ten minutes for
    # a pair of runs on two cores. Biases stay at zero, as those of the paper nearly do beside
    # inputs in [-128, 128]. Xavier can then train by the gradient of its kernels alone, and the
    # weight decay is larger (docs/findings/late-starts.md, "A stall and a late start").
    "stall": dataclasses.replace(
        _LAPTOP, frozen="bias", num_steps=6000, stop_error=0.10, checkpoint_every=500
    ),
    # Under a minute a run on two cores.
    "fashion_mnist": Config(
        converged=0.40,
        stalled=0.80,
        **FASHION_MNIST,
        **_REDUCED,
        num_steps=1500,
        **every(50, 100, 500),
    ),
    # About three minutes a run on two cores.
    "cifar10": Config(
        converged=0.65,
        stalled=0.85,
        **CIFAR10,
        **_REDUCED,
        num_steps=2000,
        **every(50, 100, 500),
    ),
    # The paper's own setting: 224-pixel crops, batch 128, 3,000 random validation images.
    "imagenet": Config(
        converged=0.90,  # read off the figure: 80 % at epoch 10
        stalled=0.99,
        **IMAGENET,
        test_examples=3000,
        max_side=256,  # Table 2: the small model is trained at one scale
        arch="small_30",
        num_steps=100_000,  # 10 epochs, the figure's range
        plateau_patience=50,
        **every(100, 1000, 5000),
    ),
}


def judge(config: Config, he: Sequence[Curve], xavier: Sequence[Curve]) -> list[Claim]:
    """Judge the claims of the figure on the curves of each arm."""
    run = f"the {config.num_steps:,} steps of the run"
    judged = [
        claims.converged("He converges", he, config.converged),
        claims.stalled(f"Xavier stays at chance for {run}", xavier, config.stalled),
    ]
    return [*judged, _stall(config, he, xavier)] if config.stop_error else judged


def _stall(config: Config, he: Sequence[Curve], xavier: Sequence[Curve]) -> Claim:
    """Judge whether Xavier's runs are at chance for many times the steps in which He's train."""
    needed = max(convergence.steps_to_stop(config, curve) for curve in he)
    seen = min((curve.steps[-1] for curve in xavier if len(curve.steps)), default=0)
    return Claim(
        f"Xavier is at chance for at least {config.times:g} times the steps that He needs to reach "
        f"{config.stop_error:.0%} error, in every seed",
        claims.all_above(xavier, config.stalled) and seen >= config.times * needed,
        f"He reaches it in at most {needed:,.0f} steps; Xavier's runs have {seen:,}",
    )


TITLE = "30 layers, after He et al. 2015, Figure 3"
TRAINED, STALLED = ("converged", "stop_error"), ("stalled",)
EXPERIMENT = convergence.experiment("convergence_30", SCALES, judge, TITLE, TRAINED, STALLED)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
