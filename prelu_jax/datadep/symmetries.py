"""The rescalings of parameters that leave a function's outputs unchanged, read off its jaxpr.

Between layers Krähenbühl et al. 2015 (arXiv:1511.06856) multiply every kernel by a factor of its
own and keep a chain of ReLU layers the same function: the factors' product is 1, and biases
follow. Here the condition on the factors is derived for any function. Multiply each parameter p by
``exp(u_p)``. An array that is homogeneous in the parameters is then multiplied by ``exp(d · u)``,
where ``d``, one number per parameter, is its *degree*. Products add degrees, roots halve them, a
rectifier keeps them (He et al. 2015, Eq. 1: positive factors move no sign), a sum needs equal
ones, ``tanh`` needs degree 0. All of these conditions are linear in ``u``.

The result is sound in real arithmetic, whatever the values of parameters and inputs. It is not
complete: a condition that only values or algebra (``exp(a) / exp(a)``) would lift is kept.
"""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from prelu_jax.datadep import degrees as degrees_lib
from prelu_jax.datadep.degrees import Degree, Degrees, Rows, Stack, is_inexact
from prelu_jax.tracing import jaxprs

_TOLERANCE = 1e-6  # coefficients are sums of integers, halves and float32 exponents


@dataclasses.dataclass(frozen=True)
class RescalingSymmetries:
    """The positive factors on parameters, by their logs ``u``, that leave outputs unchanged.

    Attributes:
        parameters: the names of parameters, and of entries of those that were taken as stacks,
            'w[3]'; one per column.
        constraints: rows ``c`` of the conditions ``c · u = 0``, ``[conditions, parameters]``.
    """

    parameters: tuple[str, ...]
    constraints: Rows

    def project(self, wanted: Mapping[str, float], follow: Collection[str]) -> dict[str, float]:
        """Return the allowed ``u`` closest to the wanted, up to one constant shared by all.

        Minimises ``Σ_k (wanted_k - u_k - c)²`` over ``u`` and ``c``: ratios of factors count,
        the function determines their common size. On a chain of layers ``c`` is the mean of
        ``wanted``, the log of the geometric mean of Krähenbühl et al. 2015. Among several such
        ``u`` the smallest is returned.

        Args:
            wanted: the log factor wanted for each of some parameters, kernels as a rule.
            follow: parameters that may move as needed, biases as a rule. All others keep u = 0.

        Returns:
            ``u`` for every name of ``wanted`` and ``follow``.

        Raises:
            ValueError: a name is not a parameter's or is given twice, or a value is not finite.
        """
        names = [*wanted, *follow]
        basis = self._basis(names)
        values = np.array(list(wanted.values()), np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"project: wanted is {dict(wanted)}, expected finite logs of factors.")
        if not wanted:
            return dict.fromkeys(names, 0.0)
        moves = basis[: len(wanted)]
        moves = moves - moves.mean(axis=0)  # the best c, whatever u is, is the mean of the rest
        weights, *_ = np.linalg.lstsq(moves, values, rcond=_TOLERANCE)
        return dict(zip(names, (basis @ weights).tolist(), strict=True))

    def fixed(self, wanted: Collection[str], follow: Collection[str]) -> set[str]:
        """Return the names of ``wanted`` that no allowed ``u`` moves.

        All parameters but those and ``follow`` are held at u = 0.
        """
        basis = self._basis([*wanted, *follow])
        return {name for name, row in zip(wanted, basis, strict=False) if not row.any()}

    def _basis(self, names: Sequence[str]) -> Rows:
        """Return an orthonormal basis of the allowed ``u`` of some parameters, ``[names, ·]``."""
        unknown = set(names).difference(self.parameters)
        if unknown or len(set(names)) < len(names):
            raise ValueError(
                f"names are {list(names)}, expected each once and among the parameters "
                f"{list(self.parameters)}."
            )
        columns = self.constraints[:, [self.parameters.index(name) for name in names]]
        _, singular, rows = np.linalg.svd(np.linalg.qr(columns, mode="r"))
        basis: Rows = rows[np.count_nonzero(singular > _TOLERANCE) :].T
        basis[np.abs(basis).max(axis=1, initial=0.0) < _TOLERANCE] = 0.0  # fixed: exactly 0
        return basis


def find(
    function: Callable[..., Any],
    parameters: Mapping[str, Any],
    *args: Any,
    stacks: Mapping[str, Sequence[int]] = types.MappingProxyType({}),
) -> RescalingSymmetries:
    """Return the rescalings of parameters that leave ``function(parameters, *args)`` unchanged.

    The function is traced, never run. The values of parameters and arguments do not matter; those
    of arrays that it closes over do: zeros stay zeros. Loops (`while`), and every primitive that is
    not known here, count as homogeneous in nothing.

    Args:
        function: returns any pytree of arrays, each of which has to stay the same.
        parameters: arrays, or `jax.ShapeDtypeStruct`, by name.
        args: further arguments, pytrees of arrays or `jax.ShapeDtypeStruct`; they are not rescaled.
        stacks: parameters, as of the layers that a scan runs over, that have a factor for every
            entry along some axes: their names, and the axes in rising order.

    Raises:
        TypeError: a parameter is not one array.
    """
    for name, leaf in parameters.items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"parameter {name!r} is a {type(leaf).__name__}, expected an array; "
                "flatten nested parameters, e.g. with flax.traverse_util.flatten_dict(sep='/')."
            )

    def of_leaves(leaves: Sequence[jax.Array], *args: Any) -> Any:
        return function(dict(zip(parameters, leaves, strict=True)), *args)

    with jax.disable_jit(False):  # else loops are unrolled, and look like many operations
        closed = jax.make_jaxpr(of_leaves)(list(parameters.values()), *args)
        closed = jaxprs.inlined(closed, without_rules=True)
    columns = [
        column
        for name, leaf in parameters.items()
        for column in entries(name, [leaf.shape[axis] for axis in stacks.get(name, ())])
    ]
    reader, unit = _Reader(len(columns)), iter(np.eye(len(columns)))
    inputs: list[Degrees] = [reader.zero] * len(closed.jaxpr.invars)
    for i, (name, leaf) in enumerate(parameters.items()):
        degrees = degrees_lib.of_units(unit, leaf.shape, stacks.get(name, ()))
        inputs[i] = degrees if is_inexact(closed.jaxpr.invars[i]) else reader.invariant([degrees])
    reader.invariant(reader.outputs(closed, inputs))
    constraints = np.array([*reader.rows.values()]).reshape(-1, len(columns))
    return RescalingSymmetries(tuple(columns), constraints)


def entries(name: str, lengths: Sequence[int]) -> list[str]:
    """Return the names of the entries of a stack; of a parameter that is none, its own."""
    return [name + "".join(f"[{i}]" for i in index) for index in np.ndindex(*lengths)]


class _Reader:
    """Degrees of the arrays of a jaxpr; their conditions collect in ``rows``."""

    def __init__(self, parameters: int) -> None:
        self.zero: Rows = np.zeros(parameters)
        self.rows: dict[bytes, Rows] = {}

    def equal(self, degrees: Iterable[Degrees]) -> Degree:
        """Require that all of them are equal; return their degree."""
        given = [degree for degree in degrees_lib.flat(degrees) if degree is not None]
        for degree in given[1:]:
            row = degree - given[0]
            row[np.abs(row) < _TOLERANCE] = 0.0
            if row.any():
                row /= row[np.flatnonzero(row)[0]]  # one condition, whichever way it is written
                self.rows.setdefault((row.round(6) + 0.0).tobytes(), row)
        return given[0] if given else None

    def invariant(self, degrees: Iterable[Degrees]) -> Rows:
        """Require degree 0 of all of them; return it as the degree of a result."""
        for degree in degrees:
            self.equal([self.zero, degree])
        return self.zero

    def outputs(self, closed: ClosedJaxpr | Jaxpr, degrees: Sequence[Degrees]) -> list[Degrees]:
        """Return the degrees of a jaxpr's outputs, from those of its inputs."""
        jaxpr, consts = jaxprs.opened(closed)
        known = jaxprs.Values(jaxpr, list(map(self._constant, consts)), degrees, self._constant)
        for equation in jaxprs.needed(jaxpr, jaxpr.outvars, with_effects=True):
            known.update(equation.outvars, self._equation(equation, known.of(equation.invars)))
        return known.of(jaxpr.outvars)

    def _constant(self, value: Any) -> Degree:
        if not jnp.issubdtype(jnp.result_type(value), jnp.number):
            return self.zero
        size = np.abs(np.asarray(value))
        return self.zero if np.any((size > 0) & (size < np.inf)) else None

    def _equation(self, equation: JaxprEqn, given: list[Degrees]) -> list[Degrees]:
        """Return the degrees of one equation's outputs; those of integers and bools are 0."""
        name, params = equation.primitive.name, equation.params
        if name in jaxprs.REMAT:
            return self.outputs(params["jaxpr"], given)
        if name == "scan":
            return self._scan(params, given)
        if any(isinstance(degree, Stack) for degree in given):
            kept = degrees_lib.after(equation, given[0])
            if kept is not None:
                return [kept]
        return [*self._single(equation, [self.equal([degree]) for degree in given])]

    def _single(self, equation: JaxprEqn, degrees: list[Degree]) -> Sequence[Degrees]:
        """Return the same where no operand is a stack."""
        name, params = equation.primitive.name, equation.params
        pairs = zip(equation.invars, degrees, strict=True)
        real = [degree for atom, degree in pairs if is_inexact(atom)]
        outputs = len(equation.outvars)
        if name == "cond":
            branches = [self.outputs(branch, degrees[1:]) for branch in params["branches"]]
            return [self.equal(cases) for cases in zip(*branches, strict=True)]
        if name in _EACH:
            return degrees
        if name in _SAME and _keeps(equation):
            return degrees[:1] * outputs
        if name in _SIGNS or not real:
            return [self.zero] * outputs
        if name in _COMPARISONS:
            self.equal(real)
            return [self.zero]
        if name in _SUMS:
            return [self.equal(real)]
        if name in _PRODUCTS:
            return [_combined(real, [1.0] * len(real))]
        if name == "div":
            return [_combined(real, [1.0, -1.0])]
        exponent = _exponent(equation)
        if exponent:
            return [_combined(real[:1], [exponent])]
        return [self.invariant(real)] * outputs

    def _scan(self, params: Mapping[str, Any], degrees: list[Degrees]) -> list[Degrees]:
        """Read a scan: the carry keeps its degree; zeros take on the degree of their summand."""
        first, last = jaxprs.carried(params)
        if any(isinstance(degree, Stack) and degree.axis == 0 for degree in degrees[last:]):
            return self._by_step(params, degrees)
        degrees = [*degrees[:last], *(self.equal([degree]) for degree in degrees[last:])]
        carry, before = degrees[first:last], None
        while before is None or [d is None for d in carry] != [d is None for d in before]:
            found = self.outputs(params["jaxpr"], [*degrees[:first], *carry, *degrees[last:]])
            before, carry = carry, [self.equal(pair) for pair in zip(carry, found, strict=False)]
        return [*carry, *(degrees_lib.stacked(each) for each in found[len(carry) :])]

    def _by_step(self, params: Mapping[str, Any], degrees: list[Degrees]) -> list[Degrees]:
        """Read a scan over a stack step by step: each has weights of its own."""
        first, last = jaxprs.carried(params)
        carry = degrees[first:last]
        results: dict[int, list[Degrees]] = {}
        steps = range(params["length"])
        for step in reversed(steps) if params["reverse"] else steps:
            of_step = [degrees_lib.entry(degree, step) for degree in degrees[last:]]
            found = self.outputs(params["jaxpr"], [*degrees[:first], *carry, *of_step])
            carry, results[step] = found[: len(carry)], found[len(carry) :]
        stacked = zip(*(results[step] for step in steps), strict=True)
        return [*carry, *(Stack(0, each) for each in stacked)]


def _combined(degrees: Sequence[Degree], weights: Sequence[float]) -> Degree:
    terms = [w * d for d, w in zip(degrees, weights, strict=True) if d is not None]
    return np.sum(terms, axis=0) if len(terms) == len(degrees) else None


def _keeps(equation: JaxprEqn) -> bool:
    """Return whether a primitive of `_SAME` keeps the degree: it neither rounds nor fills gaps."""
    if equation.primitive.name == "convert_element_type":
        return is_inexact(equation.outvars[0])
    fill = equation.params.get("fill_value")
    return fill is None or fill == 0 or not np.isfinite(fill)


def _exponent(equation: JaxprEqn) -> float:
    """Return the number that a power multiplies degrees by; 0 if it is no such power."""
    name, operands = equation.primitive.name, equation.invars
    if name == "integer_pow":
        return float(equation.params["y"])
    if name == "pow" and isinstance(operands[1], Literal):
        return float(operands[1].val)
    return _POWERS.get(name, 0.0)


_EACH = {"sort", "optimization_barrier", "device_put", "copy", "copy_p"}  # output i as operand i
_SAME = {  # all outputs as the first operand
    *("abs", "neg", "real", "imag", "conj", "stop_gradient", "name", "reduce_precision"),
    *("convert_element_type", "reshape", "transpose", "rev", "squeeze", "broadcast_in_dim"),
    *("broadcast_to", "tile", "slice", "dynamic_slice", "gather", "split", "unstack"),
    *("reduce_sum", "reduce_max", "reduce_min", "cumsum", "cummax", "cummin"),
    *("reduce_window_sum", "reduce_window_max", "reduce_window_min", "fft"),
    *("sharding_constraint", "layout_constraint", "reshard", "pvary"),
}
_SUMS = {  # operands of one degree, which is the output's: sums, choices, arrangements
    *("add", "add_any", "sub", "max", "min", "rem", "clamp", "select_n", "complex"),
    *("concatenate", "stack", "pad", "dynamic_update_slice"),
    *("scatter", "scatter-add", "scatter-sub", "scatter-max", "scatter-min"),
}
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated", "ragged_dot_general"}
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
_SIGNS = {"sign", "argmax", "argmin", "is_finite"}  # no positive factor changes them
