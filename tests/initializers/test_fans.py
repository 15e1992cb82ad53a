import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax.initializers import Layout, fans
from tests.initializers.layers import CASES, STRIDED


def connections(case, strides=1):
    """Count inputs that reach an output and outputs that an input reaches, far from borders.

    With strides both are averages over one period.
    """
    kernel = jnp.ones(case.kernel_shape())

    def apply(x):
        return case.layer.apply({"params": {"kernel": kernel}}, x)

    x = jnp.zeros(case.input_shape)
    jacobian = jax.jacobian(apply)(x)
    outputs = jax.eval_shape(apply, x).shape
    touches = np.asarray(jacobian != 0).reshape(math.prod(outputs), math.prod(x.shape))
    per_output = touches.sum(axis=1).reshape(outputs)
    per_input = touches.sum(axis=0).reshape(x.shape)
    return middle(per_output, strides), middle(per_input, strides)


def middle(counts, period):
    """Return the mean over `period` places in the middle of every axis of positions."""
    for axis in range(1, counts.ndim - 1):
        start = (counts.shape[axis] - period) // 2
        counts = np.take(counts, range(start, start + period), axis=axis)
    return float(counts.mean())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fans_are_the_connections_of_the_layer(case):
    assert case.layout.fans(case.kernel_shape()) == connections(case)


@pytest.mark.parametrize("case", STRIDED.values(), ids=STRIDED)
def test_fans_with_strides_counted_are_the_connections_of_the_layer(case):
    assert case.layout.fans(case.kernel_shape()) == connections(case, strides=2)


def test_stacked_kernels_have_the_fans_of_one():
    assert Layout(batch_axis=0).fans((7, 3, 3, 4, 5)) == fans((3, 3, 4, 5)) == (36, 45)
    assert Layout(in_axis=0, out_axis=2, batch_axis=1).fans((4, 7, 5)) == (4, 5)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        (Layout(), (3,), r"\(3,\) has no fans.*use a constant"),
        (Layout(), (3, 0, 4), r"\(3, 0, 4\) has no weights"),
        (Layout(in_axis=0, out_axis=0), (3, 4), "two roles"),
        (Layout(in_axis=()), (3, 4), "no inputs or no outputs"),
        (Layout(feature_group_count=3), (3, 3, 2, 4), "groups do not divide the output features"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, shape, message):
    with pytest.raises(ValueError, match=message):
        layout.fans(shape)


def test_a_layout_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="strides is 0"):
        Layout(strides=0)
