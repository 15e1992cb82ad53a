"""Plain nets of any depth, and many runs of one net side by side.

A plain net has no normalisation and no shortcut (He et al. 2015). Its hidden layers are one scan,
so that 200 of them compile as fast as 14. The runs of a net differ only in seed and learning rate,
and one jitted program trains all of them: a single small net leaves most of a processor idle.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prelu_jax import rectifiers
from prelu_jax.data import decoding, sources
from prelu_jax.initializers import Initializer
from prelu_jax.modules import PReLU

Params = Any
_LAST = "last_hidden"


class PlainNet(nn.Module):
    """A plain net whose hidden layers have one width.

    Attributes:
        depth: number of weighted layers, at least 3.
        width: of the hidden layers, in features or channels.
        num_classes: number of scores.
        slope: negative slope of the rectifiers, before training where they learn it.
        learned: whether the slopes are parameters (PReLU).
        kernel_size: side of the kernels; 0 for dense layers, which read the image as one vector.
        initializer: of every kernel; biases are 0.
    """

    depth: int
    width: int
    num_classes: int
    slope: float
    learned: bool
    kernel_size: int
    initializer: Initializer

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the scores ``[b, num_classes]`` of images ``[b, h, w, channels]``."""
        x = images if self.kernel_size else images.reshape(len(images), -1)
        x = _weights(self.width, self.kernel_size, self.initializer, "first")(x)
        hidden = nn.scan(
            _HiddenLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth - 2,
        )
        x, _ = hidden(self.slope, self.learned, self.kernel_size, self.initializer, name="hidden")(
            x, None
        )
        self.sow("intermediates", _LAST, x)
        x = _rectify(x, self.slope, self.learned, "last_rectifier")
        x = x.mean(axis=(1, 2)) if self.kernel_size else x
        scores: jax.Array = _weights(self.num_classes, 0, self.initializer, "scores")(x)
        return scores


class _HiddenLayer(nn.Module):
    """A rectifier, and weights that keep the width; one step of the scan."""

    slope: float
    learned: bool
    kernel_size: int
    initializer: Initializer

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = _rectify(x, self.slope, self.learned, "rectifier")
        return _weights(x.shape[-1], self.kernel_size, self.initializer, "layer")(x), None


def _weights(features: int, kernel_size: int, initializer: Initializer, name: str) -> nn.Module:
    if kernel_size:
        return nn.Conv(features, (kernel_size,) * 2, kernel_init=initializer, name=name)
    return nn.Dense(features, kernel_init=initializer, name=name)


def _rectify(x: jax.Array, slope: float, learned: bool, name: str) -> jax.Array:
    if learned:
        return PReLU(negative_slope_init=slope, name=name)(x)
    return rectifiers.leaky_relu(x, slope)


class Examples(NamedTuple):
    """Images ``[n, h, w, channels]`` and their labels ``[n]``."""

    images: Any
    labels: Any


class Data(NamedTuple):
    """Splits of a dataset.

    Attributes:
        train: the training examples without the held-out ones.
        validation: the held-out ones.
        test: the test split.
    """

    train: Examples
    validation: Examples
    test: Examples


class Outcome(NamedTuple):
    """Results of runs side by side, ``[runs]`` each.

    Attributes:
        finite: whether the loss was finite at every step; if not, the run diverged.
        validation_error: fraction of the held-out training examples that are misclassified after
            training, 1 if the run diverged.
        test_error: the same for the test split.
        cosine_before: mean cosine between the last hidden layer's outputs for different examples of
            the test split, before training.
        cosine_after: the same after training.
    """

    finite: Any
    validation_error: Any
    test_error: Any
    cosine_before: Any
    cosine_after: Any


def load(
    dataset: str, test_split: str, data_dir: str, side: int, held_out: int, test_examples: int
) -> Data:
    """Return resized images, less their training mean and divided by their training rms.

    Args:
        dataset, data_dir: as `sources.load` takes them.
        test_split: name of the test split.
        side: height and width in pixels; images are stretched to it.
        held_out: number of training examples to hold out for validation.
        test_examples: number of test examples, 0 for all.

    Raises:
        ValueError: the dataset is not prepared, or no training examples are left.
    """
    train = sources.load(dataset, "train", data_dir)
    test = sources.load(dataset, test_split, data_dir)
    if held_out >= len(train):
        raise ValueError(
            f"config.held_out is {held_out}, expected fewer than the {len(train)} training "
            f"examples of {dataset}."
        )
    images, labels = _read(train, len(train), side)
    order = np.random.default_rng(0).permutation(len(images))
    validation, kept = order[:held_out], order[held_out:]
    mean = images[kept].mean(axis=0)
    rms = np.sqrt(np.square(images[kept] - mean).mean())
    test_images, test_labels = _read(test, min(test_examples or len(test), len(test)), side)
    images, test_images = (images - mean) / rms, (test_images - mean) / rms
    return Data(
        Examples(images[kept], labels[kept]),
        Examples(images[validation], labels[validation]),
        Examples(test_images, test_labels),
    )


def _read(split: sources.Split, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``[n, side, side, 3]`` and labels ``[n]``."""
    records = [split[i] for i in range(count)]
    images = [
        cv2.resize(decoding.decode(record, side), (side, side), interpolation=cv2.INTER_AREA)
        for record in records
    ]
    labels = [record["label"] for record in records]
    return np.stack(images).astype(np.float32), np.array(labels, np.int32)


@dataclasses.dataclass(frozen=True)
class Training:
    """Stochastic gradient descent of a fixed number of steps at a constant rate.

    Attributes:
        num_steps: number of steps.
        batch_size: examples per step, drawn with replacement.
        momentum: decay of the velocity, from 0 to below 1.
    """

    num_steps: int
    batch_size: int
    momentum: float


def train(
    net: PlainNet,
    training: Training,
    params: Params,
    rates: np.ndarray,
    keys: jax.Array,
    data: Data,
) -> Outcome:
    """Train runs side by side, on all devices, and return the outcome of each.

    Args:
        net: the net; its initialiser is not used.
        training: steps, batch size and momentum.
        params: of every run, stacked along axis 0.
        rates: the learning rate of every run, ``[runs]``.
        keys: the key of every run's batches, ``[runs]``.
        data: shared by all runs.
    """
    mesh = Mesh(np.array(jax.devices()), ("runs",))
    runs = len(rates)
    # Every device takes as many runs as the others; a few are computed twice.
    taken = np.arange(-(-runs // mesh.size) * mesh.size) % runs
    own = jax.tree.map(lambda part: part[taken], (params, jnp.asarray(rates), keys))
    own = jax.device_put(own, NamedSharding(mesh, PartitionSpec("runs")))
    shared = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    outcome = _train(net, training, *own, shared)
    return Outcome(*(np.asarray(part)[:runs] for part in outcome))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(
    net: PlainNet,
    training: Training,
    params: Params,
    rates: jax.Array,
    keys: jax.Array,
    data: Data,
) -> Outcome:
    descent = optax.sgd(1.0, training.momentum)

    def run(params: Params, rate: jax.Array, key: jax.Array) -> Outcome:
        def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            chosen = jax.random.randint(
                jax.random.fold_in(key, number), (training.batch_size,), 0, len(data.train.labels)
            )
            batch = Examples(*(part[chosen] for part in data.train))
            loss, gradients = jax.value_and_grad(_loss)(params, net, batch)
            updates, state = descent.update(gradients, state)
            params = jax.tree.map(lambda p, update: p + rate * update, params, updates)
            return (params, state), loss

        before = mean_cosine(last_hidden(net, params, data.test.images))
        first = (params, descent.init(params))
        (params, _), losses = jax.lax.scan(step, first, jnp.arange(training.num_steps))
        finite = jnp.isfinite(losses).all()
        validation_error, test_error = (
            jnp.where(finite, _error(params, net, part), 1.0)
            for part in (data.validation, data.test)
        )
        after = mean_cosine(last_hidden(net, params, data.test.images))
        return Outcome(finite, validation_error, test_error, before, after)

    outcome: Outcome = jax.vmap(run)(params, rates, keys)
    return outcome


def last_hidden(net: PlainNet, params: Params, images: jax.Array) -> jax.Array:
    """Return the outputs of the last hidden layer, before its rectifier, ``[b, ..., width]``."""
    _, variables = net.apply({"params": params}, images, mutable=["intermediates"])
    outputs: jax.Array = variables["intermediates"][_LAST][0]
    return outputs


def _scores(params: Params, net: PlainNet, images: jax.Array) -> jax.Array:
    scores: Any = net.apply({"params": params}, images)
    return jnp.asarray(scores)


def _loss(params: Params, net: PlainNet, batch: Examples) -> jax.Array:
    scores = _scores(params, net, batch.images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels))


def _error(params: Params, net: PlainNet, examples: Examples) -> jax.Array:
    predicted = _scores(params, net, examples.images).argmax(axis=-1)
    return jnp.mean(predicted != examples.labels)


def mean_cosine(outputs: jax.Array) -> jax.Array:
    """Return the mean cosine between the outputs ``[b, ...]`` of different examples."""
    vectors = outputs.reshape(len(outputs), -1)
    # Neither the squares of a vanished signal nor those of an exploded one fit in float32.
    vectors = vectors / jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    unit = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    n = len(unit)
    # The sum over all pairs of u_i · u_j is |Σ u_i|²; the n pairs of equals are 1 each.
    return (jnp.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1))
