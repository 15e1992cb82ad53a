"""Initialisers under their names in the literature, each with its own definition."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prelu_jax import activations, names, rectifiers
from prelu_jax.activations import Keeps
from prelu_jax.initializers.fans import PLAIN, Layout, Mode
from prelu_jax.initializers.rules import (
    Constant,
    Distribution,
    Gaussian,
    Initializer,
    Orthogonal,
    VarianceScaling,
)
from prelu_jax.quadrature import Activation

_KEEPS: dict[str, Keeps] = {"fan_out": "backward"}  # others keep the forward signal


def _kept(
    negative_slope: jax.typing.ArrayLike,
    default: float,
    activation: Activation | None,
    keeps: Keeps,
) -> tuple[float, str]:
    """Return the part of a second moment that the activation keeps, and a note for `describe`."""
    names.check("keeps", keeps, ("forward", "backward"))
    if activation is None:
        return rectifiers.second_moment_gain(negative_slope), ""
    if np.ndim(negative_slope) or negative_slope != default:
        raise ValueError(
            f"negative_slope is {negative_slope} and activation {activation}: expected one of them."
        )
    moments = activations.moments(activation)
    name = getattr(activation, "__name__", str(activation))
    kept = moments.forward if keeps == "forward" else moments.backward
    if not kept:
        raise ValueError(f"No gain keeps the gradient after {name}, whose derivative is 0.")
    forward, backward = (
        f"{1 / k:.6g}" if k else "none" for k in (moments.forward, moments.backward)
    )
    return kept, f"after {name}: {forward} keeps the signal, {backward} the gradient"


def he(
    mode: Mode = "fan_in",
    negative_slope: jax.typing.ArrayLike = 0.0,
    distribution: Distribution = "normal",
    *,
    activation: Activation | None = None,
    keeps: Keeps | None = None,
    input_scale: float = 1.0,
    num_layers: int = 1,
    layout: Layout = PLAIN,
) -> VarianceScaling:
    """Return weights of variance ``2 / ((1 + a²) n)`` (He et al. 2015, Eq. 10, 14 and 15).

    Args:
        mode: 'fan_in' keeps the forward signal (Eq. 10), 'fan_out' the gradient (Eq. 14);
            'fan_avg' and 'fan_geo_avg' are the arithmetic and the geometric mean of both.
        negative_slope: the rectifier's initial slope ``a``: 0 for ReLU, 0.25 for PReLU. For an
            array of channel slopes, ``a²`` is the mean of their squares.
        distribution: 'normal' (the paper's), 'truncated_normal' or 'uniform'.
        activation: any elementwise function before the layer, such as `jax.nn.gelu`, instead of a
            rectifier. The variance is then ``1 / (E[f²] n)`` or ``1 / (E[f'²] n)`` with moments
            under N(0, 1) (`prelu_jax.activations`).
        keeps: the moment that the weights keep after an ``activation``: 'forward' E[f²], or
            'backward' E[f'²]. They differ, so no variance keeps both. By default 'backward' for
            'fan_out', else 'forward'.
        input_scale: scale of inputs that are not normalised, e.g. 128 for pixels in [-128, 128].
            Each of ``num_layers`` layers' standard deviation is multiplied by
            ``(1 / input_scale)^(1 / num_layers)``, so that together they undo the scale (§2.2).
        num_layers: number of layers that share the correction for ``input_scale``.
        layout: roles of the kernel's axes; `for_layer` reads them from a Flax layer.
    """
    if input_scale <= 0 or num_layers < 1:
        raise ValueError(
            f"he: input_scale is {input_scale} and num_layers {num_layers}; expected a positive "
            "scale and at least one layer."
        )
    shrink = input_scale ** (-2 / num_layers)  # of the variance
    kept, note = _kept(negative_slope, 0.0, activation, keeps or _KEEPS.get(mode, "forward"))
    return VarianceScaling(shrink / kept, mode, distribution, layout, note)


def he_normal(
    mode: Mode = "fan_in",
    negative_slope: jax.typing.ArrayLike = 0.0,
    *,
    activation: Activation | None = None,
    keeps: Keeps | None = None,
    input_scale: float = 1.0,
    num_layers: int = 1,
    layout: Layout = PLAIN,
) -> VarianceScaling:
    """Return `he` with Gaussian weights, as in the paper."""
    return he(
        mode,
        negative_slope,
        "normal",
        activation=activation,
        keeps=keeps,
        input_scale=input_scale,
        num_layers=num_layers,
        layout=layout,
    )


def he_uniform(
    mode: Mode = "fan_in",
    negative_slope: jax.typing.ArrayLike = 0.0,
    *,
    activation: Activation | None = None,
    keeps: Keeps | None = None,
    input_scale: float = 1.0,
    num_layers: int = 1,
    layout: Layout = PLAIN,
) -> VarianceScaling:
    """Return `he` with uniform weights of the same variance."""
    return he(
        mode,
        negative_slope,
        "uniform",
        activation=activation,
        keeps=keeps,
        input_scale=input_scale,
        num_layers=num_layers,
        layout=layout,
    )


def xavier(
    mode: Mode = "fan_avg", distribution: Distribution = "uniform", *, layout: Layout = PLAIN
) -> VarianceScaling:
    """Return weights of variance ``1 / n`` (Glorot & Bengio 2010, Eq. 10 to 12), `he` of slope 1.

    Args:
        mode: 'fan_avg' is Glorot & Bengio's ``2 / (fan_in + fan_out)``; 'fan_in', 'fan_out' and
            'fan_geo_avg', the geometric mean, as in `he`.
        distribution: 'uniform' (the paper's, Eq. 16), 'normal' or 'truncated_normal'.
        layout: roles of the kernel's axes.
    """
    return VarianceScaling(1.0, mode, distribution, layout)


def xavier_normal(mode: Mode = "fan_avg", *, layout: Layout = PLAIN) -> VarianceScaling:
    """Return `xavier` with Gaussian weights."""
    return xavier(mode, "normal", layout=layout)


def xavier_uniform(mode: Mode = "fan_avg", *, layout: Layout = PLAIN) -> VarianceScaling:
    """Return `xavier` with uniform weights (Glorot & Bengio 2010, Eq. 16)."""
    return xavier(mode, "uniform", layout=layout)


def he2015_xavier(layout: Layout = PLAIN) -> VarianceScaling:
    """Return "Xavier" as in He et al. 2015, Fig. 2 and 3: Gaussian, variance ``1 / fan_out``."""
    return xavier("fan_out", "normal", layout=layout)


def caffe_xavier(mode: Mode = "fan_in", *, layout: Layout = PLAIN) -> VarianceScaling:
    """Return Caffe's ``xavier`` filler: uniform, of variance ``1 / fan_in`` by default."""
    return xavier(mode, "uniform", layout=_as_caffe(layout))


def caffe_msra(mode: Mode = "fan_in", *, layout: Layout = PLAIN) -> VarianceScaling:
    """Return Caffe's ``msra`` filler: Gaussian, of variance ``2 / fan_in`` by default, for ReLU."""
    return he(mode, 0.0, "normal", layout=_as_caffe(layout))


def _as_caffe(layout: Layout) -> Layout:
    """Return the layout by which Caffe counts: the outputs of all groups, and no strides."""
    return dataclasses.replace(layout, feature_group_count=1, strides=1)


def lecun(
    mode: Mode = "fan_in", distribution: Distribution = "normal", *, layout: Layout = PLAIN
) -> VarianceScaling:
    """Return weights of variance ``1 / fan_in`` (LeCun et al. 1998, *Efficient BackProp*, §4.6)."""
    return VarianceScaling(1.0, mode, distribution, layout)


def lecun_normal(layout: Layout = PLAIN) -> VarianceScaling:
    """Return `lecun` with Gaussian weights."""
    return lecun("fan_in", "normal", layout=layout)


def lecun_uniform(layout: Layout = PLAIN) -> VarianceScaling:
    """Return `lecun` with uniform weights."""
    return lecun("fan_in", "uniform", layout=layout)


def gaussian(stddev: float = 0.01) -> Gaussian:
    """Return Gaussian weights of a fixed std, with which He et al. 2015 compare their rule."""
    return Gaussian(stddev)


def orthogonal(
    negative_slope: jax.typing.ArrayLike = 1.0,
    *,
    activation: Activation | None = None,
    keeps: Keeps = "forward",
    layout: Layout = PLAIN,
) -> Orthogonal:
    """Return orthogonal filters (Saxe et al. 2014), orthonormal by default.

    Args:
        negative_slope: slope of the rectifier before the layer, for the gain ``2 / (1 + a²)``
            that compensates it: 1, the default, for no rectifier, 0 for ReLU.
        activation: any elementwise function instead of a rectifier, as in `he`.
        keeps: 'forward' or 'backward', as in `he`.
        layout: roles of the kernel's axes.
    """
    kept, note = _kept(negative_slope, 1.0, activation, keeps)
    return Orthogonal(1 / kept, layout, note=note)


def delta_orthogonal(
    negative_slope: jax.typing.ArrayLike = 1.0,
    *,
    activation: Activation | None = None,
    keeps: Keeps = "forward",
    layout: Layout = PLAIN,
) -> Orthogonal:
    """Return `orthogonal` in the centre of the window, zeros elsewhere (Xiao et al. 2018)."""
    kept, note = _kept(negative_slope, 1.0, activation, keeps)
    return Orthogonal(1 / kept, layout, only_centre=True, note=note)


def dirac(
    negative_slope: jax.typing.ArrayLike = 1.0,
    *,
    activation: Activation | None = None,
    keeps: Keeps = "forward",
    layout: Layout = PLAIN,
) -> Orthogonal:
    """Return an identity in the centre of the window, times the root of the gain of `orthogonal`.

    With the default gain of 1 a convolution copies its input, each group its own
    (``torch.nn.init.dirac_``). The key is not used.
    """
    kept, note = _kept(negative_slope, 1.0, activation, keeps)
    return Orthogonal(1 / kept, layout, only_centre=True, identity=True, note=note)


def zeros() -> Constant:
    """Return zeros, for biases (He et al. 2015: ``b = 0``)."""
    return Constant(0.0)


def constant(value: float) -> Constant:
    """Return the same number for all weights."""
    return Constant(value)


glorot, glorot_normal, glorot_uniform = xavier, xavier_normal, xavier_uniform
kaiming, kaiming_normal, kaiming_uniform = he, he_normal, he_uniform
msra = caffe_msra

_FACTORIES: tuple[Callable[..., Initializer], ...] = (
    *(he, he_normal, he_uniform, caffe_msra),
    *(xavier, xavier_normal, xavier_uniform, caffe_xavier, he2015_xavier),
    *(lecun, lecun_normal, lecun_uniform, gaussian, orthogonal, delta_orthogonal, dirac, zeros),
)
REGISTRY: dict[str, Callable[..., Initializer]] = {
    **{factory.__name__: factory for factory in _FACTORIES},
    "glorot": glorot,
    "glorot_normal": glorot_normal,
    "glorot_uniform": glorot_uniform,
    "kaiming": kaiming,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "msra": msra,
}


def options(name: str) -> tuple[str, ...]:
    """Return the names of the options that a registered initialiser takes."""
    names.check("initializer", name, REGISTRY)
    return tuple(inspect.signature(REGISTRY[name]).parameters)


def get(name: str, **given: Any) -> Initializer:
    """Return the initialiser of a registered name: ``get('he_normal', mode='fan_out')``.

    Raises:
        ValueError: the name is not registered; the error lists the registered ones.
        TypeError: the factory has no such option; the error lists its options.
    """
    valid = options(name)
    for option in given:
        if option not in valid:
            expected = f"expected some of {', '.join(valid)}" if valid else "it has none"
            raise TypeError(f"Initializer {name!r} has no option {option!r}; {expected}.")
    return REGISTRY[name](**given)
