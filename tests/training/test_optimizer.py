import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from prelu_jax.decay import decay_mask
from prelu_jax.training import optimizer, state, step
from tests.training.conftest import make_batch, make_state


def test_velocity_follows_eq_4_with_decay_on_kernels_alone():
    rate, momentum, decay = 0.1, 0.9, 0.01
    sgd = optimizer.sgd(rate, momentum, decay).descent
    params = {"conv": {"kernel": jnp.float32(2.0), "bias": jnp.float32(2.0)}}
    grads = {"conv": {"kernel": jnp.float32(0.5), "bias": jnp.float32(0.5)}}
    opt_state = sgd.init(params)
    kernel = bias = 2.0
    v_kernel = v_bias = 0.0
    for scale in (1.0, 1.0, 0.1, 0.1):  # the velocity keeps the rate it was made with
        updates, opt_state = sgd.update(grads, opt_state, params, rate_scale=jnp.float32(scale))
        params = optax.apply_updates(params, updates)
        v_kernel = momentum * v_kernel + rate * scale * (0.5 + decay * kernel)
        v_bias = momentum * v_bias + rate * scale * 0.5
        kernel, bias = kernel - v_kernel, bias - v_bias
    np.testing.assert_allclose(params["conv"]["kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(params["conv"]["bias"], bias, rtol=1e-6)


def test_slopes_and_biases_do_not_decay():
    params = make_state("prelu").params
    decays = decay_mask(params)
    assert decays["conv1"] == {"kernel": True, "bias": False}
    assert decays["conv1_prelu"] == {"negative_slope": False}


def test_the_rate_drops_tenfold_on_a_plateau_and_no_further_than_its_minimum():
    run = make_state(learning_rate=0.01, plateau_patience=2, min_learning_rate=1e-4)
    scales = []
    for error in (0.9, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4):
        run = state.observe_error(run, error)
        scales.append(float(run.plateau.scale))
    assert scales == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])


def test_the_rate_drops_after_given_steps_whatever_the_error_does():
    run = make_state(learning_rate=0.01, plateau_patience=1, drop_steps=(3, 5), weight_decay=0.0)
    scales, updates = [], []
    step_once = jax.jit(step.train_step)
    for _ in range(7):
        scales.append(float(run.rate_scale))
        run = state.observe_error(run, 0.9)  # a plateau from the first on
        still = run.replace(velocity=jax.tree.map(jnp.zeros_like, run.velocity))
        run, _ = step_once(still, make_batch())
        moved = run.params["conv1"]["kernel"] - still.params["conv1"]["kernel"]
        updates.append(float(jnp.linalg.norm(moved)))
    assert scales == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert 5 < updates[2] / updates[3] < 20
    assert 5 < updates[4] / updates[5] < 20


def test_equal_recipes_are_one_object():
    assert optimizer.sgd(0.01) is optimizer.sgd(0.01)
    assert optimizer.sgd(0.01) is not optimizer.sgd(0.02)


BOXES = {
    "with_partitioning": nn.with_partitioning,
    "with_logical_partitioning": nn.with_logical_partitioning,
}


@pytest.mark.parametrize("boxed", BOXES.values(), ids=BOXES)
def test_the_decay_mask_fits_partitioned_parameters_and_the_unboxed_ones(boxed):
    init = nn.initializers
    layer = nn.Dense(
        4,
        kernel_init=boxed(init.he_normal(), (None, "model")),
        bias_init=boxed(init.ones, ("model",)),
    )
    params = layer.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    mask = decay_mask(params)
    assert mask == {"kernel": True, "bias": False}
    for tree in (params, nn.meta.unbox(params)):
        decay = optax.add_decayed_weights(0.5, mask=mask)
        zeros = jax.tree.map(jnp.zeros_like, tree)
        updates = nn.meta.unbox(decay.update(zeros, decay.init(tree), tree)[0])
        np.testing.assert_array_equal(updates["kernel"], 0.5 * nn.meta.unbox(params)["kernel"])
        np.testing.assert_array_equal(updates["bias"], 0.0)


def test_parameters_without_names_are_refused():
    for params in ([jnp.ones(3)], nnx.Linear(2, 2, rngs=nnx.Rngs(0))):
        with pytest.raises(TypeError, match=r"a parameter has no name; expected.*nnx\.state"):
            decay_mask(params)
