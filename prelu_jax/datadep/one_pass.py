"""One-pass methods: correct the layers, measure the result, and repeat only where that is needed.

A layer that is called once and is affine in kernel and bias needs one pass. A layer that is called
more often sees inputs that depend on its own correction, so further passes bring its pooled moments
to their target. A layer whose weights are computed (a weight norm divides a scale out again) is
measured and left as it is, and so is one whose output turns out not to follow.
"""

import contextlib
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import compiling
from prelu_jax.datadep import places
from prelu_jax.datadep.calibration_pass import CalibrationPass, Control, Outcome
from prelu_jax.datadep.channels import Correction, Moments
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.methods import OnePass
from prelu_jax.datadep.report import LayerRow, OnePassStage
from prelu_jax.datadep.session import Session
from prelu_jax.initializers import Initializer

_CLOSE = 3e-5  # of a shared layer's moments to their targets: ends its passes
_RESISTS = 0.1  # an error that rounding cannot explain, not even bfloat16's
_MOST_PASSES = 50
_LARGEST_LOG = 20.0  # of a scale that is tried

Outcomes = dict[int, Outcome]  # by a layer's number


def run(session: Session, method: OnePass) -> tuple[Session, OnePassStage]:
    """Return the session with every layer corrected, and a record of it.

    Raises:
        ValueError: a layer's output is not finite.
    """
    left: set[int] = set()  # layers that do not follow
    while True:
        attempt = _Attempt(session, method, left)
        attempt.correct()
        resisting = attempt.first_resisting()
        if resisting is None:
            return attempt.session, attempt.stage()
        left.add(resisting)


class _Attempt:
    """A calibration that leaves some layers alone."""

    def __init__(self, session: Session, method: OnePass, left: Collection[int]) -> None:
        self.method = method
        self.left = left
        self.free = tuple(
            layer for layer in session.plan.layers if layer.follows and layer.number not in left
        )
        self.shared = tuple(layer for layer in self.free if layer.calls > 1)
        self.session = session.replace(_drawn(session, method, self.free))
        self.outcomes: Outcomes = {}
        self.measured: Outcomes = {}
        self.errors: dict[int, list[float]] = {}
        self.passes = 0

    def correct(self) -> None:
        """Run the pass, more of them for shared layers, and one that measures the result."""
        self.session, self.outcomes = self._pass(self.method, self.free)
        self._check_finite(self.outcomes, "with the layers before it corrected")
        self.passes = 1
        if self.shared:
            self._solve()
        _, self.measured = self._pass(self.method.without_redraw, ())
        self._check_finite(self.measured, "with the layers up to it corrected")
        self.errors = {
            layer.number: [
                self.method.error(moments, layer.has_bias)
                for moments in _of_stack(layer, self.measured[layer.number].before)
            ]
            for layer in self.session.plan.layers
        }

    def _solve(self) -> None:
        """Find the corrections of shared layers after which their moments need no other.

        The unknowns are the logs of the scales, and the shifts; a pass computes the moments.
        """
        once = [layer for layer in self.free if layer.calls == 1]
        start, first = self.session, self.outcomes
        least = np.inf

        def asked(unknowns: np.ndarray) -> np.ndarray:
            nonlocal least
            given = self._given(unknowns)
            session, outcomes = self._pass(self.method.without_redraw, once, given, start)
            self.passes += 1
            more = np.concatenate(
                [self._more(layer, outcomes[layer.number].before, given) for layer in self.shared]
            )
            if np.abs(more).max() < least:
                least = np.abs(more).max()
                self.session = session
                self.outcomes = {
                    number: outcome._replace(
                        correction=_both(outcome.correction, outcomes[number].correction)
                    )
                    for number, outcome in first.items()
                }
            return -more

        from scipy import optimize  # slow to import, and few models share layers

        size = 2 * sum(math.prod(layer.shape) for layer in self.shared)
        # The report has the errors that are left, also where SciPy warns of a step.
        with contextlib.suppress(optimize.NoConvergence), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # To change a scale changes the output as much, or more if the output feeds itself.
            optimize.anderson(asked, np.zeros(size), alpha=-1, f_tol=_CLOSE, maxiter=_MOST_PASSES)

    def _given(self, unknowns: np.ndarray) -> dict[int, Correction]:
        given, rest = {}, unknowns
        for layer in self.shared:
            size = math.prod(layer.shape)
            log_scale, shift, rest = np.split(rest, [size, 2 * size])
            numbers = np.exp(np.clip(log_scale, -_LARGEST_LOG, _LARGEST_LOG)), shift
            given[layer.number] = Correction(
                *(v.reshape(layer.shape).astype(np.float32) for v in numbers)
            )
        return given

    def _more(self, layer: Layer, before: Moments, given: Mapping[int, Correction]) -> np.ndarray:
        """Return the correction that a layer's output needs beyond the one that it was given."""
        scale, shift = given[layer.number]
        mean, std, varies = before
        corrected = Moments(mean * scale + shift, std * scale, varies)
        more = [
            self.method.correction(moments, layer.has_bias)
            for moments in _of_stack(layer, corrected)
        ]
        logs = [np.log(each.scale).ravel() for each in more]
        return np.concatenate([*logs, *(np.ravel(each.shift) for each in more)])

    def first_resisting(self) -> int | None:
        """Return the number of the first layer whose output misses its target, if one does."""
        over = (layer for layer in self.free if max(self.errors[layer.number]) > _RESISTS)
        return next((layer.number for layer in over), None)

    def stage(self) -> OnePassStage:
        """Return the record of the calibration, for the report."""
        layers = self.session.plan.layers
        rows = {place: row for layer in layers for place, row in self._rows(layer)}
        ordered = tuple(rows[place] for place in sorted(rows))
        return OnePassStage(self.method, ordered, self.passes)

    def _pass(
        self,
        method: OnePass,
        measured: Collection[Layer],
        given: Mapping[int, Correction] | None = None,
        session: Session | None = None,
    ) -> tuple[Session, Outcomes]:
        """Run a pass that corrects some layers by their moments, some as given, the others not."""
        session = session or self.session
        plan = session.plan
        chosen = {layer.number for layer in measured}
        corrections = {layer.number: _nothing(layer) for layer in plan.layers} | dict(given or {})
        control = {
            number: Control(np.array(number in chosen), correction)
            for number, correction in corrections.items()
        }
        calibration = CalibrationPass(plan.model, plan.layers, method)
        parameters, outcomes = session.compute(calibration, control=control)
        return session.replace(parameters), jax.device_get(outcomes)

    def _check_finite(self, outcomes: Outcomes, when: str) -> None:
        for layer in self.session.plan.layers:
            moments = _of_stack(layer, outcomes[layer.number].before)
            finite = [bool(np.isfinite([each.mean, each.std]).all()) for each in moments]
            if all(finite):
                continue
            name, dtype = layer.names()[finite.index(False)], layer.first.dtype
            narrow = "float16 ends at 65,504: calibrate in float32 or bfloat16."
            raise ValueError(
                f"the output of {name} is not finite in {dtype}, {when}. Are its kernel, its bias, "
                "the scale that they need and the values between finite? "
                + (narrow if dtype == "float16" else "pj.diagnose says where it begins.")
            )

    def _rows(self, layer: Layer) -> Iterator[tuple[int, LayerRow]]:
        """Yield the rows of a stack, each with its place in the order of execution."""
        parts = zip(
            layer.order,
            layer.names(),
            _of_stack(layer, self.outcomes[layer.number]),
            _of_stack(layer, self.measured[layer.number].before),
            self.errors[layer.number],
            strict=True,
        )
        resists = layer.number in self.left or not layer.follows
        for place, name, outcome, after, error in parts:
            row = LayerRow.of(layer, name, outcome, after, error=error, resists=resists)
            yield place, row


def _drawn(session: Session, method: OnePass, layers: Collection[Layer]) -> dict[str, jax.Array]:
    """Return the parameters of the layers that a method draws before the pass."""
    draw = compiling.for_few_calls(_draw, static_argnums=(0, 1, 2))
    changed: dict[str, jax.Array] = {}
    for layer in layers:
        initializer = method.initializer(layer.layout)
        if initializer is None:
            continue
        known, at = {**session.parameters, **changed}, session.plan.places[layer.number]
        # Numbers in place of names, so that layers of one shape share a program.
        number = {name: str(i) for i, name in enumerate([*at.weights, *at.bias])}
        weights = {number[name]: flat for name, flat in at.weights.items()}
        bias = {number[name]: channel for name, channel in at.bias.items()}
        after = draw(
            *(initializer, tuple(layer.own), tuple(layer.first.weight_shape)),
            *(session.key, np.array(layer.order)),
            {number[name]: known[name] for name in number},
            places.Places(weights, {}, bias, {}),
        )
        changed |= {name: after[number[name]] for name in number}
    return changed


def _draw(
    initializer: Initializer,
    own: tuple[int, ...],
    shape: tuple[int, ...],
    key: jax.Array,
    order: jax.Array,
    before: Mapping[str, jax.Array],
    at: places.Places,
) -> dict[str, jax.Array]:
    """Return the parameters of a layer, or of a stack of layers, drawn.

    Args:
        initializer: of one layer.
        own: the shape of the stack.
        shape: of the weights of one layer.
        key: of the calibration.
        order: the place of each layer in the order of execution.
        before: the parameters that hold the weights and the biases.
        at: the places of these.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, order)
    weights = jax.vmap(lambda key: initializer(key, shape, jnp.float32))(keys)
    return places.drawn(before, at, weights.reshape(*own, *shape))


def _of_stack(layer: Layer, tree: Any) -> list[Any]:
    """Return the entries of a pytree of arrays for every layer of a stack."""
    return [
        jax.tree.map(lambda leaf, at=index: np.asarray(leaf)[at], tree)
        for index in np.ndindex(*layer.own)
    ]


def _nothing(layer: Layer) -> Correction:
    ones = np.ones(layer.shape, np.float32)
    return Correction(ones, 0 * ones)


def _both(first: Correction, second: Correction) -> Correction:
    return Correction(first.scale * second.scale, first.shift * second.scale + second.shift)
