"""Scores of every example of a split: computation, averages over models, top-k errors."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

Batch = dict[str, np.ndarray]


def predict(
    step: Callable[[Batch], jax.Array], images: Iterable[Batch], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of every example, in the order of the examples.

    Images of one shape share a batch, and each shape compiles once. (Padding all images to one
    shape would put borders into the windows of the dense test.) The last batch of a shape is filled
    with copies whose scores are discarded.

    Args:
        step: function from a batch of images of one shape to scores ``[batch_size, classes]``:
            `dense_step` or `ten_view_step` with their state.
        images: single examples, ``image`` and ``label`` (`data.pipeline.whole_images`).
        batch_size: examples per batch. Up to ``batch_size - 1`` images of every shape are held
            until their batch is full.

    Returns:
        Scores ``[n, classes]`` and labels ``[n]``.

    Raises:
        ValueError: ``images`` is empty.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
    scores: dict[int, np.ndarray] = {}
    labels = []

    def finish(group: list[tuple[int, np.ndarray]]) -> None:
        filled = group + group[:1] * (batch_size - len(group))
        rows = np.asarray(step({"image": np.stack([image for _, image in filled])}))
        scores.update({place: rows[i] for i, (place, _) in enumerate(group)})

    for place, example in enumerate(images):
        labels.append(example["label"])
        group = waiting[example["image"].shape]
        group.append((place, example["image"]))
        if len(group) == batch_size:
            finish(waiting.pop(example["image"].shape))
    for group in waiting.values():
        finish(group)
    if not labels:
        raise ValueError("predict: there is no image, expected at least one example.")
    return np.stack([scores[place] for place in range(len(labels))]), np.array(labels)


def average(scores: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Return the mean softmax scores of several models or scales on the same examples (Table 7).

    Args:
        scores: ``[n, classes]`` by name of the model or by scale.

    Raises:
        ValueError: there are no scores, or two differ in their examples or classes.
    """
    if not scores:
        raise ValueError("average: no scores are given, expected those of at least one model.")
    (first, expected), *others = ((name, np.shape(s)) for name, s in scores.items())
    for name, shape in others:
        for axis, counted in enumerate(("examples", "classes")):
            if shape[axis] != expected[axis]:
                raise ValueError(
                    f"average: '{name}' scores {shape[axis]} {counted}, '{first}' "
                    f"{expected[axis]}; expected equal numbers."
                )
    mean: np.ndarray = np.mean(list(scores.values()), axis=0)
    return mean


def top_error(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of examples whose label is not among the k highest scores.

    Among equal scores the first class ranks highest, as in ``argmax``.

    Args:
        scores: ``[n, classes]``.
        labels: ``[n]``.
        k: 1 or 5 in the paper's tables.

    Raises:
        ValueError: k is not between 1 and the number of classes, or a score is not finite.
    """
    n, classes = scores.shape
    if not 1 <= k <= classes:
        raise ValueError(f"top_error: k is {k}, expected 1 to the {classes} classes.")
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if broken.size:
        raise ValueError(
            f"top_error: the scores of {broken.size} examples are not finite, the first is example "
            f"{broken[0]}; the model diverged or computes in too narrow a type."
        )
    label = labels[:, None]
    own = np.take_along_axis(scores, label, axis=1)
    ahead = (scores > own) | ((scores == own) & (np.arange(classes) < label))
    return float(np.count_nonzero(ahead.sum(axis=1) >= k) / n)
