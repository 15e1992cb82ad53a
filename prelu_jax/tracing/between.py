"""Which affine operations feed the input of each other one, and through which operations."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from prelu_jax.tracing import jaxprs, kinds
from prelu_jax.tracing.kinds import BATCH, Trail
from prelu_jax.tracing.operations import Body


class Feed(NamedTuple):
    """The way to the input of an affine operation.

    Attributes:
        sources: places in `Program.rows` of the affine operations whose outputs reach the input
            through other operations alone. A residual sum has those of its branch, the stacked
            outputs of a scan those of its last step.
        kinds: the names of the operations on the way (`kinds`), in order of execution; none without
            sources.
    """

    sources: tuple[int, ...]
    kinds: tuple[str, ...]


def feeds(body: Body, parameters: int, batch: int) -> list[Feed]:
    """Return the way to each operation, in the order of `Program.rows`.

    Args:
        body: the function.
        parameters: the number of parameters, its first inputs.
        batch: the index of the first array of the batch, its last inputs.
    """
    inputs = [
        Trail(is_parameter=i < parameters) if i < batch else Trail(frozenset({BATCH}))
        for i in range(len(body.jaxpr.invars))
    ]
    walk = _Walk()
    walk.body(body, inputs)
    return walk.feeds


class _Walk:
    """A run of a function on trails instead of arrays."""

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self._fed_by: list[frozenset[int]] = []

    def body(self, body: Body, inputs: Sequence[Trail]) -> list[Trail]:
        """Return the trails of a jaxpr's outputs; append the way to each operation to `feeds`."""
        known: dict[Any, Trail] = dict(zip(body.jaxpr.invars, inputs, strict=True))

        def look(atom: Any) -> Trail:
            return Trail() if isinstance(atom, Literal) else known.get(atom, Trail())

        for i, equation in enumerate(body.jaxpr.eqns):
            operands = [look(atom) for atom in equation.invars]
            results = self._results(equation, operands, body.inner.get(i, ()))
            known |= zip(equation.outvars, results, strict=True)
            if i in body.watched:
                watched = body.watched[i]
                known[watched.y] = self._passed(look(watched.x))
        return [look(atom) for atom in body.jaxpr.outvars]

    def _passed(self, x: Trail) -> Trail:
        """Append the way to an operation to `feeds`; return the trail of its output."""
        sources = tuple(sorted(x.sources - {BATCH}))
        self.feeds.append(Feed(sources, x.kinds if sources else ()))
        self._fed_by.append(x.sources)
        return Trail(frozenset({len(self.feeds) - 1}))

    def _results(
        self, equation: JaxprEqn, operands: list[Trail], inner: Sequence[Body]
    ) -> Iterable[Trail]:
        name = equation.primitive.name
        if name == "scan":
            return self._scan(equation, operands, inner)
        if name == "cond":
            branches = inner or [_plain(held) for held in equation.params["branches"]]
            cases = [self.body(branch, operands[1:]) for branch in branches]
            return [kinds.merged(list(pair)) for pair in zip(*cases, strict=True)]
        if name in jaxprs.REMAT or jaxprs.is_transparent(equation):
            if not inner:
                values = equation.params.values()
                inner = [_plain(next(v for v in values if jaxprs.is_body(v, equation)))]
            return self.body(inner[0], operands)
        signals = [trail for trail in operands if trail.sources]
        if name in kinds.SUMS and len(signals) == 2 and signals[0].sources != signals[1].sources:
            return [self._sum(*signals)]
        return [kinds.after(equation, operands)] * len(equation.outvars)

    def _scan(
        self, equation: JaxprEqn, operands: list[Trail], inner: Sequence[Body]
    ) -> list[Trail]:
        first, last = jaxprs.carried(equation.params)
        steps = equation.params["length"] if inner else 1
        step = inner[0] if inner else _plain(equation.params["jaxpr"])
        carry, stacked = operands[first:last], [Trail()] * (len(equation.outvars) - last + first)
        for _ in range(steps):
            results = self.body(step, [*operands[:first], *carry, *operands[last:]])
            carry, stacked = results[: last - first], results[last - first :]
        return [*carry, *stacked]

    def _sum(self, one: Trail, other: Trail) -> Trail:
        """Return the trail of a sum of signals from different sources."""
        for branch, stream in ((one, other), (other, one)):
            if self._comes_from(branch.sources - stream.sources, stream.sources):
                return branch.then(kinds.RESIDUAL)
        result = kinds.merged([one, other])
        for branch, stream in ((one, other), (other, one)):  # a projection beside deeper layers
            projected = self._before(stream.sources)
            if self._comes_from(self._before(branch.sources) - projected, projected):
                return result.then(kinds.RESIDUAL)
        return result.then("sum")

    def _before(self, rows: frozenset[int]) -> frozenset[int]:
        """Return the operations that feed those in ``rows``."""
        return frozenset[int]().union(*(self._fed_by[i] for i in rows - {BATCH})) - {BATCH}

    def _comes_from(self, rows: frozenset[int], bases: frozenset[int]) -> bool:
        """Return whether any of the operations ``rows`` was computed from one of ``bases``."""
        waiting, seen = list(rows), set(rows)
        while waiting and bases:
            row = waiting.pop()
            if row in bases:
                return True
            if row > min(bases):
                more = self._fed_by[row] - seen
                waiting += more
                seen |= more
        return False


def _plain(held: Any) -> Body:
    """Return the body of a jaxpr without affine operations."""
    jaxpr: Jaxpr = jaxprs.opened(held)[0]
    return Body(jaxpr, (), {}, {})
