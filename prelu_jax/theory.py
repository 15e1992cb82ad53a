"""Signal propagation before the first step: predicted second moments, layer by layer.

`predict` folds the records of an `arch.Arch`, the same that `models.build` reads, into E[y²] of
every weighted layer's output before its rectifier, E[Δy²] of the gradient with respect to it, and
the cosine of two examples' outputs. No weights are drawn. `paper_formulas` gives the paper's own
predictions (He et al. 2015, Eq. 9 and 13), which leave out borders, pooling and cosines.

Exactness, for independent zero-mean weights of a symmetric distribution and zero biases:

* **Convolutions and dense layers, forward**: exact at any width and map size, in expectation
  over weights. Given its input, an output has a symmetric distribution of mean zero and variance
  Var[w] Σ x², of which a rectifier keeps exactly (1 + a²)/2.
* **Backward**: exact in the wide limit, where the weights that carry a gradient back may be
  taken as independent of those that set the rectifiers' gates (the paper's assumption too).
* **Max pooling and the pyramid**: approximate (`maxima`), from correlations between positions.
* **Cosines**: exact in the wide limit without pools, approximate through pools (`correlations`).

Expectations over weights are not typical values: the moments of a deep and narrow net are skewed,
and most draws lie below their mean.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

import numpy as np
from jax.typing import ArrayLike

from prelu_jax import correlations, maxima, moment_maps, names, rectifiers
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid
from prelu_jax.correlations import Correlations
from prelu_jax.moment_maps import Map

Slopes = ArrayLike | Mapping[str, ArrayLike]


class Rule(Protocol):
    """Interface of an initialiser for `predict`, e.g. ``initializers.he_normal('fan_out')``."""

    def variance(self, shape: Sequence[int]) -> float:
        """Return the variance of the weights of a kernel of this shape."""


Variances = Rule | Mapping[str, SupportsFloat]


@dataclasses.dataclass(frozen=True)
class LayerMoments:
    """Second moments of one weighted layer, averaged over positions, channels and weights.

    Attributes:
        name: the layer's name in the arch and in the parameters.
        forward: E[y²] of the output, before the rectifier.
        backward: E[Δy²] of the gradient with respect to that output.
        forward_exact: the forward moment is exact at any width: no pooling precedes the layer.
        backward_exact: the backward moment is exact in the wide limit: no pooling follows.
        cosine: of two examples' outputs, E[y_a · y_b] / E[y²], before the rectifier; None from
            `paper_formulas`.
    """

    name: str
    forward: float
    backward: float
    forward_exact: bool
    backward_exact: bool
    cosine: float | None = None


@dataclasses.dataclass(frozen=True)
class _Step:
    """One layer with its shapes, fans and the slopes around it; pooling has no weights.

    ``slope_before`` is the slope of the rectifier between the previous layer and this one, 1 if
    there is none.
    """

    layer: Conv | Dense | Logits | MaxPool | SpatialPyramid
    output_shape: tuple[int, ...]
    in_features: int
    slope_before: ArrayLike
    slope_after: ArrayLike = 1.0
    fan_in: int = 0
    fan_out: int = 0
    variance: float = 0.0


def _steps(
    arch: Arch,
    shape: tuple[int, ...],
    initializer: Variances,
    features: int,
    num_classes: int,
    slopes: Slopes,
) -> Iterator[_Step]:
    slope_of = _slopes(arch, slopes)
    if isinstance(initializer, Mapping):
        weighted = [layer.name for layer in arch.layers if isinstance(layer, Conv | Dense | Logits)]
        _check_layers("initializer", "weighted layer", initializer, weighted, "a rule for all")
    slope: ArrayLike = 1.0
    for layer, before in zip(arch.layers, (None, *arch.layers), strict=False):
        if isinstance(layer, MaxPool | SpatialPyramid):
            if isinstance(before, MaxPool | SpatialPyramid):
                raise ValueError(
                    f"{layer.name} pools maxima, which are not Gaussian; expected a convolution "
                    f"between {before.name} and it."
                )
            shape = maxima.pooled_shape(layer, shape)
            yield _Step(layer, shape, features, slope)
            slope = 1.0
            continue
        if isinstance(layer, Conv):
            size, outputs = layer.kernel_size**2, layer.features
            shape = tuple(len(moment_maps.taps(side, layer)) for side in shape)
            fans = size * features, size * outputs
        else:
            outputs = num_classes if isinstance(layer, Logits) else layer.features
            fans, shape = (math.prod(shape) * features, outputs), ()
        variance = _variance(initializer, layer, features)
        slope_after = slope_of[layer.name]
        yield _Step(layer, shape, features, slope, slope_after, *fans, variance)
        features, slope = outputs, slope_after


def _variance(initializer: Variances, layer: Conv | Dense | Logits, in_features: int) -> float:
    if isinstance(initializer, Mapping):
        return float(initializer[layer.name])
    if isinstance(layer, Conv):
        side = layer.kernel_size
        return initializer.variance((side, side, in_features, layer.features))
    return layer.stddev**2


def _slopes(arch: Arch, slopes: Slopes) -> dict[str, ArrayLike]:
    """Return the rectifier's slope after every weighted layer; 1, no rectifier, after the last."""
    rectified = arch.rectified
    if not isinstance(slopes, Mapping):
        slopes = dict.fromkeys(rectified, slopes)
    _check_layers("negative_slope", "rectified layer", slopes, rectified, "one number for all")
    return dict(slopes) | {layer.name: 1.0 for layer in arch.layers if isinstance(layer, Logits)}


def _check_layers(
    argument: str, kind: str, given: Iterable[str], layers: Sequence[str], instead: str
) -> None:
    for name in given:
        names.check(kind, name, layers)
    missing = [name for name in layers if name not in set(given)]
    if missing:
        raise ValueError(
            f"{argument} has no value for {', '.join(missing)}; expected one for every {kind} of "
            f"the network, or {instead}."
        )


def paper_formulas(
    arch: Arch,
    *,
    initializer: Variances,
    in_channels: int = 3,
    num_classes: int = 10,
    negative_slope: Slopes = 0.0,
    input_second_moment: float = 1.0,
    output_gradient_second_moment: float = 1.0,
) -> tuple[LayerMoments, ...]:
    """Return the moments by Eq. 9 and 13 as printed, without the effect of pooling and borders.

    Every layer is a factor. Forward it is ``½ (1 + a²) n Var[w]``, without ``½ (1 + a²)`` for the
    first layer; backward it is ``½ (1 + a²) n̂ Var[w]``, with the slope of the rectifier that the
    gradient passes next (Eq. 15 for the PReLU). For arguments and errors see `predict`; the
    moments of input and scores are scalars.
    """
    _check(arch, initializer, in_channels, num_classes)
    for name, moment in (
        ("input_second_moment", input_second_moment),
        ("output_gradient_second_moment", output_gradient_second_moment),
    ):
        _check_range(name, moment, 0, math.inf)
    size = (arch.image_size, arch.image_size)
    steps = list(_steps(arch, size, initializer, in_channels, num_classes, negative_slope))
    steps = [step for step in steps if not isinstance(step.layer, MaxPool | SpatialPyramid)]
    gains = [1.0, *(rectifiers.second_moment_gain(step.slope_after) for step in steps[:-1])]
    forward, moment = [], input_second_moment
    for step, gain in zip(steps, gains, strict=True):
        moment *= gain * step.fan_in * step.variance
        forward.append(moment)
    backward, moment = [], output_gradient_second_moment
    for step, gain in zip(reversed(steps), reversed(gains), strict=True):
        backward.append(moment)
        moment *= gain * step.fan_out * step.variance
    return _records(steps, forward, backward[::-1], [None] * len(steps))


def plain(arch: Arch, **options: Any) -> tuple[LayerMoments, ...]:
    """Return `paper_formulas`; deprecated, this name will be removed in the next release."""
    warnings.warn("theory.plain is now theory.paper_formulas.", DeprecationWarning, stacklevel=2)
    return paper_formulas(arch, **options)


def predict(
    arch: Arch,
    *,
    initializer: Variances,
    in_channels: int = 3,
    num_classes: int = 10,
    negative_slope: Slopes = 0.0,
    input_second_moment: ArrayLike = 1.0,
    input_correlation: float = 0.0,
    input_cosine: float = 0.0,
    output_gradient_second_moment: float = 1.0,
) -> tuple[LayerMoments, ...]:
    """Predict moments and cosines of every weighted layer at initialisation, with borders, pools.

    The module's docstring states which predictions are exact. Dropout counts as off.

    Args:
        arch: the network.
        initializer: initialiser of the convolutions, as for `models.build`; fully connected layers
            have their std in their records. Or a dict from the name of every weighted layer to the
            variance of its weights, e.g. that of a net's current kernels.
        in_channels: channels of the images.
        num_classes: outputs of the last layer.
        negative_slope: slope of the rectifiers, 0 for ReLU: a scalar for all; or a dict from the
            name of every layer except the last to a scalar or ``[channels]``.
        input_second_moment: E[x²] of the pixels over examples and channels, a scalar for images
            of ``arch.image_size``, or ``[h, w]``.
        input_correlation: ``E[x(p)·x(q)] / E[x²]`` of two pixels, 0 for white noise; for photos,
            of two pixels of one pooling window. Only max pooling depends on it.
        input_cosine: ``E[x_a(p)·x_b(p)] / E[x²]`` of two images at one position, 0 for white noise.
            At different positions p ≠ q it is taken to be this times ``input_correlation``.
        output_gradient_second_moment: E[Δy²] at the scores.

    Returns:
        One record per weighted layer, in order.

    Raises:
        TypeError: ``arch`` is no Arch, or ``initializer`` neither a rule nor a dict.
        ValueError: a number is out of range, the image is too small, max pooling follows max
            pooling, or ``initializer`` or ``negative_slope`` lacks a layer or has one that the
            network does not.
    """
    _check(arch, initializer, in_channels, num_classes)
    for name, value, low, high in (
        ("input_second_moment", input_second_moment, 0, math.inf),
        ("output_gradient_second_moment", output_gradient_second_moment, 0, math.inf),
        ("input_correlation", input_correlation, 0, 1),
        ("input_cosine", input_cosine, -1, 1),
    ):
        _check_range(name, value, low, high, may_be_map=name == "input_second_moment")
    moments = np.asarray(input_second_moment, np.float64)
    shape = moments.shape if moments.ndim else (arch.image_size, arch.image_size)
    if len(shape) != 2:
        raise ValueError(
            f"predict: input_second_moment has shape {shape}, expected a scalar or [h, w]."
        )
    steps = list(_steps(arch, shape, initializer, in_channels, num_classes, negative_slope))
    signal = np.broadcast_to(moments, shape)
    related = correlations.of_input(shape, input_correlation, input_cosine)
    forward, cosines, transposes = [], [], []
    for step in steps:
        signal, related, transpose = _advance(step, signal, related)
        forward.append(float(signal.mean()))
        cosines.append(related.cosine(signal))
        transposes.append(transpose)
    backward, gradient = [], np.full(signal.shape, output_gradient_second_moment, np.float64)
    for transpose in reversed(transposes):
        backward.append(float(gradient.mean()))
        gradient = transpose(gradient)
    return _records(steps, forward, backward[::-1], cosines)


def _check(arch: Arch, initializer: Variances, in_channels: int, num_classes: int) -> None:
    """Raise an error that names the first invalid argument."""
    if not isinstance(arch, Arch):
        raise TypeError(f"arch is {arch!r}, expected an Arch, such as pj.arch.SMALL_30.")
    if not (isinstance(initializer, Mapping) or hasattr(initializer, "variance")):
        raise TypeError(
            f"initializer is {initializer!r}, expected one of pj.initializers, such as "
            "he_normal('fan_out'), or a dict from layers to variances."
        )
    for name, count in (("in_channels", in_channels), ("num_classes", num_classes)):
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name} is {count!r}, expected a whole number above 0.")


def _check_range(
    name: str, value: ArrayLike, low: float, high: float, *, may_be_map: bool = False
) -> None:
    """Raise a ValueError unless all numbers are finite and from ``low`` to ``high``."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(math.nan)
    in_range = np.isfinite(numbers) & (low <= numbers) & (numbers <= high)
    if in_range.all() and (may_be_map or not numbers.ndim):
        return
    span = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    raise ValueError(f"{name} is {value!r}, expected a finite number, {span}.")


def _records(
    steps: Sequence[_Step],
    forward: Sequence[float],
    backward: Sequence[float],
    cosines: Sequence[float | None],
) -> tuple[LayerMoments, ...]:
    pools = [i for i, step in enumerate(steps) if isinstance(step.layer, MaxPool | SpatialPyramid)]
    first, last = (pools[0], pools[-1]) if pools else (len(steps), -1)
    return tuple(
        LayerMoments(step.layer.name, forward[i], backward[i], i < first, i > last, cosines[i])
        for i, step in enumerate(steps)
        if i not in pools
    )


def _advance(
    step: _Step, signal: Map, related: Correlations
) -> tuple[Map, Correlations, Callable[[Map], Map]]:
    """Carry moments through a rectifier and a layer; also return the map of gradients back."""
    layer, shape, slope = step.layer, signal.shape, step.slope_before
    if isinstance(layer, MaxPool | SpatialPyramid):
        regions = maxima.regions(layer, shape)
        pooled = maxima.max_pool(signal, regions, slope, related.within)
        return (
            pooled.forward.reshape(step.output_shape),
            related.max_pool(signal, layer, slope, pooled.correlation),
            lambda dx: maxima.max_pool_backward(dx.ravel(), pooled, regions, shape),
        )
    gain, variance = rectifiers.second_moment_gain(slope), step.variance
    related = related.rectified(slope)
    if isinstance(layer, Conv):
        return (
            moment_maps.conv_forward(gain * signal, layer, variance, step.in_features),
            related.conv(signal, layer),
            lambda dy: gain * moment_maps.conv_backward(dy, layer, variance, shape),
        )
    return (  # fully connected: every position has its own weights (Eq. 7 and 12)
        np.asarray(variance * step.in_features * gain * signal.sum()),
        related.dense(signal),
        lambda dy: np.full(shape, gain * variance * step.fan_out * dy),
    )
