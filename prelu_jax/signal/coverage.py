"""The share of a model's weights that a measurement covers, and the names of the others."""

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prelu_jax.tracing import Program

MOST_NOT_MEASURED = 0.05  # of the weights, if a verdict is to hold for the whole model
_NAMED = 12  # kernels in a sentence


@dataclasses.dataclass(frozen=True)
class NotMeasured:
    """A weight of which a product with the signal is not measured.

    Attributes:
        parameter: its path.
        size: how many numbers it holds.
        inside: the transformations around the product, outermost first; () if there are none.
        complex: whether the product is one of complex numbers.
    """

    parameter: str
    size: int
    inside: tuple[str, ...] = ()
    complex: bool = False

    @property
    def why(self) -> str:
        """The reason in words."""
        where = "/".join(self.inside)
        if self.complex:
            return f"complex, inside {where}" if where else "complex"
        return f"inside {where}" if where else "multiplied by hand or by layers of other kinds"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The weights of a model that a measurement covers, and the others.

    Weights are the parameters of two axes or more that a matrix product, a convolution or a look-up
    combines with the signal (`tracing`), and other arrays of the model's variables that one does:
    those of other collections, 'frozen/kernel', or an `nnx.Variable`. Statistics of norms
    ('batch_stats', `nnx.BatchStat`) and caches ('cache', `nnx.Cache`) are data.

    The limit: three other ways to mix features count as elementwise, so a layer written by hand in
    one of them is missing in `not_measured`. They are a product of Fourier transforms,
    ``irfft(rfft(x) * rfft(w))``; a sum with a reduction that is not linear, ``(x[:, :, None] +
    w).max(1)``; and distances, ``exp(-((x[:, None] - w) ** 2).sum(-1))``.

    Attributes:
        seen: the paths of the weights whose products are all measured.
        sizes: how many numbers each of those holds.
        not_measured: the other weights.
        elementwise: parameters that do not count: they have one axis, or only add or multiply
            elementwise, as scales of norms, biases, slopes and tables of positions do.
        unused: parameters of two axes or more that the outputs do not depend on.
    """

    seen: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    not_measured: tuple[NotMeasured, ...] = ()
    elementwise: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def unseen(self) -> tuple[NotMeasured, ...]:
        """The former name of `not_measured`."""
        return self.not_measured

    @property
    def share(self) -> float:
        """The fraction of the weights, by how many numbers they hold, that is seen."""
        missing = sum(weight.size for weight in self.not_measured)
        return sum(self.sizes) / (sum(self.sizes) + missing) if missing else 1.0

    @property
    def suffices(self) -> bool:
        """Return whether a verdict on the measured layers holds for the whole model.

        It does not if a kernel is inside a transformation, or too many weights are not measured.
        """
        inside_transform = any(weight.inside for weight in self.not_measured)
        return not inside_transform and 1 - self.share <= MOST_NOT_MEASURED

    def with_arguments(self, parameters: Mapping[str, Any]) -> "Coverage":
        """Return the coverage with the parameters of modules that are given as arguments.

        Their layers are not measured, so those of two axes or more count as not measured.
        """
        more = tuple(
            NotMeasured(name, math.prod(value.shape), ("a module given as an argument",))
            for name, value in parameters.items()
            if value.ndim > 1
        )
        return dataclasses.replace(self, not_measured=(*self.not_measured, *more))

    def without(self, names: Container[str], why: str) -> "Coverage":
        """Return the coverage without some of the weights, which count as not measured.

        Args:
            names: their paths.
            why: the reason, as in `NotMeasured.inside`.
        """
        pairs = list(zip(self.seen, self.sizes, strict=True))
        lost = tuple(NotMeasured(name, size, (why,)) for name, size in pairs if name in names)
        kept = [pair for pair in pairs if pair[0] not in names]
        seen, sizes = (tuple(part) for part in zip(*kept, strict=True)) if kept else ((), ())
        return dataclasses.replace(
            self, seen=seen, sizes=sizes, not_measured=(*self.not_measured, *lost)
        )

    def sentence(self) -> str:
        """Return the share of the weights that is not seen, why, and which kernels they are."""
        groups = [f"{why}: {some(names)}" for why, names in self._reasons().items()]
        return f"{percent(1 - self.share)} of the weights are {'; or '.join(groups)}"

    def _reasons(self) -> dict[str, list[str]]:
        """Return the weights that are not measured by the reason."""
        reasons: dict[str, list[str]] = {}
        for weight in self.not_measured:
            reasons.setdefault(weight.why, []).append(weight.parameter)
        return reasons

    def notes(self) -> list[str]:
        """Return the lines of a report about the weights that are not measured."""
        reasons = self._reasons().items()
        return [f"Weights not seen, {why}: {', '.join(names)}" for why, names in reasons]

    def lines(self) -> list[str]:
        """Return the other lines: the share, and every parameter that does not count."""
        lines = [f"Weights seen: {percent(self.share)} of those with two axes or more."]
        if self.unused:
            lines.append(f"Parameters that the model does not use: {', '.join(self.unused)}")
        if self.elementwise:
            lines.append(f"Not counted, elementwise or of one axis: {some(self.elementwise)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain Python."""
        return {
            "share": self.share,
            "seen": list(self.seen),
            "unseen": {weight.parameter: weight.why for weight in self.not_measured},
            "elementwise": list(self.elementwise),
            "unused": list(self.unused),
        }


def percent(share: float) -> str:
    """Return a share as '7.3 %'; neither 0 nor 100 % unless it is exactly that."""
    number = f"{100 * share:.1f}".removesuffix(".0")
    if share > 0 and number == "0":
        return "less than 0.1 %"
    return "more than 99.9 %" if share < 1 and number == "100" else f"{number} %"


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many there are beyond them."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def of(program: Program, parameters: Mapping[str, Any], others: Mapping[str, Any]) -> Coverage:
    """Return the coverage of a model by the measurement of all its operations.

    Args:
        program: the model.
        parameters: all of them, by path.
        others: arrays that are no parameters, by path. They are weights if they are multiplied with
            the signal, and else of no interest.
    """
    reading = program.reading
    seen: list[str] = []
    not_measured: list[NotMeasured] = []
    elementwise: list[str] = []
    unused: list[str] = []
    for name, value in {**parameters, **others}.items():
        missed = reading.not_measured.get(name)
        if name in others and missed is None and name not in reading.seen:
            continue
        if value.ndim < 2 or not _counts(value):
            elementwise.append(name)
        elif name not in reading.used:
            unused.append(name)
        elif missed is not None and (missed or name not in program.tables):
            inside = tuple(word for word in missed if word != "complex")
            size = math.prod(value.shape)
            not_measured.append(NotMeasured(name, size, inside, "complex" in missed))
        else:
            (seen if name in reading.seen else elementwise).append(name)
    every = {**parameters, **others}
    sizes = tuple(math.prod(every[name].shape) for name in seen)
    return Coverage(tuple(seen), sizes, tuple(not_measured), tuple(elementwise), tuple(unused))


def may_be_kernel(value: Any) -> bool:
    """Return whether an array that is no parameter may be a kernel: no key, mask or counter."""
    if getattr(value, "ndim", 0) < 2:
        return False
    return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.inexact, jnp.signedinteger))


def _counts(value: jax.Array) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.number))
