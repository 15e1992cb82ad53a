"""What a step costs on many devices, by arithmetic: bytes, all-reduces, efficiency.

Nothing here is measured but the step of one device (docs/results.md). The model: a collective goes
round rings, level by level of the machine; what a device sends over a level takes bytes over
bandwidth, and a latency for every hop. `benchmarks.loopback` checks it as far as that goes without
a cluster; docs/scaling.md tells what follows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from prelu_jax import arch

BATCH = 128  # images: the paper's, in all; here also what a device takes when the batch grows
GRADIENT_BYTES = 4  # float32, as parameters are
ACTIVATION_BYTES = 2  # bfloat16, as the computation is
# SGD reads parameter, gradient and velocity and writes two of them, whatever the batch.
_UPDATE_BYTES = 5 * 4
_BACKWARD = 2 / 3  # of a step's multiply-adds

# Measured: images a second in whole steps, one H100, bfloat16, batch 128 (docs/results.md).
MEASURED = {"model_a": 4112, "model_b": 3461, "model_c": 1678}


@dataclasses.dataclass(frozen=True)
class Level:
    """Devices that are joined alike.

    Attributes:
        size: how many of the things of the level below: the devices of a node, the nodes.
        bandwidth: bytes a second that a device sends over it.
        latency: seconds a hop.
    """

    size: int
    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of a kind and how they are joined.

    Attributes:
        name: for tables.
        peak: floating-point operations a second of a device in bfloat16, dense.
        memory_bandwidth: bytes a second of a device.
        levels: number of devices -> the levels that they make, the innermost first.
        torus: levels are the axes of a torus, used at once; else one level after another.
    """

    name: str
    peak: float
    memory_bandwidth: float
    levels: Callable[[int], tuple[Level, ...]]
    torus: bool = False


def _nodes_of_8(devices: int) -> tuple[Level, ...]:
    inside = math.gcd(devices, 8)
    # Data sheets: NVLink 4, 900 GB/s both ways together (NVIDIA H100 SXM); one 400 Gb/s InfiniBand
    # adapter a GPU (NVIDIA DGX H100). Latencies are no data sheet's: what NCCL reckons with for
    # rings (its tuning.h, Volta's).
    return (Level(inside, 450e9, 3.4e-6), Level(devices // inside, 50e9, 9.6e-6))


def _torus_of_3_axes(devices: int) -> tuple[Level, ...]:
    axes = [1, 1, 1]
    while math.prod(axes) < devices:
        axes[axes.index(min(axes))] *= 2
    # Data sheet: all-reduce bandwidth 1.1 PB/s of a pod of 4,096 chips with six links each (Google
    # Cloud, TPU v4). Its axes close to rings where all are multiples of four; an axis that does
    # not close has one link to go round by instead of two. The latency is an assumption.
    link = 1.1e15 / 4096 / 6
    links = 2 if all(axis % 4 == 0 for axis in axes) else 1
    return tuple(Level(axis, links * link, 1e-6) for axis in sorted(axes))


# Peaks and memory: data sheets, 'NVIDIA H100 SXM' (dense: half of what it says with sparsity) and
# 'TPU v4' (Google Cloud).
H100 = Machine("H100", 989.4e12, 3.35e12, _nodes_of_8)
TPU_V4 = Machine("TPU v4", 275e12, 1.2e12, _torus_of_3_axes, torus=True)
MACHINES = (H100, TPU_V4)


@dataclasses.dataclass(frozen=True)
class Load:
    """What a network brings along.

    Attributes:
        name: of the network.
        conv: parameters of convolutions and their rectifiers.
        fc: those of fully connected layers.
        exchanged: values an image that devices which share the fully connected layers tell each
            other: the inputs of each of these layers and the scores.
        measured_seconds: a step of `BATCH` images on one H100.
    """

    name: str
    conv: int
    fc: int
    exchanged: int
    measured_seconds: float

    @property
    def parameters(self) -> int:
        return self.conv + self.fc

    @property
    def exchanged_bytes(self) -> int:
        """Of an image, one way; gradients go back the same way."""
        return ACTIVATION_BYTES * self.exchanged

    def most_images(self) -> float:
        """With how many images in a group sharing sends as many bytes as the all-reduce it saves.

        That sends 2 · (g - 1) / g · fc gradients; the exchange 2 · (g - 1) · images / g rows.
        """
        return GRADIENT_BYTES * self.fc / self.exchanged_bytes


def load(net: arch.Arch, num_classes: int = 1000, channels: int = 3) -> Load:
    """The load of a network with channel-wise PReLU, from its records."""
    features, conv, fc, exchanged = channels, 0, 0, 0
    for layer in net.layers:
        match layer:
            case arch.Conv():
                # A kernel, and of every output a bias and a slope.
                conv += (layer.kernel_size**2 * features + 2) * layer.features
                features = layer.features
            case arch.SpatialPyramid():
                features *= sum(level**2 for level in layer.levels)
            case arch.Dense():
                fc += (features + 2) * layer.features
                exchanged += features
                features = layer.features
            case arch.Logits():
                fc += (features + 1) * num_classes
                exchanged += features + num_classes
    return Load(net.name, conv, fc, exchanged, BATCH / MEASURED.get(net.name, math.nan))


LOADS = tuple(load(net) for net in (arch.MODEL_A, arch.MODEL_B, arch.MODEL_C))


def gather_seconds(part: float, levels: Sequence[Level], torus: bool = False) -> float:
    """Until every device has every other's part; as long for the sum of parts, left in parts.

    Args:
        part: bytes of a device's own part.
        levels: that the devices make; the innermost comes last, when parts have grown.
        torus: the axes are used at once, each for its share of the data.
    """
    used = [level for level in levels if level.size > 1]
    together = sum(level.bandwidth for level in used)
    seconds = 0.0
    for level in reversed(used):
        bandwidth = together if torus else level.bandwidth
        seconds += (level.size - 1) * (part / bandwidth + level.latency)
        part *= level.size
    return seconds


def all_reduce_seconds(size: float, levels: Sequence[Level], torus: bool = False) -> float:
    """Until every device has the sum over all; 2 · (n - 1) / n · size / bandwidth on one level.

    Args:
        size: bytes on every device.
        levels: that the devices make.
        torus: see `gather_seconds`.
    """
    part = size / math.prod(level.size for level in levels)
    return 2 * gather_seconds(part, levels, torus)


def compute_seconds(load: Load, machine: Machine, images: float) -> float:
    """Forward and backward passes of some images on one device.

    From the measured step; on another machine at the same fraction of its peak, an assumption. At
    the same rate for any number of images, which flatters small ones.
    """
    measured = load.measured_seconds - update_seconds(load.parameters, H100)
    return measured / BATCH * images * H100.peak / machine.peak


def update_seconds(parameters: float, machine: Machine) -> float:
    """The optimiser's part of a step, which is as long for few images as for many."""
    return parameters * _UPDATE_BYTES / machine.memory_bandwidth


def step_seconds(
    load: Load,
    machine: Machine,
    devices: int,
    images: float,
    *,
    shared_over: int = 0,
    overlap: bool = False,
    gradient_bytes: int = GRADIENT_BYTES,
) -> float:
    """One step.

    Args:
        load: of the network.
        machine: what runs it.
        devices: how many.
        images: on each of them.
        shared_over: over how many levels, from the innermost, the fully connected layers are
            shared: each device of such a group has a part of every layer, for all images of the
            group. 0: every device has all of them.
        overlap: gradients are summed while the backward pass goes on, at best: the last to be
            had, those of the first layers, are few. The exchange of activations cannot be hidden.
        gradient_bytes: of one, as it is sent.
    """
    levels = machine.levels(devices)
    group, others = levels[:shared_over], levels[shared_over:]
    fc = load.fc / math.prod(level.size for level in group)
    compute = compute_seconds(load, machine, images)
    reduce = all_reduce_seconds(
        load.conv * gradient_bytes, levels, machine.torus
    ) + all_reduce_seconds(fc * gradient_bytes, others, machine.torus)
    # Forward, activations are gathered; backward, their gradients are summed in parts.
    exchange = 2 * gather_seconds(images * load.exchanged_bytes, group, machine.torus)
    if overlap:
        reduce = max(0.0, reduce - _BACKWARD * compute)
    return compute + exchange + reduce + update_seconds(load.conv + fc, machine)


def efficiency(load: Load, machine: Machine, devices: int, images: float, **how: Any) -> float:
    """Images a second and device, over those of one device with `BATCH` images.

    Args:
        load: of the network.
        machine: what runs it.
        devices: how many.
        images: on each of them.
        **how: see `step_seconds`.
    """
    alone = BATCH / step_seconds(load, machine, 1, BATCH)
    return images / step_seconds(load, machine, devices, images, **how) / alone


def best_group(
    load: Load, machine: Machine, devices: int, images: float, overlap: bool
) -> tuple[int, int]:
    """Over how many levels to share the fully connected layers: the levels, the devices in them.

    At least one level with more than one device, if there is one. For the arguments see
    `step_seconds`.
    """
    levels = machine.levels(devices)
    sizes = [math.prod(level.size for level in levels[:n]) for n in range(len(levels) + 1)]
    choices = [n for n, size in enumerate(sizes) if size > 1] or [0]

    def seconds(n: int) -> float:
        return step_seconds(load, machine, devices, images, shared_over=n, overlap=overlap)

    best = min(choices, key=seconds)
    return best, sizes[best]
