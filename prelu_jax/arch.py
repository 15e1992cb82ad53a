"""Networks as data: tuples of layer records, from which `models` builds Linen modules.

The networks of He et al. 2015 (arXiv:1502.01852) are given exactly as in their Tables 1 and 3;
reductions to images of 32 and 56 pixels follow. The paper leaves two details open:

* Padding. The 2×2 convolutions of Table 1 keep the size of their maps, so one row and one column
  must be added on one side. They are added before and after **in turn**: with padding on one side
  only, a stack of even kernels shifts its signal off the map
  (docs/findings/signal-propagation.md).
* The place of the sixteen extra layers of the 30-layer network (§2.2). They have 256 filters of
  2×2, as only stage conv3 has, so they are in conv3.
"""

import dataclasses
import math
from typing import Any

from prelu_jax import names


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with bias, then a rectifier.

    Attributes:
        name: the parameters' path.
        features: output channels, ``d`` in the paper.
        kernel_size: side of the square kernel, ``k``.
        stride: step of the kernel in both directions.
        padding: rows and columns added before and after, the same for both axes.
        circular: pad with the opposite side of the map instead of with zeros.
    """

    name: str
    features: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    circular: bool = False


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Maximum over ``window × window`` tiles, which do not overlap in these networks."""

    name: str
    window: int


@dataclasses.dataclass(frozen=True)
class SpatialPyramid:
    """Maximum over ``n × n`` bins for every level n, concatenated (SPP-net)."""

    name: str
    levels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer with bias, a rectifier and dropout; weights N(0, stddev²)."""

    name: str
    features: int
    stddev: float
    dropout_rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Logits:
    """The last layer: one output per class, no rectifier; weights N(0, stddev²)."""

    name: str
    stddev: float


Layer = Conv | MaxPool | SpatialPyramid | Dense | Logits


@dataclasses.dataclass(frozen=True)
class Arch:
    """A network: its layers in order, and the side in pixels of its square input images."""

    name: str
    image_size: int
    layers: tuple[Layer, ...]

    @property
    def rectified(self) -> list[str]:
        """Return the names of the layers that a rectifier follows, in order of depth."""
        return [layer.name for layer in self.layers if isinstance(layer, Conv | Dense)]


def multiply_adds(arch: Arch, num_classes: int = 1000, channels: int = 3) -> int:
    """Return the number of products in one image's forward pass, "complexity" in Table 3."""
    side, features, total = arch.image_size, channels, 0
    for layer in arch.layers:
        match layer:
            case Conv():
                padded = side + sum(layer.padding)
                side = (padded - layer.kernel_size) // layer.stride + 1
                total += side**2 * layer.kernel_size**2 * features * layer.features
                features = layer.features
            case MaxPool():
                side //= layer.window
            case SpatialPyramid():
                features *= sum(level**2 for level in layer.levels)
                side = 1
            case Dense() | Logits():
                outputs = num_classes if isinstance(layer, Logits) else layer.features
                total += side**2 * features * outputs
                side, features = 1, outputs
    return total


PADDINGS = ("alternating", "same", "circular")


def with_padding(arch: Arch, scheme: str) -> Arch:
    """Return the network with its size-keeping convolutions padded by another scheme.

    Args:
        arch: any network of this module.
        scheme: where an even kernel gets its odd row: 'alternating', before and after in turn;
            'same', always after, as in XLA's ``SAME``; 'circular', as alternating, but padded
            with the opposite side of the map.

    Raises:
        ValueError: the scheme is unknown.
    """
    names.check("padding", scheme, PADDINGS)
    layers, turn = [], 0
    for layer in arch.layers:
        if isinstance(layer, Conv) and sum(layer.padding) == layer.kernel_size - 1:
            sides = _padding(layer.kernel_size, 0 if scheme == "same" else turn)
            layer = dataclasses.replace(layer, padding=sides, circular=scheme == "circular")
            turn += 1
        else:
            turn = 0
        layers.append(layer)
    return dataclasses.replace(arch, layers=tuple(layers))


def with_width(arch: Arch, factor: float) -> Arch:
    """Return the network with every layer's features multiplied, except its outputs.

    The std of fully connected layers changes so that fan_in · stddev², the variance of their
    outputs, stays the same.

    Args:
        arch: any network of this module.
        factor: above 0; a layer keeps at least one feature.

    Raises:
        ValueError: the factor is not above 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"with_width: factor is {factor}, expected a number above 0.")

    layers, ratio = [], 1.0  # of a layer's input features, new over old
    for layer in arch.layers:
        changes: dict[str, Any] = {}
        if isinstance(layer, Dense | Logits):
            changes["stddev"] = layer.stddev / math.sqrt(ratio)
        if isinstance(layer, Conv | Dense):
            changes["features"] = max(1, round(layer.features * factor))
            ratio = changes["features"] / layer.features
        layers.append(dataclasses.replace(layer, **changes))
    return dataclasses.replace(arch, layers=tuple(layers))


def _padding(kernel_size: int, turn: int) -> tuple[int, int]:
    """Return size-keeping padding; an even kernel's odd row goes after, then before, in turn."""
    less, more = (kernel_size - 1) // 2, kernel_size // 2
    return (less, more) if turn % 2 == 0 else (more, less)


def _stage(name: str, count: int, features: int, kernel_size: int) -> tuple[Conv, ...]:
    return tuple(
        Conv(f"{name}_{i + 1}", features, kernel_size, padding=_padding(kernel_size, i))
        for i in range(count)
    )


def _fully_connected(
    features: int, stddev: float, stddev_last: float, dropout_rate: float = 0.5
) -> tuple[Layer, ...]:
    hidden = (Dense(name, features, stddev, dropout_rate) for name in ("fc1", "fc2"))
    return (*hidden, Logits("fc3", stddev_last))


def _small(name: str, convs_in_stage_3: int) -> Arch:
    """Return Table 1 of He et al. 2015 (model E of He & Sun 2015) with a variable conv3."""
    return Arch(
        name,
        224,
        (
            Conv("conv1", 64, 7, stride=2),
            MaxPool("pool1", 3),
            *_stage("conv2", 4, 128, 2),
            MaxPool("pool2", 2),
            *_stage("conv3", convs_in_stage_3, 256, 2),
            SpatialPyramid("spp", (6, 3, 2, 1)),
            *_fully_connected(4096, stddev=0.01, stddev_last=0.001),
        ),
    )


SMALL_14 = _small("small_14", 6)
SMALL_30 = _small("small_30", 6 + 16)


def _stages_2_to_4(convs: int, features: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Return the three stages of a large model, ``convs`` layers each."""
    return (
        *_stage("conv2", convs, features[0], 3),
        MaxPool("pool2", 2),
        *_stage("conv3", convs, features[1], 3),
        MaxPool("pool3", 2),
        *_stage("conv4", convs, features[2], 3),
    )


def _large(name: str, convs: int, features: tuple[int, int, int]) -> Arch:
    """Return a model of Table 3 of He et al. 2015: three stages of ``convs`` layers each."""
    return Arch(
        name,
        224,
        (
            Conv("conv1", 96, 7, stride=2, padding=(3, 3)),
            MaxPool("pool1", 2),
            *_stages_2_to_4(convs, features),
            SpatialPyramid("spp", (7, 3, 2, 1)),
            *_fully_connected(4096, stddev=0.01, stddev_last=0.001),
        ),
    )


MODEL_A = _large("model_a", 5, (256, 512, 512))
MODEL_B = _large("model_b", 6, (256, 512, 512))
MODEL_C = _large("model_c", 6, (384, 768, 896))

# Table 3 compares this net with A, B and C. It has small kernels from the first layer on, and a max
# pool instead of the pyramid, so that it takes images of only this size.
VGG_19 = Arch(
    "vgg_19",
    224,
    (
        *_stage("conv1", 2, 64, 3),
        MaxPool("pool1", 2),
        *_stage("conv2", 2, 128, 3),
        MaxPool("pool2", 2),
        *_stage("conv3", 4, 256, 3),
        MaxPool("pool3", 2),
        *_stage("conv4", 4, 512, 3),
        MaxPool("pool4", 2),
        *_stage("conv5", 4, 512, 3),
        MaxPool("pool5", 2),
        *_fully_connected(4096, stddev=0.01, stddev_last=0.001),
    ),
)


# Reductions to 32-pixel images. They keep the depth, the order of the layers, the kernel sizes
# (except in the small nets' first layer) and the padding of all later layers. They reduce the
# widths, the pyramid ({4, 2, 1}), and the down-sampling before stage 2, so that no map is smaller
# than the pyramid. Two changes follow from this:
#
# * The hidden fully connected layers take Eq. 14: the paper's std of 0.01 suits inputs in
#   [-128, 128] (§2.2), and the inputs here are smaller. The last layer keeps 0.01.
# * Dropout adds noise of relative size √(rate / ((1 - rate) n)) to a sum over n units. At 256 units
#   a rate of 1/17 adds as much as the paper's 1/2 does at 4096.
_REDUCED_WIDTH = 256
_HIDDEN_STDDEV = math.sqrt(2 / _REDUCED_WIDTH)
_REDUCED_FULLY_CONNECTED = _fully_connected(
    _REDUCED_WIDTH, _HIDDEN_STDDEV, stddev_last=0.01, dropout_rate=1 / 17
)


def _small_reduced(
    depth: int, name: str = "", fully_connected: tuple[Layer, ...] = _REDUCED_FULLY_CONNECTED
) -> Arch:
    """Return a small net of ``depth`` weight layers, all but eight of them in conv3."""
    return Arch(
        name or f"small_{depth}_reduced",
        32,
        (
            Conv("conv1", 16, 3, padding=(1, 1)),
            MaxPool("pool1", 2),
            *_stage("conv2", 4, 16, 2),
            MaxPool("pool2", 2),
            *_stage("conv3", depth - 8, 32, 2),
            SpatialPyramid("spp", (4, 2, 1)),
            *fully_connected,
        ),
    )


# The paper's depths, and others between and above them (`experiments.takeoff`).
SMALL_REDUCED = {depth: _small_reduced(depth) for depth in (14, 18, 22, 26, 30, 36, 44)}
SMALL_14_REDUCED, SMALL_30_REDUCED = SMALL_REDUCED[14], SMALL_REDUCED[30]

# Each differs from SMALL_30_REDUCED in one thing (`experiments.late_start`).
SMALL_30_VARIANTS = (
    _small_reduced(
        30,
        "small_30_reduced_no_dropout",
        _fully_connected(_REDUCED_WIDTH, _HIDDEN_STDDEV, stddev_last=0.01, dropout_rate=0.0),
    ),
    _small_reduced(
        30,
        "small_30_reduced_large_outputs",  # the last layer keeps the variance of its sums
        _fully_connected(
            _REDUCED_WIDTH, _HIDDEN_STDDEV, math.sqrt(1 / _REDUCED_WIDTH), dropout_rate=1 / 17
        ),
    ),
)


def _large_reduced(name: str, convs: int, features: tuple[int, int, int]) -> Arch:
    return Arch(
        name,
        32,
        (
            Conv("conv1", 8, 7, stride=2, padding=(3, 3)),
            *_stages_2_to_4(convs, features),
            SpatialPyramid("spp", (4, 2, 1)),
            *_REDUCED_FULLY_CONNECTED,
        ),
    )


MODEL_A_REDUCED = _large_reduced("model_a_reduced", 5, (16, 32, 32))
MODEL_B_REDUCED = _large_reduced("model_b_reduced", 6, (16, 32, 32))
MODEL_C_REDUCED = _large_reduced("model_c_reduced", 6, (24, 48, 56))


def _large_narrow(name: str, convs: int, features: tuple[int, int, int]) -> Arch:
    """Return a large model with a twelfth to a thirty-second of its widths, on the paper's maps.

    Its images have a quarter of the side, because it lacks the down-sampling before stage 2. From
    there on every map, and the pyramid, has the paper's size, so the zero padding of the last stage
    reaches the same part of its last map as in the paper. In the other reductions it reaches all of
    the map, which biases a test on larger images (docs/findings/large-models.md).
    """
    return Arch(
        name,
        56,
        (
            Conv("conv1", 8, 7, padding=(3, 3)),
            *_stages_2_to_4(convs, features),
            SpatialPyramid("spp", (7, 3, 2, 1)),
            *_REDUCED_FULLY_CONNECTED,
        ),
    )


MODEL_A_NARROW = _large_narrow("model_a_narrow", 5, (8, 16, 16))
MODEL_B_NARROW = _large_narrow("model_b_narrow", 6, (8, 16, 16))
MODEL_C_NARROW = _large_narrow("model_c_narrow", 6, (12, 24, 28))

REGISTRY: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        *(SMALL_14, SMALL_30, MODEL_A, MODEL_B, MODEL_C, VGG_19),
        *(*SMALL_REDUCED.values(), *SMALL_30_VARIANTS),
        *(MODEL_A_REDUCED, MODEL_B_REDUCED, MODEL_C_REDUCED),
        *(MODEL_A_NARROW, MODEL_B_NARROW, MODEL_C_NARROW),
    )
}


def get(name: str) -> Arch:
    """Return the network of a registered name, e.g. 'small_30'; an error lists the valid names."""
    names.check("arch", name, REGISTRY)
    return REGISTRY[name]
