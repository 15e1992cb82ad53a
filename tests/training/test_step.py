import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prelu_jax import compiling
from prelu_jax.data import augment
from prelu_jax.training import step
from prelu_jax.training.parallel import AXIS, Parallel
from tests.training.conftest import assert_trees_equal, make_batch, make_state, one_device

four = Parallel(jax.local_devices()[:4])


def test_a_step_is_sgd_on_the_mean_cross_entropy():
    state = make_state("prelu", flip=False, weight_decay=0.0)
    batch = make_batch()

    def loss_fn(params):  # the same once more, without the step's machinery
        x = augment.normalize(jnp.asarray(batch["image"]), state.pixels)
        keys = {"dropout": step.stream(0, "dropout", 0)}
        scores = state.model.apply({"params": params}, x, train=True, rngs=keys)
        return -jax.nn.log_softmax(scores)[jnp.arange(16), batch["label"]].mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(state.params)
    new_state, metrics = jax.jit(step.train_step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = optax.apply_updates(state.params, jax.tree.map(lambda g: -0.05 * g, grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        new_state.params,
        expected,
    )
    rms = np.sqrt(np.mean(np.square(grads["conv1"]["kernel"])))
    np.testing.assert_allclose(metrics["grad_rms"]["conv1"]["kernel"], rms, rtol=1e-4)
    assert metrics["slope_mean"]["conv1_prelu"] == 0.25
    assert int(new_state.step) == 1


def take(parallel, steps, seed=0):
    state = parallel.replicate(make_state(seed=seed))
    losses = []
    for s in range(steps):
        state, metrics = parallel.train_step(state, parallel.split(make_batch(seed=s)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def test_four_devices_compute_what_one_does():
    alone, losses_alone = take(one_device(), 20)
    shared, losses_shared = take(four, 20)
    np.testing.assert_allclose(losses_shared, losses_alone, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        shared.params,
        alone.params,
    )


def test_replicas_stay_identical():
    def mapped(state, batch):
        return step.train_step(state, batch, axis_name=AXIS)[0]

    state = jax.tree.map(lambda a: jnp.stack([a] * 4), make_state())
    each = jax.pmap(mapped, AXIS)  # out_axes=0: the arrays of every device
    for s in range(5):
        batch = {k: v.reshape(4, 4, *v.shape[1:]) for k, v in make_batch(seed=s).items()}
        state = each(state, batch)
    first = jax.tree.map(lambda a: a[0], state)
    for replica in range(1, 4):
        assert_trees_equal(jax.tree.map(lambda a, r=replica: a[r], state), first)


@pytest.mark.parametrize("parallel", [one_device(), four], ids=["one device", "four devices"])
def test_the_step_compiles_once_for_runs_that_differ_in_seed_alone(parallel):
    take(parallel, 1)
    compiled = []
    listener = lambda event, *_, **__: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        take(parallel, 3, seed=1)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in compiled if "backend_compile" in event]


@pytest.mark.parametrize("parallel", [one_device(), four], ids=["one device", "four devices"])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(parallel):
    """With flips, colours and dropout: an example meets its own in any part."""
    batch = make_batch()
    whole = make_state().replace(colour=0.1)
    state, metrics = jax.jit(step.train_step)(whole, batch)
    parts = parallel.replicate(whole.replace(accumulate=4))
    of_parts, metrics_of_parts = parallel.train_step(parts, parallel.split(batch))
    for a, b in ((state.velocity, of_parts.velocity), (metrics, metrics_of_parts)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-6), a, b)


def test_a_batch_in_parts_needs_less_memory():
    def needed(parts):
        state = make_state().replace(accumulate=parts)
        # LLVM's optimisations, left out here, change nothing of the memory.
        compiled = compiling.for_few_calls(step.train_step).lower(state, make_batch(256)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(8) < needed(1) / 4


def test_flipping_and_dropout_are_drawn_anew_each_step():
    state = make_state("relu", learning_rate=1e-9)
    losses = []
    for _ in range(3):
        state, metrics = jax.jit(step.train_step)(state, make_batch())
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3


def test_colours_are_drawn_alike_on_any_number_of_devices_and_anew_each_step():
    state = make_state("relu", flip=False).replace(colour=0.1)
    batch = make_batch()

    def images(state, batch, axis_name=None):
        return step.inputs(state, batch["image"], step.first_of_part(batch, axis_name)).images

    alone = jax.jit(images)(state, batch)
    mapped = jax.pmap(lambda *args: images(*args, axis_name=AXIS), AXIS, in_axes=(None, 0))
    np.testing.assert_allclose(np.concatenate(mapped(state, four.split(batch))), alone, atol=1e-6)
    plain = augment.normalize(jnp.asarray(batch["image"]), state.pixels)
    later = jax.jit(images)(state.replace(step=state.step + 1), batch)
    added, added_later = ((x - plain)[:, 0, 0] for x in (alone, later))
    assert (abs(added - added_later) > 1e-6).all()
    std = 0.1 * 0.1 * 255 / 64  # of a, its eigenvalue, the pixels' unit
    assert abs(np.std(added) / std - 1) < 5 / np.sqrt(2 * added.size)


def test_a_batch_that_devices_cannot_share_is_refused():
    four.check_batch_size(16)
    with pytest.raises(ValueError, match="batch_size is 18, expected a multiple of the 4 devices"):
        four.check_batch_size(18)
