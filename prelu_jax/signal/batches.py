"""The batch that a model is called with: its arrays, its examples, and NNX objects in it."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Examples(NamedTuple):
    """The number of examples in a batch, and how it was found.

    Attributes:
        number: the number.
        chosen: the size that it was taken from, in words.
    """

    number: int
    chosen: str

    def lines(self) -> list[str]:
        """Return the line of a report."""
        return [f"Examples: {self.number}, {self.chosen}."]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Carried:
    """An NNX object or variable taken apart: its state passes the boundaries of traces.

    Attributes:
        graphdef: its structure.
        state: its arrays.
    """

    graphdef: Any = dataclasses.field(metadata={"static": True})
    state: Any

    __hash__ = None  # type: ignore[assignment]  # arrays cannot key a cache

    def __eq__(self, other: object) -> bool:
        return self is other


def carried(value: Any) -> Any:
    """Return a pytree with every NNX object or variable in it taken apart."""

    def split(leaf: Any) -> Any:
        return Carried(*nnx.split(leaf)) if _is_nnx(leaf) else leaf

    return jax.tree.map(split, value, is_leaf=lambda leaf: _is_carried(leaf) or _is_nnx(leaf))


def _is_nnx(leaf: Any) -> bool:
    return nnx.graph.is_graph_node(leaf) and not isinstance(leaf, jax.Array | np.ndarray)


def _is_carried(leaf: Any) -> bool:
    return isinstance(leaf, Carried)


def arguments(
    batch: Any, call_kwargs: Iterable[tuple[str, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of one call of the model.

    NNX objects are copies that belong to the trace that asks for them, which may change them. A
    named tuple is one argument.
    """
    return _merged(positional(batch)), _merged(dict(call_kwargs))


def positional(batch: Any) -> tuple[Any, ...]:
    """Return the positional arguments of the model that a batch holds."""
    return batch if type(batch) is tuple else (batch,)


def _merged(value: Any) -> Any:
    def merge(leaf: Any) -> Any:
        return nnx.merge(leaf.graphdef, leaf.state, copy=True) if _is_carried(leaf) else leaf

    return jax.tree.map(merge, value, is_leaf=_is_carried)


def parameters(value: Any) -> dict[str, Any]:
    """Return the parameters of the NNX modules among some arguments, by path."""
    nodes = jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_carried)
    leaves = [
        (jax.tree_util.keystr((*start, *path), simple=True, separator="/"), variable)
        for start, node in nodes
        if _is_carried(node)
        for path, variable in jax.tree_util.tree_leaves_with_path(
            node.state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
        )
    ]
    return {
        f"argument {path}": variable.get_raw_value()
        for path, variable in leaves
        if isinstance(variable, nnx.Param)
    }


def _arrays(batch: Any) -> list[Any]:
    """Return the batch's own arrays, without the state of NNX objects."""
    leaves = jax.tree.leaves(batch, is_leaf=_is_carried)
    return [leaf for leaf in leaves if not _is_carried(leaf)]


def _is_of_jax(dtype: Any) -> bool:
    """Return whether JAX has arrays of a type: numbers, booleans and keys."""
    kinds = (np.number, np.bool_, jax.dtypes.extended)
    try:
        return any(jnp.issubdtype(dtype, kind) for kind in kinds)
    except TypeError:  # a type of another library
        return False


def check(batch: Any) -> None:
    """Check that a batch holds arrays of numbers only, none of them empty, and one with an axis.

    Raises:
        TypeError: the batch holds something else.
        ValueError: no batch axis, or an empty batch.
    """
    arrays = _arrays(batch)
    for leaf in arrays:
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"the batch holds {leaf!r}, a {type(leaf).__name__}; expected arrays only. Give "
                "flags as call_kwargs={'train': True}."
            )
        if not _is_of_jax(leaf.dtype):
            raise TypeError(
                f"the batch holds a {type(leaf).__name__} of type {leaf.dtype}, expected a type "
                "of JAX. A tensor of PyTorch? Give its .numpy(). Rows of different lengths? Pad "
                "them to one length."
            )
    if not any(leaf.ndim for leaf in arrays):
        raise ValueError(
            f"the batch is {described(batch)}, expected arrays of which one at least has the "
            "examples along its first axis. One example? Give x[None]."
        )
    if any(0 in leaf.shape for leaf in arrays):
        raise ValueError(f"the batch is empty: {described(batch)}.")


def described(value: Any) -> Any:
    """Return a pytree with every array as its type and shape, e.g. 'float32[2, 3]'."""

    def describe(leaf: Any) -> str:
        return type(leaf).__name__ if _is_carried(leaf) else f"{leaf.dtype}{list(leaf.shape)}"

    return jax.tree.map(describe, value, is_leaf=_is_carried)


def examples(batch: Any, outputs: Any = None, given: int | None = None) -> Examples:
    """Return the number of examples.

    It is the leading size of the model's outputs, if an array of the batch has it too; else that
    of most of the batch's arrays, other than 1 if possible, and of the largest array among those
    that are as many.

    Args:
        batch: pytrees of arrays.
        outputs: of the model; None if they are not known yet.
        given: the user's number, which is taken instead.

    Raises:
        TypeError, ValueError: ``given`` is no leading size of an array.
    """
    arrays = [leaf for leaf in _arrays(batch) if leaf.ndim]
    sizes = collections.Counter(leaf.shape[0] for leaf in arrays)
    returned = collections.Counter(
        leaf.shape[0] for leaf in jax.tree.leaves(outputs) if getattr(leaf, "ndim", 0)
    )
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int | np.integer):
            raise TypeError(f"batch_size is {given!r}, expected a whole number.")
        if given not in sizes:
            raise ValueError(
                f"batch_size is {given}, but the leading sizes of the batch's arrays are "
                f"{sorted(sizes)}: {described(batch)}."
            )
        return Examples(int(given), "as batch_size says")
    largest = {
        size: max(math.prod(leaf.shape) for leaf in arrays if leaf.shape[0] == size)
        for size in sizes
    }

    def rank(size: int) -> tuple[bool, int, int, int]:
        return size > 1, returned[size], sizes[size], largest[size]

    common = [size for size in returned if size in sizes]
    if common:
        return Examples(max(common, key=rank), "the leading size of the outputs")
    number = max(sizes, key=rank)
    equal = sorted(size for size in sizes if size > 1 and sizes[size] == sizes[number])
    if len(equal) > 1:
        also = ", ".join(map(str, equal))
        how = f"the leading size of the largest array; {also} are equally common in the batch"
        return Examples(number, f"{how}. batch_size=... sets another")
    return Examples(number, "the leading size of most arrays of the batch")


def leading(batch: Any) -> tuple[int | None, ...]:
    """Return the leading size of every array of the batch; None for a scalar."""
    return tuple(leaf.shape[0] if leaf.ndim else None for leaf in _arrays(batch))


def check_as_prepared(batch: Any, prepared: Sequence[int | None], examples: int) -> None:
    """Check that a batch has the leading sizes that a probe was prepared for.

    Raises:
        ValueError: it has others.
    """
    sizes = leading(batch)
    if sizes == tuple(prepared):
        return
    pairs = zip(sizes, prepared, strict=False)
    number = next((now for now, before in pairs if before == examples != now), examples)
    if number == examples:
        what = f"arrays of leading sizes {sizes}, but the probe was prepared for {tuple(prepared)}"
    else:
        what = f"{number} examples, but the probe was prepared for {examples}"
    raise ValueError(f"the batch has {what}; prepare another probe for other shapes.")


def joined(batches: Iterator[Any], batch_size: int | None = None) -> tuple[Any, int | None]:
    """Return several batches as one, example after example, and its batch size if one was given.

    Arrays without the examples along their first axis, as masks, have to be the same in all.

    Raises:
        ValueError: there is no batch, or arrays without examples differ.
    """
    held = [carried(batch) for batch in batches]
    if not held:
        raise ValueError("the iterator holds no batch.")
    for batch in held:
        check(batch)
    numbers = [examples(batch, given=batch_size).number for batch in held]

    def join(*parts: Any) -> Any:
        if _is_carried(parts[0]):
            return parts[0]
        shapes = [part.shape[:1] for part in parts]
        if shapes == [(number,) for number in numbers]:
            return jnp.concatenate(parts)
        if all(_same(part, parts[0]) for part in parts[1:]):
            return parts[0]
        raise ValueError(
            f"the iterator's batches hold arrays {described(list(parts))} that differ and do not "
            f"have the examples, {numbers}, along their first axis: expected one array for all."
        )

    whole = jax.tree.map(join, *held, is_leaf=_is_carried)
    return whole, None if batch_size is None else sum(numbers)


def _same(a: Any, b: Any) -> bool:
    return a is b or (a.shape == b.shape and bool(jnp.all(a == b)))


def check_keys(rngs: Mapping[str, Any] | None) -> None:
    """Check that the keys of random streams are a dict, not an NNX object.

    Raises:
        TypeError: they are not.
    """
    if rngs is not None and not isinstance(rngs, Mapping):
        raise TypeError(
            f"rngs is a {type(rngs).__name__}, expected a dict of keys, e.g. {{'dropout': key}}. "
            "A model that takes nnx.Rngs as an argument is given them by the batch, "
            "(x, nnx.Rngs(0)), or by call_kwargs={'rngs': nnx.Rngs(0)}."
        )
