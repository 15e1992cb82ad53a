"""Running a one-pass method: correct, look whether it came true, and repeat only where it must.

One pass is all that layers need which are called once and are affine in kernel and bias. A layer
that is called more often sees inputs that depend on its own correction, so its pooled moments are
brought to their target by further passes. A layer whose output does not follow its kernel and bias
(a weight norm divides a scale out again, LoRA adds to it) is found by measuring, and left alone.
"""

import contextlib
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from prelu_jax.datadep.moments import Moments
from prelu_jax.datadep.report import LayerRow, OnePassStage
from prelu_jax.datadep.session import Session
from prelu_jax.datadep.walk import Control, Correction, Layer, OnePass, Walk

_CLOSE = 3e-5  # of a shared layer's moments to their targets: ends its passes
_RESISTS = 0.1  # an error that rounding cannot explain, not even bfloat16's
_MOST_PASSES = 50
_LARGEST_LOG = 20.0  # of a scale that is tried

Found = dict[str, dict[str, Any]]  # kernel path -> what a `Walk` returns of it


def run(session: Session, method: OnePass) -> tuple[Session, OnePassStage]:
    """The session with every layer corrected, and what was done.

    Raises:
        ValueError: a layer's output is not finite.
    """
    left: set[str] = set()  # layers that resist
    while True:
        attempt = _Attempt(session, method, left)
        attempt.correct()
        resisting = attempt.first_resisting()
        if resisting is None:
            return attempt.session, attempt.stage()
        left.add(resisting)


class _Attempt:
    """A calibration that leaves some layers alone."""

    def __init__(self, session: Session, method: OnePass, left: Collection[str]) -> None:
        layers = session.plan.layers
        self.method = method
        self.left = left
        self.free = tuple(layer for layer in layers if layer.parameter not in left)
        self.shared = tuple(layer for layer in self.free if layer.calls > 1)
        self.session = session.replace(method.start(self.free, session.parameters, session.key))
        self.found: Found = {}
        self.measured: Found = {}
        self.errors: dict[str, float] = {}
        self.passes = 0

    def correct(self) -> None:
        """The pass, those that shared layers need, and a look at what came of it."""
        self.session, self.found = self._pass(self.method, self.free)
        self._check_finite(self.found, "with the layers before it corrected")
        self.passes = 1
        if self.shared:
            self._solve()
        _, self.measured = self._pass(self.method.plain, ())
        self._check_finite(self.measured, "with the layers up to it corrected")
        self.errors = {
            layer.parameter: self.method.error(
                self.measured[layer.parameter]["before"], layer.bias is not None
            )
            for layer in self.session.plan.layers
        }

    def _solve(self) -> None:
        """Finds the corrections of shared layers under which their moments ask for none.

        The unknowns are the logs of the scales and the shifts; one pass tells what is asked for.
        """
        once = [layer for layer in self.free if layer.calls == 1]
        start, first = self.session, self.found
        least = np.inf

        def asked(unknowns: np.ndarray) -> np.ndarray:
            nonlocal least
            given = self._given(unknowns)
            session, found = self._pass(self.method.plain, once, given, start)
            self.passes += 1
            more = np.concatenate([self._more(layer, found, given) for layer in self.shared])
            if np.abs(more).max() < least:
                least = np.abs(more).max()
                self.session = session
                self.found = {
                    name: {
                        **what,
                        "correction": _both(what["correction"], found[name]["correction"]),
                    }
                    for name, what in first.items()
                }
            return -more

        from scipy import optimize  # slow to import, and few models share layers

        size = 2 * sum(math.prod(layer.channels) for layer in self.shared)
        with contextlib.suppress(optimize.NoConvergence):  # the report tells how far it came
            # To change a scale changes the output as much, or more if the output feeds itself.
            optimize.anderson(asked, np.zeros(size), alpha=-1, f_tol=_CLOSE, maxiter=_MOST_PASSES)

    def _given(self, unknowns: np.ndarray) -> dict[str, Correction]:
        given, rest = {}, unknowns
        for layer in self.shared:
            size = math.prod(layer.channels)
            log_scale, shift, rest = np.split(rest, [size, 2 * size])
            numbers = np.exp(np.clip(log_scale, -_LARGEST_LOG, _LARGEST_LOG)), shift
            given[layer.parameter] = Correction(
                *(v.reshape(layer.channels).astype(np.float32) for v in numbers)
            )
        return given

    def _more(self, layer: Layer, found: Found, given: Mapping[str, Correction]) -> np.ndarray:
        """The correction that a layer's output asks for beyond the one that it was given."""
        scale, shift = given[layer.parameter]
        mean, std, varies = found[layer.parameter]["before"]
        corrected = Moments(mean * scale + shift, std * scale, varies)
        more = self.method.correction(corrected, layer.bias is not None)
        return np.concatenate([np.log(more.scale).ravel(), np.ravel(more.shift)])

    def first_resisting(self) -> str | None:
        """The kernel of the first layer whose output is not what its correction promised."""
        over = (layer for layer in self.free if self.errors[layer.parameter] > _RESISTS)
        return next((layer.parameter for layer in over), None)

    def stage(self) -> OnePassStage:
        """What was done, for the report."""
        rows = tuple(self._row(layer) for layer in self.session.plan.layers)
        return OnePassStage(self.method, rows, self.session.plan.skipped, self.passes)

    def _pass(
        self,
        method: OnePass,
        measured: Collection[Layer],
        given: Mapping[str, Correction] | None = None,
        session: Session | None = None,
    ) -> tuple[Session, Found]:
        """A pass that corrects some layers by their moments, some as given, the others not."""
        session = session or self.session
        plan = session.plan
        named = {layer.parameter for layer in measured}
        control = Control(
            {layer.parameter: np.array(layer.parameter in named) for layer in plan.layers},
            {layer.parameter: _nothing(layer) for layer in plan.layers} | dict(given or {}),
        )
        model = plan.model
        walk = Walk(
            model.view, plan.layers, method, model.call_kwargs, model.axis_name, model.bound_axes
        )
        parameters, found = session.compute(walk, control=control)
        return session.replace(parameters), jax.device_get(found)

    def _check_finite(self, found: Found, when: str) -> None:
        for layer in self.session.plan.layers:
            moments = found[layer.parameter]["before"]
            if np.isfinite(moments.mean).all() and np.isfinite(moments.std).all():
                continue
            narrow = "float16 ends at 65,504: calibrate in float32 or bfloat16."
            raise ValueError(
                f"the output of {layer.name} is not finite in {layer.dtype}, {when}. Are its "
                "kernel, its bias, the scale that they need and what lies between finite? "
                + (narrow if str(layer.dtype) == "float16" else "pj.diagnose says where it begins.")
            )

    def _row(self, layer: Layer) -> LayerRow:
        found, measured = (which[layer.parameter] for which in (self.found, self.measured))
        return LayerRow.of(
            layer,
            found,
            measured["before"],
            error=self.errors[layer.parameter],
            resists=layer.parameter in self.left,
        )


def _nothing(layer: Layer) -> Correction:
    ones = np.ones(layer.channels, np.float32)
    return Correction(ones, 0 * ones)


def _both(first: Correction, second: Correction) -> Correction:
    return Correction(first.scale * second.scale, first.shift * second.scale + second.shift)
