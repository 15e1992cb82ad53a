"""Second moments by layer before training, predicted and measured: He et al. 2015, Eq. 9 to 14.

    python -m experiments.signal_profile --scale=laptop

The 14-, 22- and 30-layer networks, each with four initialisations: second moments of every layer's
output and of the gradient there, predicted and measured. Inputs and the gradient at the scores are
white noise.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.harness import cli, machine, profile_figures, profiles
from experiments.harness.claims import Claim
from experiments.harness.experiment import Experiment, Report
from experiments.harness.profiles import Profile
from prelu_jax import arch, initializers, models, names, signal, theory
from prelu_jax.arch import Arch, Conv
from prelu_jax.signal import Measurement
from prelu_jax.signal.verdict import HEALTHY, VANISHING
from prelu_jax.theory import LayerMoments

HE_IN, HE_OUT, XAVIER, GAUSSIAN = "He, fan_in", "He, fan_out", "Xavier", "Gaussian 0.01"
ARMS = (HE_IN, HE_OUT, XAVIER, GAUSSIAN)
CHANNELS, CLASSES = 3, 10
LEVEL = 0.999  # of each interval for the factor per layer; the default nets give 24 intervals
OF_LAYERS = 0.99  # of the table's intervals; over a whole net the theory is only approximate
WIDEST = 25  # half-width, in % of the factor, of an interval that can confirm the theory


@dataclasses.dataclass
class Config:
    """Which networks are measured, and how.

    Attributes:
        archs: the networks.
        padding: padding of the convolutions: 'same', 'alternating' or 'circular'.
        rectifier: 'relu', 'leaky_relu', 'prelu', 'prelu_shared', 'tailored' or 'tailored_prelu'.
        batch_size: examples of white noise.
    """

    archs: tuple[str, ...] = ("small_14_reduced", "model_b_reduced", "small_30_reduced")
    padding: str = "alternating"
    rectifier: str = "relu"
    batch_size: int = 8


SCALES = {
    "laptop": Config(),  # the reductions to 32 pixels: a minute on two cores
    "imagenet": Config(archs=("small_14", "model_b", "small_30")),  # 224 pixels
}


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Measure, and return the figure, the table and the moments of every seed."""
    names.check("padding", config.padding, arch.PADDINGS)
    names.check("rectifier", config.rectifier, models.RECTIFIERS)
    nets = [arch.with_padding(arch.get(name), config.padding) for name in config.archs]
    if config.batch_size < 1:
        raise ValueError(f"config.batch_size is {config.batch_size}, expected at least 1.")
    if len(seeds) < 2:
        raise ValueError(
            f"--seeds is {len(seeds)}, expected at least 2: of one there is no interval."
        )
    machine.cache_compilations()
    measured = [initialised for net in nets for initialised in _measure(net, config, seeds)]
    both = [profile for initialised in measured for profile in initialised.profiles]
    caption = (
        f"{config.rectifier}, padding {config.padding}, batch {config.batch_size}, white noise in "
        f"and back; seeds {seeds[0]} to {seeds[-1]}; lines: theory; points: mean over the seeds, "
        "as of a log-normal variable, with 95 % intervals"
    )
    return Report(
        judge(nets, measured),
        profiles.markdown(both, OF_LAYERS),
        {"profile.csv": profiles.means(both), "seeds.csv": profiles.seeds(both)},
        {"figure": profile_figures.signal_profiles(both, caption)},
    )


@dataclasses.dataclass(frozen=True)
class Initialised:
    """One initialisation of one network: both directions, and a verdict on every seed."""

    net: str
    arm: str
    profiles: tuple[Profile, Profile]
    verdicts: list[str]


def rules(slope: float) -> dict[str, Any]:
    """Return the initialisers of the convolutions before rectifiers of this slope."""
    return {
        HE_IN: initializers.he_normal("fan_in", slope),  # Eq. 10, Eq. 15
        HE_OUT: initializers.he_normal("fan_out", slope),  # Eq. 14
        XAVIER: initializers.xavier_normal("fan_out"),  # as in the legends of Figures 2 and 3
        GAUSSIAN: initializers.gaussian(0.01),
    }


def _measure(net: Arch, config: Config, seeds: Sequence[int]) -> Iterator[Initialised]:
    """Yield a network with every initialisation."""
    slope = models.RECTIFIERS[config.rectifier].initial_slope(net)
    model = models.build(net, CLASSES, config.rectifier, initializers.gaussian(1.0))
    side = net.image_size
    image = jax.ShapeDtypeStruct((config.batch_size, side, side, CHANNELS), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    convs = [layer.name for layer in net.layers if isinstance(layer, Conv)]
    stddevs = {
        arm: {c: rule.variance(shapes["params"][c]["kernel"].shape) ** 0.5 for c in convs}
        for arm, rule in rules(slope).items()
    }
    probe = signal.prepare(model, shapes, image)

    @jax.jit
    def measure(seed: jax.Array, stddev: dict[str, jax.Array]) -> Any:
        """Measure a draw: all arms are Gaussians, and one unit draw serves them all."""
        of_weights, of_images, of_scores = jax.random.split(jax.random.key(seed), 3)
        images = jax.random.normal(of_images, image.shape, image.dtype)
        params = {**model.init(of_weights, images)["params"]}
        for conv in convs:
            params[conv] = {**params[conv], "kernel": stddev[conv] * params[conv]["kernel"]}
        return probe.statistics({"params": params}, images, of_scores)

    runs = [(arm, seed) for arm in ARMS for seed in seeds]
    measured: dict[str, list[Measurement]] = {arm: [] for arm in ARMS}
    bar = tqdm(runs, desc=net.name, unit="pass")
    bar.set_postfix_str("compiling")
    for arm, seed in bar:
        measured[arm].append(probe.read(measure(seed, stddevs[arm])))
        bar.set_postfix_str("", False)
    for arm, rule in rules(slope).items():
        predicted = theory.predict(
            net,
            initializer=rule,
            in_channels=CHANNELS,
            num_classes=CLASSES,
            negative_slope=slope,
        )
        yield _initialised(net.name, arm, predicted, measured[arm])


def _initialised(
    net: str, arm: str, predicted: Sequence[LayerMoments], measured: Sequence[Measurement]
) -> Initialised:
    by_name = {layer.name: layer for layer in predicted}
    verdicts = [signal.Report(net, measurement, by_name).verdict for measurement in measured]
    forward, backward = (
        Profile(
            net,
            arm,
            direction,
            tuple(by_name),
            np.log([getattr(layer, direction) for layer in predicted]),
            np.log([[getattr(row, moment) for row in m.layers] for m in measured]),
        )
        for direction, moment in (
            ("forward", "second_moment"),
            ("backward", "gradient_second_moment"),
        )
    )
    return Initialised(net, arm, (forward, backward), verdicts)


def last_stage(net: Arch) -> list[str]:
    """Return the convolutions after the last pooling before the fully connected layers."""
    stages: list[list[str]] = [[]]
    for layer in net.layers:
        if isinstance(layer, Conv):
            stages[-1].append(layer.name)
        elif stages[-1]:
            stages.append([])
    return [stage for stage in stages if stage][-1]


def judge(nets: Sequence[Arch], measured: Sequence[Initialised]) -> list[Claim]:
    """Judge the paper's statements on the initialisations, and whether the theory holds.

    The theory is compared with the factor per layer along the last stage, which has no pooling:
    there it is exact.
    """
    stages = {net.name: last_stage(net) for net in nets}
    factors = {
        p: p.factor_per_layer(stages[p.net], LEVEL) for one in measured for p in one.profiles
    }
    missed = [f"{p.net}, {p.arm}, {p.direction}: {f}" for p, f in factors.items() if not f.agrees]
    widths = [100 * f.width for f in factors.values()]
    he, xavier, gaussian = (
        {(one.net, one.arm): one.verdicts for one in measured if one.arm in arms}
        for arms in ((HE_IN, HE_OUT), (XAVIER,), (GAUSSIAN,))
    )
    deepest = max(nets, key=lambda net: len(net.layers)).name
    return [
        Claim(
            "He: the signal is healthy in every network and seed",
            all(set(verdicts) == {HEALTHY} for verdicts in he.values()),
            _counts(he),
        ),
        Claim(
            f"Xavier: the signal vanishes in the deepest network, {deepest}, in every seed",
            set(xavier[deepest, XAVIER]) == {VANISHING},
            _counts(xavier),
        ),
        Claim(
            "Gaussian 0.01: the signal vanishes in every network and seed",
            all(set(verdicts) == {VANISHING} for verdicts in gaussian.values()),
            _counts(gaussian),
        ),
        Claim(
            f"The theory's factor per layer lies in the {LEVEL:.1%} interval of the measured one",
            False if missed else max(widths) <= WIDEST or None,
            f"{'; '.join(missed) or f'all {len(factors)} of them'}; half-widths of the intervals: "
            f"median {np.median(widths):.2g} %, largest {max(widths):.2g} % of the factor",
        ),
    ]


def _counts(verdicts: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """Return how often each verdict was given, by network and initialisation."""
    return "\n      ".join(
        f"{net}, {arm}: " + ", ".join(f"{v} {n}" for v, n in collections.Counter(given).items())
        for (net, arm), given in verdicts.items()
    )


EXPERIMENT = Experiment("signal_profile", SCALES, report, default_seeds=16)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
