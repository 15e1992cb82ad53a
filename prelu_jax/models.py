"""Flax Linen modules built from an `arch.Arch`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prelu_jax import cosines, initializers, names, pooling, rectifiers
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid
from prelu_jax.modules import Dropout, PReLU, SpatialPyramidPooling

LEAKY_SLOPE = 0.25  # the paper's LReLU "a = 0.25" is PReLU's initial slope, kept fixed


@dataclasses.dataclass(frozen=True)
class Rectifier:
    """A rectifier of a network.

    Attributes:
        slope: the initial negative slope; None for `cosines.tailored_slope` of the depth.
        learned: whether it is a parameter, a PReLU.
        channel_shared: whether all channels of a layer have one slope.
    """

    slope: float | None
    learned: bool = False
    channel_shared: bool = False

    def initial_slope(self, arch: Arch) -> float:
        """Return the initial slope in a network."""
        if self.slope is not None:
            return self.slope
        try:
            return cosines.tailored_slope(len(arch.rectified))
        except ValueError as error:
            raise ValueError(
                f"{arch.name} has {len(arch.rectified)} rectified layers, too few for a tailored "
                f"rectifier: {error}"
            ) from error


RECTIFIERS = {
    "relu": Rectifier(0.0),
    "leaky_relu": Rectifier(LEAKY_SLOPE),
    "prelu": Rectifier(LEAKY_SLOPE, learned=True),
    "prelu_shared": Rectifier(LEAKY_SLOPE, learned=True, channel_shared=True),
    "tailored": Rectifier(None),
    "tailored_prelu": Rectifier(None, learned=True),
}


class RectifierNet(nn.Module):
    """The network that an arch describes; build it with `build`.

    Parameters are named after the layer records: ``conv2_1/kernel``, ``conv2_1/bias``,
    ``conv2_1_prelu/negative_slope``.
    """

    arch: Arch
    num_classes: int
    rectifier: str
    initializer: initializers.Initializer
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, first_example: jax.typing.ArrayLike = 0
    ) -> jax.Array:
        """Compute the scores of images.

        Args:
            x: images ``[b, h, w, channels]``; any h and w that the pyramid can bin.
            train: apply dropout, which needs a key, ``rngs={'dropout': key}``.
            first_example: index of ``x[0]`` in the global batch, when devices share one.

        Returns:
            Scores before the softmax, float32 ``[b, num_classes]``.
        """
        x = x.astype(self.dtype)
        for layer in self.arch.layers:
            match layer:
                case Conv():
                    x = self._conv(layer, x)
                    x = self._rectify(layer.name, x)
                case MaxPool():
                    x = pooling.max_pool(x, layer.window)
                case SpatialPyramid():
                    x = SpatialPyramidPooling(layer.levels, name=layer.name)(x)
                case Dense():
                    x = self._dense(layer, layer.features, x)
                    x = self._rectify(layer.name, x)
                    dropout = Dropout(layer.dropout_rate, name=f"{layer.name}_dropout")
                    x = dropout(x, train=train, first_example=first_example)
                case Logits():
                    x = self._dense(layer, self.num_classes, x)
        return x.astype(jnp.float32)

    def uninitialized(self) -> "RectifierNet":
        """Return the network without its initialiser, for applying it to existing parameters.

        Networks that differ only in their initialiser then share one compiled program.
        """
        return self.clone(initializer=initializers.gaussian(0.0))

    def slopes(self, params: Any) -> dict[str, jax.Array | float]:
        """Return, by layer name, the negative slopes after it: a scalar or ``[channels]``."""
        fixed = RECTIFIERS[self.rectifier].initial_slope(self.arch)
        return {
            name: params.get(f"{name}_prelu", {}).get("negative_slope", fixed)
            for name in self.arch.rectified
        }

    def _conv(self, layer: Conv, x: jax.Array) -> jax.Array:
        sides = (layer.padding, layer.padding)
        if layer.circular:
            x = jnp.pad(x, ((0, 0), *sides, (0, 0)), mode="wrap")
            sides = ((0, 0), (0, 0))
        return nn.Conv(
            layer.features,
            (layer.kernel_size, layer.kernel_size),
            strides=layer.stride,
            padding=sides,
            kernel_init=self._kernel_init(layer),
            dtype=self.dtype,
            name=layer.name,
        )(x)

    def _dense(self, layer: Dense | Logits, features: int, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)  # every position of a map has its own weights
        kernel_init = self._kernel_init(layer)
        return nn.Dense(features, kernel_init=kernel_init, dtype=self.dtype, name=layer.name)(x)

    def _kernel_init(self, layer: Conv | Dense | Logits) -> initializers.Initializer:
        return self.initializer if isinstance(layer, Conv) else initializers.gaussian(layer.stddev)

    def _rectify(self, layer_name: str, x: jax.Array) -> jax.Array:
        rectifier = RECTIFIERS[self.rectifier]
        slope = rectifier.initial_slope(self.arch)
        if rectifier.learned:
            return PReLU(rectifier.channel_shared, slope, name=f"{layer_name}_prelu")(x)
        return rectifiers.leaky_relu(x, slope) if slope else rectifiers.relu(x)


def build(
    arch: Arch,
    num_classes: int = 1000,
    rectifier: str = "prelu",
    initializer: str | initializers.Initializer = "he_normal",
    mode: str = "fan_out",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> RectifierNet:
    """Build the Linen module of a network.

    Args:
        arch: the layers, e.g. ``pj.arch.MODEL_B``.
        num_classes: outputs of the last layer.
        rectifier: 'relu', 'leaky_relu' (fixed slope 0.25), 'prelu', 'prelu_shared', or 'tailored'
            and 'tailored_prelu': the slope with which orthogonal examples have a cosine of 0.9
            after the last rectifier (`cosines.tailored_slope`), fixed or learned.
        initializer: initialiser of the convolutions; fully connected layers have their own std, as
            in the paper (§2.2). A name is looked up with ``mode`` and the rectifier's initial slope
            (Eq. 15); an initialiser is used unchanged.
        mode: the fan of a named initialiser, one of `initializers.MODES`; the paper trains with
            'fan_out', Eq. 14.
        dtype: type of the computation; parameters are float32.

    Raises:
        ValueError: the rectifier, initialiser or mode is unknown, or ``num_classes`` is below 1.
    """
    names.check("rectifier", rectifier, RECTIFIERS)
    names.check("mode", mode, initializers.MODES)
    if num_classes < 1:
        raise ValueError(f"build: num_classes is {num_classes}, expected at least 1.")
    slope = RECTIFIERS[rectifier].initial_slope(arch)
    if isinstance(initializer, str):
        options: dict[str, Any] = {"mode": mode, "negative_slope": slope}
        accepted = set(initializers.options(initializer)) & set(options)
        initializer = initializers.get(initializer, **{k: options[k] for k in accepted})
    return RectifierNet(arch, num_classes, rectifier, initializer, dtype)
