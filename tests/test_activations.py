"""Moments, cosine maps and tailored slopes: closed forms, Monte Carlo, published values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax import activations, initializers, moment_maps, nnx, rectifiers


def leaky(slope):
    return functools.partial(rectifiers.prelu, negative_slope=slope)


@pytest.mark.parametrize("slope", [0.0, 0.25, -0.5, 1.0])
@pytest.mark.parametrize("variance", [1e-3, 1.0, 50.0])
def test_quadrature_is_the_closed_form_for_rectifiers(slope, variance):
    measured = activations.moments(leaky(slope), variance)
    exact = activations.rectifier_moments(slope, variance)
    for field in ("mean", "second_moment", "derivative_second_moment", "exponent"):
        assert getattr(measured, field) == pytest.approx(getattr(exact, field), rel=1e-12), field
    assert exact.forward == exact.backward == rectifiers.second_moment_gain(slope)
    assert measured.ratio == pytest.approx(1.0, rel=1e-12)


def test_moments_of_channel_slopes_are_means_over_channels():
    slopes = np.array([0.0, 0.1, 0.7])
    together = activations.rectifier_moments(slopes)
    each = [activations.moments(leaky(slope)) for slope in slopes]
    for field in ("mean", "second_moment", "derivative_second_moment"):
        mean = np.mean([getattr(moments, field) for moments in each])
        assert getattr(together, field) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(
    ("activation", "forward", "backward"),
    [(jax.nn.gelu, 0.425, 0.456), (jax.nn.silu, 0.356, 0.380), (jnp.tanh, 0.394, 0.464)],
)
def test_moments_of_smooth_activations(activation, forward, backward):
    moments = activations.moments(activation)
    assert moments.forward == pytest.approx(forward, abs=1e-3)
    assert moments.backward == pytest.approx(backward, abs=1e-3)
    # χ by differences of log E[f²].
    up, down = (activations.moments(activation, q).second_moment for q in (1.0001, 0.9999))
    assert moments.exponent == pytest.approx(math.log(up / down) / math.log(1.0001 / 0.9999), 1e-6)


def test_kinks_anywhere_are_found():
    """Hard tanh at variance 4 and |z - 0.3337| have moments in closed form."""
    cdf, pdf = math.erf(0.5 / math.sqrt(2)), math.exp(-0.125) / math.sqrt(2 * math.pi)
    clipped = activations.moments(jax.nn.hard_tanh, 4.0)
    inside = 4 * (cdf - 2 * 0.5 * pdf)
    assert clipped.second_moment == pytest.approx(inside + 1 - cdf, rel=1e-12)
    assert clipped.derivative_second_moment == pytest.approx(cdf, rel=1e-12)
    shifted = activations.moments(lambda x: jnp.abs(x - 0.3337))
    assert shifted.second_moment == pytest.approx(1 + 0.3337**2, rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.25])
@pytest.mark.parametrize("cosine", [-1.0, -0.3, 0.0, 0.6, 0.99, 0.99999, 1.0])
def test_the_cosine_map_is_the_arc_cosine_kernel_for_rectifiers(slope, cosine):
    exact = moment_maps.rectified_correlation(cosine, slope)
    assert activations.cosine_map(leaky(slope), cosine, 3.0) == pytest.approx(exact, abs=1e-12)
    angle = math.acos(cosine)
    # C' = (a + (1 - a)² (π - arccos c) / 2π) / ((1 + a²) / 2), Cho & Saul 2009, degree 0.
    product = slope + (1 - slope) ** 2 * (math.pi - angle) / (2 * math.pi)
    exact_slope = product / rectifiers.second_moment_gain(slope)
    assert activations.cosine_slope(leaky(slope), cosine) == pytest.approx(exact_slope, abs=1e-10)


def test_channel_slopes_in_the_cosine_map_are_a_mean_over_channels():
    slopes = np.array([0.0, 0.5])
    weights = [activations.moments(leaky(slope)).second_moment for slope in slopes]
    maps = [activations.cosine_map(leaky(slope), 0.4) for slope in slopes]
    mixed = np.average(maps, weights=weights)
    assert moment_maps.rectified_correlation(0.4, slopes) == pytest.approx(mixed, rel=1e-12)


@pytest.mark.parametrize(
    "activation",
    [jax.nn.relu, leaky(0.25), jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.relu6],
    ids=["relu", "leaky", "gelu", "silu", "tanh", "relu6"],
)
@pytest.mark.parametrize("cosine", [-0.7, 0.0, 0.5, 0.95])
def test_cosine_maps_against_monte_carlo(activation, cosine):
    """Four million pairs; |z| < 5."""
    rng = np.random.default_rng(7)
    u, w = rng.standard_normal((2, 4_000_000))
    scale = math.sqrt(1.5)
    v = cosine * u + math.sqrt(1 - cosine**2) * w
    f_u, f_v = (np.asarray(activation(jnp.asarray(scale * x, jnp.float32))) for x in (u, v))
    product = f_u.astype(np.float64) * f_v
    error = product.std() / math.sqrt(len(product))
    second = activations.moments(activation, 1.5).second_moment
    expected = activations.cosine_map(activation, cosine, 1.5) * second
    assert abs(product.mean() - expected) < 5 * error


def test_the_cosine_map_approaches_one_and_has_the_slope_of_the_moments():
    for activation in (jax.nn.relu, jax.nn.gelu, jnp.tanh):
        moments = activations.moments(activation, 2.0)
        assert activations.cosine_map(activation, 1.0, 2.0) == pytest.approx(1.0, abs=1e-12)
        assert activations.cosine_slope(activation, 1.0, 2.0) == pytest.approx(moments.ratio)
        near = activations.cosine_map(activation, 1 - 1e-8, 2.0)
        assert 1 - near == pytest.approx(1e-8 * moments.ratio, rel=1e-3)


@pytest.mark.parametrize(
    ("depth", "slope", "relu", "prelu"),
    [
        (14, 0.054, 0.916, 0.802),
        (22, 0.212, 0.955, 0.883),
        (30, 0.303, 0.972, 0.922),
        (50, 0.431, 0.988, 0.963),
        (100, 0.570, 0.996, 0.988),
        (200, 0.680, None, None),
    ],
)
def test_tailored_slopes_and_cosines_at_depth(depth, slope, relu, prelu):
    tailored = activations.tailored_slope(depth)
    assert tailored == pytest.approx(slope, abs=5e-4)
    assert activations.cosine_at_depth(tailored, depth) == pytest.approx(0.9, abs=1e-12)
    if relu:
        assert activations.cosine_at_depth(0.0, depth) == pytest.approx(relu, abs=1e-3)
        assert activations.cosine_at_depth(0.25, depth) == pytest.approx(prelu, abs=1e-3)


def test_the_depth_of_a_cosine_is_the_first_layer_that_reaches_it():
    for slope in (0.0, 0.25, np.array([0.0, 0.5])):
        depth = activations.depth_of_cosine(slope, 0.9)
        before, after = (activations.cosine_at_depth(slope, d) for d in (depth - 1, depth))
        assert before < 0.9 <= after
    assert activations.depth_of_cosine(0.0) == 13
    assert activations.depth_of_cosine(0.25) == 25
    assert activations.depth_of_cosine(0.0, 0.3, first=0.5) == 0
    with pytest.raises(
        ValueError, match=r"slope 1\.0 a cosine of 0\.5 is not reached within 1,000,"
    ):
        activations.depth_of_cosine(1.0, 0.5)
    for bad in (1.0, math.nan):
        with pytest.raises(ValueError, match="expected a number from -1 to below 1"):
            activations.depth_of_cosine(0.0, bad)


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_one_minus_the_cosine_falls_with_the_square_of_the_depth(slope):
    limit = 9 * math.pi**2 * (1 + slope**2) ** 2 / (2 * (1 - slope) ** 4)
    for first in (0.0, 0.9):
        apart = 1 - activations.cosine_at_depth(slope, 3000, first)
        assert apart * 3000**2 == pytest.approx(limit, rel=0.05)


@pytest.mark.parametrize("depth", [14, 22, 30, 50, 100])
def test_tailored_slopes_are_those_of_dks(depth):
    """The package of Zhang, Botev & Martens 2022."""
    package = pytest.importorskip("dks.base.activation_transform")

    def at_depth(cosine, cosine_map):
        return functools.reduce(lambda c, _: cosine_map(c), range(depth), cosine)

    leaky_relu = package.get_transformed_activations(
        ["leaky_relu"], method="TAT", subnet_max_func=at_depth
    )["leaky_relu"]
    assert activations.tailored_slope(depth) == pytest.approx(
        -leaky_relu(-1.0) / leaky_relu(1.0), abs=1e-6
    )


def test_a_reachable_cosine_alone_is_taken():
    shallow = activations.cosine_at_depth(0.0, 5)
    assert activations.tailored_slope(5, shallow) == 0.0
    assert activations.tailored_slope(5, 0.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=rf"slopes from 1 to 0 give 0 to {shallow:.4g}\. Give"):
        activations.tailored_slope(5, 0.9)
    for depth in (0, -3, 2.5, "30", True):
        with pytest.raises(ValueError, match="expected a whole number above 0"):
            activations.tailored_slope(depth)


def test_fixed_points_and_their_stability():
    """Tanh with gain 3 has one stable variance; GELU with its own gain an unstable one at 1."""
    (of_tanh,) = activations.fixed_points(jnp.tanh, 3.0)
    mapped = activations.length_map(jnp.tanh, of_tanh.variance, 3.0)
    assert mapped == pytest.approx(of_tanh.variance, rel=1e-10)
    assert of_tanh.stable
    nearby = activations.length_map(jnp.tanh, of_tanh.variance + 1e-5, 3.0)
    assert (nearby - of_tanh.variance) / 1e-5 == pytest.approx(of_tanh.slope, rel=1e-3)
    (of_gelu,) = activations.fixed_points(jax.nn.gelu, 1 / activations.moments(jax.nn.gelu).forward)
    assert of_gelu.variance == pytest.approx(1.0, rel=1e-9)
    assert not of_gelu.stable
    assert activations.fixed_points(jax.nn.relu, 2.0) == ()


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.elu, jax.nn.selu, jax.nn.silu])
def test_one_is_a_fixed_point_of_an_activations_own_gain(activation):
    """Also where it lies on the grid of the search."""
    moments = activations.moments(activation)
    points = activations.fixed_points(activation, 1 / moments.forward)
    (point,) = [p for p in points if p.variance == pytest.approx(1.0, rel=1e-6)]
    assert point.slope == pytest.approx(moments.exponent, rel=1e-6)
    assert point.stable == (moments.exponent < 1)


def test_bad_numbers_of_a_length_map_are_named():
    for arguments in ((-1.0,), (2.0, -1.0), (2.0, 0.0, (0, 1)), (2.0, 0.0, (2, 1))):
        with pytest.raises(ValueError, match="fixed_points: gain is"):
            activations.fixed_points(jnp.tanh, *arguments)
    with pytest.raises(ValueError, match=r"cosine is 1.5, expected a number in \[-1, 1\]"):
        activations.cosine_at_depth(0.0, 3, 1.5)
    for depth in (-1, 1.5, "3"):
        with pytest.raises(ValueError, match="depth is .*, expected a number of layers"):
            activations.cosine_at_depth(0.0, depth)
    for slope in (math.nan, [], [0.1, math.inf]):
        with pytest.raises(ValueError, match="negative_slope is .*, expected finite numbers"):
            activations.depth_of_cosine(slope)
    with pytest.raises(ValueError, match=r"first is 2, expected a number in \[-1, 1\]"):
        activations.depth_of_cosine(0.0, first=2)


@pytest.mark.parametrize(
    ("activation", "kind", "message"),
    [
        (3, TypeError, "activation is 3, expected an elementwise function"),
        (math.tanh, TypeError, "tanh cannot be traced by JAX"),
        (lambda x: x > 0, TypeError, "returns values of type bool"),
        (lambda x: jax.lax.complex(x, x), TypeError, "returns values of type complex128"),
        (jnp.sum, ValueError, "whose output has the shape of its input"),
        (jax.nn.softmax, ValueError, "does not mix positions"),
        (jnp.cumsum, ValueError, "does not mix positions"),
        (lambda x: x[::-1], ValueError, "does not mix positions"),
        (jnp.log, ValueError, "not finite at -"),
        (lambda x: jnp.exp(x**2), ValueError, "they are infinite, or it is 0"),
        (lambda x: 1 / x, ValueError, "or they are infinite"),
        (jnp.cbrt, ValueError, "or they are infinite"),
        (lambda x: jnp.cos(1e6 * x), ValueError, "varies too fast"),
        (lambda x: 0 * x, ValueError, "is 0 almost everywhere"),
    ],
)
def test_bad_activations_are_named(activation, kind, message):
    with pytest.raises(kind, match=message):
        activations.moments(activation)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shorter_types_agree_to_their_digits(dtype):
    exact = activations.moments(jax.nn.gelu).forward
    short = activations.moments(lambda x: jax.nn.gelu(x.astype(dtype)))
    assert short.forward == pytest.approx(exact, rel=4 * float(jnp.finfo(dtype).eps))


def test_features_near_zero_are_found_at_a_large_variance():
    hard = activations.moments(jax.nn.hard_tanh, 1e6)
    inside = math.erf(1e-3 / math.sqrt(2))
    assert hard.derivative_second_moment == pytest.approx(inside, rel=1e-9)
    step = activations.moments(lambda z: jnp.where((z > 0.41) & (z < 0.42), 5.0, 0.1 * z))
    assert step.second_moment == pytest.approx(0.1015, abs=1e-4)


def test_moments_inside_of_jit():
    def gain(x):
        return x * activations.moments(jax.nn.silu, 1.7).forward

    assert jax.jit(gain)(1.0) == pytest.approx(activations.moments(jax.nn.silu, 1.7).forward)

    def fresh(x):
        return jnp.sin(x) + x

    shape = jax.eval_shape(
        lambda key: initializers.he_normal(activation=fresh)(key, (4, 4)), jax.random.key(0)
    )
    assert shape.shape == (4, 4)


def test_a_callable_with_state_is_read_anew():
    slope = nnx.PReLU(None)
    assert activations.moments(slope).forward == pytest.approx(0.53125)
    slope.negative_slope[...] = jnp.float32(0.9)
    assert activations.moments(slope).forward == pytest.approx(0.905)


def test_derivatives_by_a_rule_of_their_own():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.sign(x)

    straight_through.defvjp(
        lambda x: (jnp.sign(x), x), lambda x, g: (jnp.where(abs(x) < 1, g, 0.0),)
    )
    moments = activations.moments(straight_through)
    assert moments.second_moment == pytest.approx(1.0)
    assert moments.derivative_second_moment == pytest.approx(math.erf(1 / math.sqrt(2)))


def test_a_step_keeps_the_signal_and_no_gradient():
    rule = initializers.he_normal(activation=jnp.sign)
    assert rule.gain == pytest.approx(1.0)
    assert "1 keeps the signal, none the gradient" in rule.describe()
    with pytest.raises(ValueError, match="No gain keeps the gradient after sign"):
        initializers.he_normal(activation=jnp.sign, keeps="backward")


def test_bad_numbers_are_named():
    for variance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a number above 0"):
            activations.moments(jnp.tanh, variance)
    with pytest.raises(ValueError, match=r"cosine is 1.5, expected a number in \[-1, 1\]"):
        activations.cosine_map(jnp.tanh, 1.5)


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_an_initializer_takes_any_activation(activation):
    moments = activations.moments(activation)
    forward = initializers.he_normal(activation=activation)
    backward = initializers.he_normal(activation=activation, keeps="backward")
    assert forward.gain == pytest.approx(1 / moments.forward)
    assert backward.gain == pytest.approx(1 / moments.backward)
    assert initializers.he_uniform("fan_out", activation=activation).gain == backward.gain
    assert initializers.get("orthogonal", activation=activation).gain == forward.gain
    assert initializers.delta_orthogonal(activation=activation, keeps="backward").gain == (
        backward.gain
    )
    for rule in (forward, backward):
        assert f"{forward.gain:.6g} keeps the signal" in rule.describe()
        assert f"{backward.gain:.6g} the gradient" in rule.describe()


def test_an_initializer_takes_a_slope_or_an_activation():
    assert initializers.he_normal(activation=jax.nn.relu).gain == pytest.approx(2.0)
    with pytest.raises(ValueError, match="expected one of them"):
        initializers.he_normal(negative_slope=0.25, activation=jax.nn.gelu)
    with pytest.raises(ValueError, match="Unknown keeps 'both'"):
        initializers.he_normal(activation=jax.nn.gelu, keeps="both")


@functools.cache
def second_moments_of_fifty_layers(activation):
    """Return E[y²] ``[keys, layers]`` of dense nets of width 256 on one Gaussian example."""
    rule, width = initializers.he_normal(activation=activation), 256

    @jax.jit
    def measure(key):
        first, *others = jax.random.split(key, 51)

        def layer(y, key):
            y = activation(y) @ rule(key, (width, width))
            return y, jnp.mean(y**2)

        y = jax.random.normal(first, (width,))
        y = y / jnp.sqrt(jnp.mean(y**2))
        return jax.lax.scan(layer, y, jnp.stack(others))[1]

    keys = jax.random.split(jax.random.key(0), 48)
    return np.stack([np.asarray(measure(key), np.float64) for key in keys])


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_fifty_dense_layers_follow_the_length_map(activation):
    """Every layer's E[y²] over the map of the layer before, 48 keys; |z| < 5."""
    rule = initializers.he_normal(activation=activation)
    measured = second_moments_of_fifty_layers(activation)
    q = np.concatenate([np.ones((len(measured), 1)), measured[:, :-1]], axis=1)
    # The map by interpolation: log E[f²] is smooth in log q.
    grid = np.linspace(np.log(q.min()) - 0.1, np.log(q.max()) + 0.1, 60)
    kept = [activations.moments(activation, math.exp(x)).second_moment for x in grid]
    predicted = rule.gain * np.exp(np.interp(np.log(q), grid, np.log(kept)))
    ratios = (measured / predicted).mean(axis=1)
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 5 * error + 2e-3  # the interpolation errs by 1e-3


def test_a_stable_fixed_point_holds_and_an_unstable_one_lets_noise_grow():
    """χ is 0.46 for tanh and 1.14 for GELU: noise shrinks, or grows 1.14-fold a layer."""
    spread = {
        activation: np.log(second_moments_of_fifty_layers(activation)).std(axis=0, ddof=1)
        for activation in (jnp.tanh, jax.nn.gelu)
    }
    tanh = np.log(second_moments_of_fifty_layers(jnp.tanh)[:, -1])
    assert abs(tanh.mean()) < 5 * tanh.std(ddof=1) / math.sqrt(len(tanh))
    assert spread[jnp.tanh][-1] < 2 * spread[jnp.tanh][0]
    chi = activations.moments(jax.nn.gelu).exponent
    # Independent noise of every layer, each grown since: a geometric sum of variances.
    expected = spread[jax.nn.gelu][0] * np.sqrt(np.cumsum(chi ** (2 * np.arange(50))))
    small = expected < 0.4  # where the map is linear
    assert small.sum() >= 4
    np.testing.assert_allclose(spread[jax.nn.gelu][small], expected[small], rtol=0.45)


def test_the_table_of_gains_is_that_of_the_quadrature():
    rows = {
        words[0]: words[-3:]
        for words in map(str.split, activations.__doc__.splitlines())
        if len(words) in (5, 6) and words[-1].replace(".", "").isdigit()
    }
    functions = {
        "ReLU": jax.nn.relu,
        "tanh": jnp.tanh,
        "SELU": jax.nn.selu,
        "ELU": jax.nn.elu,
        "sigmoid": jax.nn.sigmoid,
        "GELU": jax.nn.gelu,
        "SiLU": jax.nn.silu,
    }
    assert set(rows) == set(functions)
    for name, activation in functions.items():
        moments = activations.moments(activation)
        computed = (1 / moments.forward, 1 / moments.backward, moments.exponent)
        assert [float(cell) for cell in rows[name]] == pytest.approx(computed, 1e-3, 6e-4), name


# anyinit.gain(name) of AnyInit 0.4.0: the standard deviation of z at which E[f(z)²] is 1.
ANYINIT = {
    jax.nn.relu: 1.4142135623730951,
    functools.partial(jax.nn.gelu, approximate=False): 1.4680112605469007,
    jax.nn.silu: 1.558759930069252,
    jax.nn.leaky_relu: 1.4141428569978354,
    jax.nn.selu: 0.99999999999975,
    jax.nn.elu: 1.2779600754047447,
    jax.nn.softplus: 1.0831218815075707,
    jax.nn.mish: 1.451491239960304,
}


@pytest.mark.parametrize(("activation", "gain"), ANYINIT.items(), ids=range(len(ANYINIT)))
def test_second_moments_are_those_of_anyinit(activation, gain):
    assert activations.moments(activation, gain**2).second_moment == pytest.approx(1, abs=1e-12)
