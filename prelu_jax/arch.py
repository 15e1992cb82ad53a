"""Networks as data: a tuple of layer records, read by `models` (and by nothing framework-bound).

The networks of He et al. 2015 (arXiv:1502.01852) stand here exactly as their Tables 1 and 3 print
them; reductions to 32-pixel images follow. Two things the paper leaves open:

* Padding. The 2×2 convolutions of Table 1 keep the size of their maps, so one row and one column
  is added on one side. It is added before and after **in turn**: padded on one side only, a stack
  of even kernels shifts its signal off the map (docs/findings.md).
* Where the sixteen extra layers of the 30-layer network stand (§2.2). They have 256 filters of
  2×2, which only stage conv3 has.
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
        circular: the padding continues the map around instead of adding zeros.
    """

    name: str
    features: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    circular: bool = False


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Maximum over ``window × window`` tiles; the stride is the window in all these networks."""

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
    """A network: its layers in order, and the side in pixels of the square images it is for."""

    name: str
    image_size: int
    layers: tuple[Layer, ...]


def multiply_adds(arch: Arch, num_classes: int = 1000, channels: int = 3) -> int:
    """Products in one image's forward pass, as the paper's "complexity" counts them (Table 3)."""
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
    """The same network with its size-keeping convolutions padded by another scheme.

    Args:
        arch: any network of this module.
        scheme: 'alternating', kernels of even size are padded before and after in turn;
            'same', always after, as XLA's ``SAME`` does; 'circular', with the map itself.

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
    """The same network with a multiple of every layer's features, but for its outputs.

    The weights of fully connected layers keep the variance of their sums: fan_in · stddev² stays.

    Args:
        arch: any network of this module.
        factor: above 0; a layer has at least one feature.

    Raises:
        ValueError: the factor is not above 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"with_width: factor is {factor}, expected a number above 0.")

    def widened(layer: Layer) -> Layer:
        changes: dict[str, Any] = {}
        if isinstance(layer, Conv | Dense):
            changes["features"] = max(1, round(layer.features * factor))
        if isinstance(layer, Dense | Logits):
            changes["stddev"] = layer.stddev / math.sqrt(factor)
        return dataclasses.replace(layer, **changes)

    return dataclasses.replace(arch, layers=tuple(map(widened, arch.layers)))


def _padding(kernel_size: int, turn: int) -> tuple[int, int]:
    """Padding that keeps the size; an even kernel's odd row goes after, then before, in turn."""
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
    """Table 1 of He et al. 2015 (model E of He & Sun 2015), with more or fewer layers in conv3."""
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
    """The three stages of a large model, ``convs`` layers each."""
    return (
        *_stage("conv2", convs, features[0], 3),
        MaxPool("pool2", 2),
        *_stage("conv3", convs, features[1], 3),
        MaxPool("pool3", 2),
        *_stage("conv4", convs, features[2], 3),
    )


def _large(name: str, convs: int, features: tuple[int, int, int]) -> Arch:
    """Table 3 of He et al. 2015: three stages of ``convs`` layers each."""
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

# What Table 3 sets beside A, B and C: small kernels from the first layer on, and a max pool where
# they have the pyramid, so that it takes images of this one size.
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


# Reductions to 32-pixel images. Kept: the depth, the order of the layers, the size of every kernel
# but that of the small nets' first, the padding of all after it. Reduced: the widths, the pyramid
# ({4, 2, 1}), and the down-sampling before stage 2, so that no map is smaller than the pyramid.
# What followed:
#
# * The hidden fully connected layers take Eq. 14: the paper's std of 0.01 answers inputs in
#   [-128, 128] (§2.2), and these nets are fed smaller ones. The last has 0.01.
# * Dropout disturbs a sum over n units by √(rate / ((1 - rate) n)) of itself. At 256 units a rate
#   of 1/17 disturbs it as much as the paper's 1/2 does at 4096.
_REDUCED_WIDTH = 256
_HIDDEN_STDDEV = math.sqrt(2 / _REDUCED_WIDTH)
_REDUCED_FULLY_CONNECTED = _fully_connected(
    _REDUCED_WIDTH, _HIDDEN_STDDEV, stddev_last=0.01, dropout_rate=1 / 17
)


def _small_reduced(
    depth: int, name: str = "", fully_connected: tuple[Layer, ...] = _REDUCED_FULLY_CONNECTED
) -> Arch:
    """A small net of ``depth`` weight layers, all but eight of them in conv3."""
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


# Those of the paper's depths, and others between and beyond (`experiments.takeoff`).
SMALL_REDUCED = {depth: _small_reduced(depth) for depth in (14, 18, 22, 26, 30, 36, 44)}
SMALL_14_REDUCED, SMALL_30_REDUCED = SMALL_REDUCED[14], SMALL_REDUCED[30]

# One thing changed each (`experiments.late_start`).
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
    """A large model with a sixteenth of its widths or less, and the maps of the paper.

    Its images are a quarter as large, for it lacks the down-sampling before stage 2. From there on
    every map, and the pyramid, has the paper's size: as much of the last map is out of reach of
    the zero padding of its stage as in the paper. In the other reductions nothing is, and a test on
    larger images measures that (docs/findings.md).
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
    """The network of a registered name, e.g. 'small_30'; an unknown name lists the known ones."""
    names.check("arch", name, REGISTRY)
    return REGISTRY[name]
