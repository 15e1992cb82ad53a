"""The uses of single parameters outside of products."""

from typing import Any

from jax.extend.core import JaxprEqn, Var

from prelu_jax.tracing import values
from prelu_jax.tracing.values import Bits, Value, shape_of

_SUMS = ("add", "add_any", "sub")
_FACTORS = ("mul", "div")


class Effects:
    """The effects of single parameters in one jaxpr.

    With data an effect is 'add', 'add a map' where the parameter varies along several axes,
    'multiply', or 'rectify' where the data chooses the entries that are multiplied. By itself it is
    'look up' where rows of the parameter are taken.

    Attributes:
        known: the effects by the parameter's number, in other jaxprs too.
    """

    def __init__(self, known: dict[int, set[str]]) -> None:
        self.known = known
        self._scaled: dict[Any, tuple[Bits, Any]] = {}  # data times a parameter -> it, the data
        self._negated: set[Any] = set()  # data with the sign changed
        self._negative: set[Any] = set()  # data cut off above at a number, at 0 as a rule

    def add(self, parameter: Bits, effect: str) -> None:
        """Record an effect of a parameter."""
        for i in values.members(parameter):
            self.known.setdefault(i, set()).add(effect)

    def note(self, equation: JaxprEqn, operands: list[Value]) -> None:
        """Record the effect of an elementwise operation of one parameter and data."""
        name = equation.primitive.name
        own = [v.made_of if v.made_of.bit_count() == 1 and not v.signal else 0 for v in operands]
        has_data = any(value.signal for value in operands)
        if name in ("select_n", "max", "min"):
            self._note_choice(equation, operands, own)
        elif name == "neg" and has_data:
            self._negated.add(equation.outvars[0])
        elif name in (*_SUMS, *_FACTORS) and has_data:
            for bits, atom, value in zip(own, equation.invars, operands, strict=True):
                self.add(bits, _effect(name, atom, value))
                if bits and name == "mul":
                    self._note_scaled(equation, bits, atom)

    def _note_choice(self, equation: JaxprEqn, operands: list[Value], own: list[Bits]) -> None:
        name = equation.primitive.name
        atoms = [atom for atom in equation.invars if isinstance(atom, Var)]
        signal = [value.signal for value in operands]
        if name == "select_n" and signal[0] and not any(signal[1:]):
            for bits in own[1:]:
                self.add(bits, "rectify")
        for bits, unscaled in (self._scaled[atom] for atom in atoms if atom in self._scaled):
            if unscaled in atoms:
                self.add(bits, "rectify")
        is_negative = name == "min" or (name == "max" and not self._negated.isdisjoint(atoms))
        if is_negative and any(signal) and len(atoms) < len(operands):
            self._negative.add(equation.outvars[0])

    def _note_scaled(self, equation: JaxprEqn, parameter: Bits, atom: Any) -> None:
        (data,) = (other for other in equation.invars if other is not atom)
        self._scaled[equation.outvars[0]] = parameter, data
        if isinstance(data, Var) and data in self._negative:
            self.add(parameter, "rectify")


def _effect(name: str, atom: Any, value: Value) -> str:
    if name in _FACTORS:
        return "multiply"
    varies = [i for i, size in enumerate(shape_of(atom)) if size > 1 and i not in value.flat]
    return "add" if len(varies) <= 1 else "add a map"
