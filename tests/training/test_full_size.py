"""The paper's networks at full width, as they are trained: compiled, not run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.timing import memory
from prelu_jax import arch, compiling, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, state, step

_H100 = 78 * 2**30  # bytes
_BATCH = 128


@pytest.mark.slow
# B has A's layers and more, C has B's with more filters: C needs the most memory.
@pytest.mark.parametrize(
    ("net", "dtype"),
    [
        (arch.MODEL_A, "bfloat16"),
        (arch.MODEL_B, "float32"),
        (arch.MODEL_C, "bfloat16"),
        (arch.MODEL_C, "float32"),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_step_of_the_papers_batch_fits_an_accelerator(net, dtype):
    of = jax.ShapeDtypeStruct
    image = (net.image_size, net.image_size, 3)
    pixels = PixelStatistics(of(image, np.float32), of((), np.float32), of((3, 3), np.float32))
    model = models.build(net, 1000, "prelu", dtype=dtype)
    create = functools.partial(state.create, model, optimizer.sgd(0.01), seed=0, colour=0.1)
    before = jax.eval_shape(create, pixels)
    batch = {"image": of((_BATCH, *image), np.uint8), "label": of((_BATCH,), np.int32)}
    # LLVM's optimisations take almost half of the time and change nothing of the memory.
    compiled = compiling.for_few_calls(step.train_step).lower(before, batch).compile()
    needed = memory(compiled)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(before.params))
    assert needed > 2 * parameters * jnp.dtype("float32").itemsize  # they and their velocity
    assert needed < _H100
