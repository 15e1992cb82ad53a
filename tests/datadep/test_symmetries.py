import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from prelu_jax.datadep.symmetries import RescalingSymmetries, find
from tests.signal import nets


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


class Chain(nn.Module):
    depth: int = 4

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = nn.relu(nn.Conv(5, (3, 3), name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), (1, 1), "SAME")
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        narrow = nn.relu(nn.Conv(3, (1, 1), name="narrow")(x))
        wide = nn.relu(nn.Conv(3, (3, 3), name="wide")(nn.relu(nn.Conv(2, (1, 1), name="in")(x))))
        pooled = nn.avg_pool(x, (3, 3), (1, 1), "SAME")
        x = jnp.concatenate([narrow, wide, nn.leaky_relu(nn.Conv(2, (1, 1))(pooled))], axis=-1)
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm(name="norm")(nn.Dense(6, name="before")(x)))
        x = nn.relu(nn.Dense(6, name="between")(x))
        return nn.Dense(3, name="head")(nn.BatchNorm(use_running_average=True, name="eval")(x))


class Tanh(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="first")(x))
        x = jnp.tanh(nn.Dense(6, name="second")(x))
        x = nn.relu(nn.Dense(6, name="third")(x))
        return nn.Dense(3, name="head")(x)


NETS = {name: (net.linen, net.shape) for name, net in nets.NETS.items()} | {
    "chain": (Chain(), (3, 5, 5, 2)),
    "inception": (Inception(), (3, 5, 5, 2)),
    "normed": (Normed(), (4, 5)),
    "tanh": (Tanh(), (4, 5)),
}


def built(model, shape):
    """A function of flat parameters and inputs, random parameters in float64, inputs."""
    x = nets.images(*shape).astype(jnp.float64)
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), nets.drawn(model, x))
    rest = {name: leaves for name, leaves in variables.items() if name != "params"}

    def function(parameters, x):
        params = flax.traverse_util.unflatten_dict(parameters, sep="/")
        return model.apply({"params": params, **rest}, x)

    return function, nets.flat(variables), x


def split(names):
    """Kernels, and everything else."""
    kernels = [name for name in names if name.endswith("kernel")]
    return kernels, [name for name in names if name not in kernels]


def rescaled(parameters, u):
    return {name: leaf * np.exp(u.get(name, 0.0)) for name, leaf in parameters.items()}


def null_space(rows):
    _, singular, basis = np.linalg.svd(rows)
    return basis[np.count_nonzero(singular > 1e-9 * singular.max(initial=1e-99)) :]


def true_dimension(function, parameters, *args):
    """How many independent rescalings leave the outputs as they are, at 3 random points at once."""
    names = list(parameters)
    rng = np.random.default_rng(2)

    @jax.jit
    def jacobian(parameters):
        def outputs(u):
            u = dict(zip(names, u, strict=True))
            moved = {name: leaf * jnp.exp(u[name]) for name, leaf in parameters.items()}
            return jnp.concatenate([y.ravel() for y in jax.tree.leaves(function(moved, *args))])

        return jax.jacfwd(outputs)(jnp.zeros(len(names)))

    points = [
        {k: v * (1 + 0.5 * rng.standard_normal(v.shape)) for k, v in parameters.items()}
        for _ in range(3)
    ]
    return len(null_space(np.concatenate([jacobian(point) for point in points])))


# --- Whole networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_nearest_rescaling_leaves_the_outputs(name):
    function, parameters, x = built(*NETS[name])
    kernels, others = split(parameters)
    found = find(function, parameters, x)
    wanted = dict(zip(kernels, np.random.default_rng(3).normal(size=len(kernels)), strict=True))
    u = found.project(wanted, others)
    assert set(u) == set(parameters)
    run = jax.jit(function)
    expected = run(parameters, x)
    np.testing.assert_allclose(run(rescaled(parameters, u), x), expected, rtol=1e-9, atol=1e-12)
    held = found.fixed(kernels, others)
    assert {name for name in kernels if u[name] == 0.0} == held
    if len(held) < len(kernels):  # the outputs do see a change that is not allowed
        alone = {name: u[name] for name in kernels}
        moved = run(rescaled(parameters, alone), x)
        assert np.max(np.abs(moved - expected)) > 1e-3 * np.max(np.abs(expected))


@pytest.mark.parametrize("name", NETS)
def test_no_rescaling_is_missed(name):
    function, parameters, x = built(*NETS[name])
    found = find(function, parameters, x).constraints
    # Softmax does not see the key's bias, the same for all keys: algebra, not homogeneity.
    missed = 1 if name == "transformer" else 0
    assert len(null_space(found)) == true_dimension(function, parameters, x) - missed


def test_on_a_chain_the_factors_are_those_of_the_geometric_mean():
    function, parameters, x = built(*NETS["chain"])
    kernels = [*(f"conv_{i}/kernel" for i in range(4)), "head/kernel"]
    biases = [name.replace("kernel", "bias") for name in kernels]
    wanted = np.random.default_rng(4).normal(size=5)
    u = find(function, parameters, x).project(dict(zip(kernels, wanted, strict=True)), biases)
    expected = wanted - wanted.mean()
    np.testing.assert_allclose([u[name] for name in kernels], expected, atol=1e-12)
    np.testing.assert_allclose([u[name] for name in biases], np.cumsum(expected), atol=1e-12)


def test_in_a_residual_branch_one_kernel_makes_up_for_the_other():
    function, parameters, x = built(*NETS["residual"])
    _, others = split(parameters)
    wanted = dict.fromkeys(("a_0/kernel", "b_0/kernel", "a_1/kernel", "b_1/kernel"), 0.0)
    wanted["a_0/kernel"] = 1.0
    found = find(function, parameters, x)
    u = found.project(wanted, others)
    assert u["a_0/kernel"] == pytest.approx(0.5)
    assert u["b_0/kernel"] == pytest.approx(-0.5)
    assert u["a_0/bias"] == pytest.approx(0.5)
    assert [u["a_1/kernel"], u["b_0/bias"]] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert found.fixed(wanted, ()) == set(wanted)  # no kernel moves where biases may not follow


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("shared", {"shared", "head"}),
        ("tanh", set()),
        ("normed", {"before", "between", "head"}),  # by eps, and by the running mean
        ("transformer", {"up", "down", "head"}),
    ],
)
def test_what_an_operation_holds_is_named(name, held):
    function, parameters, x = built(*NETS[name])
    kernels, others = split(parameters)
    biases = [name for name in others if name.endswith("bias")]  # norms' scales are fixed
    found = find(function, parameters, x).fixed(kernels, biases)
    assert found == {f"{layer}/kernel" for layer in held}


@pytest.mark.parametrize("pair", [("query", "key"), ("value", "out")])
def test_attention_has_two_pairs_that_trade(pair):
    function, parameters, x = built(*NETS["transformer"])
    first, second = (f"attention/{name}" for name in pair)
    wanted = {f"{first}/kernel": 1.0, f"{second}/kernel": -1.0}
    biases = [f"{first}/bias", f"{second}/bias"]
    u = find(function, parameters, x).project(wanted, biases)
    assert [u[name] for name in wanted] == pytest.approx([1.0, -1.0])
    assert [u[name] for name in biases] == pytest.approx([1.0, -1.0 if pair[1] == "key" else 0.0])


# --- Single operations ---------------------------------------------------------------------------

# f(a, b); it is looked at times c, so that a degree that is not 0 can be made up for.
EXACT = {
    "sum": lambda a, b: a + b,
    "of a constant": lambda a, b: a + 1.0,
    "of zeros": lambda a, b: a + jnp.zeros(4) + np.zeros(4),
    "product": lambda a, b: a * b,
    "matrix product": lambda a, b: a @ b,
    "quotient": lambda a, b: a / b,
    "powers": lambda a, b: jnp.abs(a) ** 0.1 * jnp.abs(a) ** 0.2 + jnp.abs(a) ** 0.3,
    "third power": lambda a, b: a**3 + a**2 * b,
    "inverse": lambda a, b: a**-1 + jax.lax.rsqrt(b**2),
    "root": lambda a, b: jnp.sqrt(jnp.abs(a)) + b,
    "traced exponent": lambda a, b: jnp.abs(a) ** b,
    "maximum": lambda a, b: jnp.maximum(a, b),
    "maximum with -inf": lambda a, b: jnp.maximum(a, -jnp.inf),
    "relu": lambda a, b: jax.nn.relu(a),
    "elu": lambda a, b: jax.nn.elu(a),
    "leaky_relu": lambda a, b: jax.nn.leaky_relu(a),
    "choice": lambda a, b: jnp.where(a > 0, a, b),
    "choice of 0": lambda a, b: jnp.where(b > 0, a, 0),
    "sort": lambda a, b: jnp.sort(a) + jnp.cumsum(b, axis=0),
    "argmax": lambda a, b: a[jnp.argmax(b)],
    "take": lambda a, b: jnp.take(a, jnp.array([0, 2]), axis=0) + b[:2],
    "standardised": lambda a, b: (a - a.mean()) / jnp.std(a),
    "standardised, eps": lambda a, b: (a - a.mean()) / jnp.sqrt(a.var() + 1e-2) * b,
    "norm": lambda a, b: a / jnp.linalg.norm(b),
    "softmax": lambda a, b: jax.nn.softmax(a @ b),
    "pad": lambda a, b: jnp.pad(a, 1) @ jnp.pad(b, 1),
    "update": lambda a, b: a.at[0].set(b[0]).at[1].add(b[1]),
    "written into zeros": lambda a, b: jnp.zeros((6, 4)).at[:4].set(a),
    "moved": lambda a, b: jnp.stack([a.T[::-1], b.reshape(4, 4)]),
    "split": lambda a, b: jnp.split(a, 2)[0] + b[:2],
    "pooled": lambda a, b: nn.max_pool(a[None, ..., None], (2, 2)) * nn.avg_pool(b[None], (2,)),
    "jit": lambda a, b: jax.jit(jnp.hypot)(a, 1.0) + jax.jit(lambda a, b: a * b)(a, b),
    "remat": lambda a, b: jax.checkpoint(lambda a, b: a * b)(a, b),
    "vmap": lambda a, b: jax.vmap(jnp.dot)(a, b),
    "gradient": lambda a, b: jax.grad(lambda x: jnp.sum(jax.nn.relu(a * x) ** 2))(b),
    "scan": lambda a, b: jax.lax.scan(lambda x, row: (x + row * b[0], x), jnp.zeros(4), a),
    "scan, relu": lambda a, b: jax.lax.scan(
        lambda h, x: (jax.nn.relu(a @ h + b @ x), h), jnp.zeros(4), jnp.eye(4)
    ),
    "only what is returned": lambda a, b: (a * b, jnp.tanh(a))[0],
}
CAUTIOUS = {  # here and there more would be allowed than one move, but not for all values
    "choice by comparison": lambda a, b: jnp.where(a > b, 1.0, 0.0) * a,
    "cond": lambda a, b: jax.lax.cond(jnp.sum(a) > 0, lambda: a * b, lambda: a**2),
    "scan of powers": lambda a, b: jax.lax.scan(lambda x, row: (x * row, x), a[0], b)[0],
}


def times_c(operation):
    return lambda p: jax.tree.map(lambda y: y * p["c"], operation(p["a"], p["b"]))


def drawn():
    rng = np.random.default_rng(5)
    matrices = rng.standard_normal((2, 4, 4))
    return {"a": jnp.asarray(matrices[0]), "b": jnp.asarray(matrices[1]), "c": jnp.array(1.5)}


@pytest.mark.parametrize("name", EXACT | CAUTIOUS)
def test_degrees_of_operations(name):
    function, parameters = times_c((EXACT | CAUTIOUS)[name]), drawn()
    found = find(function, parameters)
    allowed = null_space(found.constraints)
    assert len(allowed) == (1 if name in CAUTIOUS else true_dimension(function, parameters))
    run = jax.jit(function)
    expected = jax.tree.leaves(run(parameters))
    for move in allowed:
        moved = run(rescaled(parameters, dict(zip(found.parameters, move, strict=True))))
        for have, want in zip(jax.tree.leaves(moved), expected, strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-12)


def written(a, b):
    ref = jax.new_ref(b)
    ref[...] = a
    return ref[...]


HOLDS_A = {  # not homogeneous in a, or not known to be
    "sum with a constant": lambda a, b: a + b + 1.0,
    "rounded": lambda a, b: a.astype(jnp.int32).astype(jnp.float64),
    "gap filled with ones": lambda a, b: a.at[jnp.array([9])].get(mode="fill", fill_value=1.0),
    "padded with ones": lambda a, b: jnp.pad(a, 1, constant_values=1.0),
    "clipped": lambda a, b: jnp.clip(a, -1, 1),
    "relu6": lambda a, b: jax.nn.relu6(a),
    "compared": lambda a, b: jnp.where(a > 0.1, b, -b),
    "exponent": lambda a, b: 2.0**a,
    "erf": lambda a, b: jax.lax.erf(a) * b,
    "unknown": lambda a, b: jnp.linalg.qr(a)[0],
    "while": lambda a, b: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, a),
    "scan": lambda a, b: jax.lax.scan(lambda x, row: (x + row, x), b[0] ** 0, a)[0],
    "written": written,
}


@pytest.mark.parametrize("name", HOLDS_A)
def test_anything_else_holds_its_operands(name):
    found = find(times_c(HOLDS_A[name]), drawn())
    assert found.fixed({"a"}, {"b", "c"}) == {"a"}


def test_integers_are_not_rescaled():
    parameters = drawn() | {"n": jnp.arange(4)}
    found = find(lambda p: p["a"][p["n"]] * p["c"], parameters)
    assert found.fixed(parameters, ()) == {"n"}


def test_shapes_are_enough():
    like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in drawn().items()}
    x = jax.ShapeDtypeStruct((2, 4), jnp.float64)
    found = find(lambda p, x: (x @ p["a"] + p["b"][0]) * p["c"], like, x)
    assert found.project({"a": 1.0, "c": 0.0}, {"b"}) == pytest.approx(
        {"a": 0.5, "c": -0.5, "b": 0.5}
    )


# --- The nearest of the allowed ------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_nearest_solves_the_normal_equations(seed):
    rng = np.random.default_rng(seed)
    wishes, n, rows = rng.integers(1, 5), rng.integers(5, 9), rng.integers(0, 6)
    names = [f"p{i}" for i in range(n)]
    constraints = rng.integers(-2, 3, (rows, n)).astype(float)
    movable = names[: n - 1]  # the last one is fixed
    wanted = dict(zip(names[:wishes], rng.normal(size=wishes), strict=True))
    found = RescalingSymmetries(tuple(names), constraints).project(wanted, movable[wishes:])
    # Reference: Σ (wanted - u - c)² by Lagrange's multipliers, unknowns u, c, multipliers.
    m = n - 1
    square = np.zeros((m + 1, m + 1))
    square[range(wishes), range(wishes)] = 1
    square[:wishes, m] = square[m, :wishes] = 1
    square[m, m] = wishes
    sides = np.concatenate([[*wanted.values()], np.zeros(m - wishes), [sum(wanted.values())]])
    edge = np.hstack([constraints[:, :m], np.zeros((rows, 1))])
    matrix = np.block([[square, edge.T], [edge, np.zeros((rows, rows))]])
    solutions = np.linalg.pinv(matrix, rcond=1e-10) @ np.concatenate([sides, np.zeros(rows)])
    u = np.array([found[name] for name in movable])
    np.testing.assert_allclose(constraints[:, :m] @ u, 0, atol=1e-9)

    def cost(u):
        rest = np.array([*wanted.values()]) - u[:wishes]
        return np.sum((rest - rest.mean()) ** 2)

    assert cost(u) == pytest.approx(cost(solutions[:m]), abs=1e-9)
    # The smallest: nothing in it that could be left out at no cost.
    same = np.vstack([constraints[:, :m], np.eye(m)[:wishes] - np.eye(m)[:wishes].mean(axis=0)])
    np.testing.assert_allclose(null_space(same) @ u, 0, atol=1e-9)


def test_a_condition_is_listed_once():
    found = find(lambda p: (p["a"] + p["b"], p["b"] - p["a"], (p["a"] ** 2 + p["b"] ** 2)), drawn())
    assert found.constraints.tolist() == [[1, -1, 0], [1, 0, 0], [0, 1, 0]]


def test_nothing_wanted_nothing_moves():
    found = RescalingSymmetries(("a", "b"), np.array([[1.0, -1.0]]))
    assert found.project({}, {"a", "b"}) == {"a": 0.0, "b": 0.0}
    assert found.project({"a": 3.0}, ()) == {"a": 0.0}
    assert found.project({}, ()) == {}


@pytest.mark.parametrize(
    ("wanted", "follow", "message"),
    [
        ({"z": 1.0}, (), "among the parameters"),
        ({"a": 1.0}, ("a",), "each once"),
        ({"a": np.nan}, (), "finite logs"),
    ],
)
def test_names_and_values_are_checked(wanted, follow, message):
    with pytest.raises(ValueError, match=message):
        RescalingSymmetries(("a", "b"), np.zeros((0, 2))).project(wanted, follow)


def test_nested_parameters_are_refused():
    with pytest.raises(TypeError, match="flatten nested parameters"):
        find(lambda p: p["a"]["b"], {"a": {"b": np.ones(3)}})
