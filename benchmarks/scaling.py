"""Arithmetic model of a step on many devices: bytes, all-reduces, efficiency.

Only the step of one device is measured (docs/results.md). In the model, a collective runs along
rings, one level of the machine after another. A device's transfer over a level takes its bytes over
the bandwidth, plus a latency per hop. `benchmarks.loopback` checks the model as far as possible
without a cluster; docs/scaling.md has the results.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from prelu_jax import arch

BATCH = 128  # images in all in the paper; here also images per device when the batch grows
GRADIENT_BYTES = 4  # float32, as parameters are
ACTIVATION_BYTES = 2  # bfloat16, as the computation is
# SGD reads parameter, gradient and velocity and writes parameter and velocity.
_UPDATE_BYTES = 5 * 4
_BACKWARD = 2 / 3  # share of a step's multiply-adds

# Measured: images a second in whole steps, one H100, bfloat16, batch 128 (docs/results.md).
MEASURED = {"model_a": 4112, "model_b": 3461, "model_c": 1678}


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of a machine whose devices are connected in one way.

    Attributes:
        size: number of units of the level below, e.g. devices of a node, or nodes.
        bandwidth: bytes per second that a device sends over this level.
        latency: seconds per hop.
    """

    size: int
    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one kind, and their connections.

    Attributes:
        name: name in tables.
        peak: floating-point operations per second of a device in bfloat16, dense.
        memory_bandwidth: bytes per second of a device's memory.
        levels: function from the number of devices to their levels, the innermost first.
        torus: levels are the axes of a torus, used at the same time; else one after another.
    """

    name: str
    peak: float
    memory_bandwidth: float
    levels: Callable[[int], tuple[Level, ...]]
    torus: bool = False


def _nodes_of_8(devices: int) -> tuple[Level, ...]:
    inside = math.gcd(devices, 8)
    # Data sheets: NVLink 4, 900 GB/s both ways together (NVIDIA H100 SXM); one 400 Gb/s InfiniBand
    # adapter per GPU (NVIDIA DGX H100). Latencies are those that NCCL assumes for rings on Volta
    # (its tuning.h).
    return (Level(inside, 450e9, 3.4e-6), Level(devices // inside, 50e9, 9.6e-6))


def _torus_of_3_axes(devices: int) -> tuple[Level, ...]:
    axes = [1, 1, 1]
    while math.prod(axes) < devices:
        axes[axes.index(min(axes))] *= 2
    # Data sheet: all-reduce bandwidth 1.1 PB/s of a pod of 4,096 chips with six links each (Google
    # Cloud, TPU v4). Its axes are closed to rings if all are multiples of four; an axis that is
    # not closed has one link instead of two. The latency is an assumption.
    link = 1.1e15 / 4096 / 6
    links = 2 if all(axis % 4 == 0 for axis in axes) else 1
    return tuple(Level(axis, links * link, 1e-6) for axis in sorted(axes))


# Peaks and memory: data sheets, 'NVIDIA H100 SXM' (dense: half of the figure with sparsity) and
# 'TPU v4' (Google Cloud).
H100 = Machine("H100", 989.4e12, 3.35e12, _nodes_of_8)
TPU_V4 = Machine("TPU v4", 275e12, 1.2e12, _torus_of_3_axes, torus=True)
MACHINES = (H100, TPU_V4)


@dataclasses.dataclass(frozen=True)
class Load:
    """Work and data of a network's training step.

    Attributes:
        name: name of the network.
        conv: parameters of convolutions and their rectifiers.
        fc: parameters of fully connected layers and their rectifiers.
        exchanged: values per image that devices exchange if they share the fully connected layers:
            the inputs of each of these layers and the scores.
        measured_seconds: seconds of a step of `BATCH` images on one H100.
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
        """Bytes per image in one direction; gradients take the same way back."""
        return ACTIVATION_BYTES * self.exchanged

    def most_images(self) -> float:
        """Return the images in a group at which sharing sends as much as the all-reduce it saves.

        The all-reduce sends 2 · (g - 1) / g · fc gradients, the exchange 2 · (g - 1) · images / g
        rows.
        """
        return GRADIENT_BYTES * self.fc / self.exchanged_bytes


def load(net: arch.Arch, num_classes: int = 1000, channels: int = 3) -> Load:
    """Return the load of a network with channel-wise PReLU, computed from its records."""
    features, conv, fc, exchanged = channels, 0, 0, 0
    for layer in net.layers:
        match layer:
            case arch.Conv():
                # A kernel, and a bias and a slope per output.
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
    """Return the time until every device has all parts, or its part of their sum.

    Args:
        part: bytes of a device's own part.
        levels: levels of the devices; the innermost is used last, when parts have grown.
        torus: the axes are used at the same time, each for its share of the data.
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
    """Return the time until every device has the sum over all devices.

    Args:
        size: bytes on every device; on one level of n devices the time is 2 · (n - 1) / n · size /
            bandwidth.
        levels: levels of the devices.
        torus: see `gather_seconds`.
    """
    part = size / math.prod(level.size for level in levels)
    return 2 * gather_seconds(part, levels, torus)


def compute_seconds(load: Load, machine: Machine, images: float) -> float:
    """Return the time of forward and backward passes of ``images`` on one device.

    It is derived from the measured step. Two assumptions: another machine reaches the same fraction
    of its peak, and the rate is the same for any number of images, which is too good for few.
    """
    measured = load.measured_seconds - update_seconds(load.parameters, H100)
    return measured / BATCH * images * H100.peak / machine.peak


def update_seconds(parameters: float, machine: Machine) -> float:
    """Return the time of the optimiser's update, which does not depend on the images."""
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
    """Return the time of one step.

    Args:
        load: the network's load.
        machine: the kind of machine.
        devices: number of devices.
        images: images per device.
        shared_over: number of levels, from the innermost, over which the fully connected layers
            are shared: each device of such a group has a part of every layer, for all images of
            the group. 0: every device has the whole layers.
        overlap: sum gradients during the backward pass, as well as possible: the last gradients,
            those of the first layers, are few. The exchange of activations cannot overlap.
        gradient_bytes: bytes per gradient as sent.
    """
    levels = machine.levels(devices)
    group, others = levels[:shared_over], levels[shared_over:]
    fc = load.fc / math.prod(level.size for level in group)
    compute = compute_seconds(load, machine, images)
    reduce = all_reduce_seconds(
        load.conv * gradient_bytes, levels, machine.torus
    ) + all_reduce_seconds(fc * gradient_bytes, others, machine.torus)
    # Forward, activations are gathered; backward, each device gets its part of their gradients.
    exchange = 2 * gather_seconds(images * load.exchanged_bytes, group, machine.torus)
    if overlap:
        reduce = max(0.0, reduce - _BACKWARD * compute)
    return compute + exchange + reduce + update_seconds(load.conv + fc, machine)


def efficiency(load: Load, machine: Machine, devices: int, images: float, **how: Any) -> float:
    """Return images per second and device, relative to one device with `BATCH` images.

    Args:
        load: the network's load.
        machine: the kind of machine.
        devices: number of devices.
        images: images per device.
        **how: see `step_seconds`.
    """
    alone = BATCH / step_seconds(load, machine, 1, BATCH)
    return images / step_seconds(load, machine, devices, images, **how) / alone


def best_group(
    load: Load, machine: Machine, devices: int, images: float, overlap: bool
) -> tuple[int, int]:
    """Return the best number of levels that share fully connected layers, and its devices.

    The group has at least one level with more than one device, if there is one. For the arguments
    see `step_seconds`.
    """
    levels = machine.levels(devices)
    sizes = [math.prod(level.size for level in levels[:n]) for n in range(len(levels) + 1)]
    choices = [n for n, size in enumerate(sizes) if size > 1] or [0]

    def seconds(n: int) -> float:
        return step_seconds(load, machine, devices, images, shared_over=n, overlap=overlap)

    best = min(choices, key=seconds)
    return best, sizes[best]
