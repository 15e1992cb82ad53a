"""Evaluation of networks: centre crops, ten views, and dense windows at several scales.

`eval_step` and `evaluate` count a run's errors on centre crops. For the papers' tables, the scores
of every example are computed instead and averaged over scales and models (He et al. 2015, §3,
Tables 4 to 7)::

    dense = parallel.over_batch(functools.partial(evaluation.dense_step, axis_name=AXIS))
    step = lambda batch: dense(state, parallel.split(batch))
    scores = {}
    for side in evaluation.SCALES:
        images = pipeline.whole_images(split, side, multiple=32)
        scores[side], labels = evaluation.predict(step, images, batch_size=8)
    evaluation.top_error(evaluation.average(scores), labels, k=5)
"""

from prelu_jax.evaluation.exact import Sums, eval_step, evaluate, mean
from prelu_jax.evaluation.scores import average, predict, top_error
from prelu_jax.evaluation.views import (
    SCALES,
    crop_scores,
    crops_step,
    dense_scores,
    dense_step,
    ten_view_step,
)

__all__ = [
    "SCALES",
    "Sums",
    "average",
    "crop_scores",
    "crops_step",
    "dense_scores",
    "dense_step",
    "eval_step",
    "evaluate",
    "mean",
    "predict",
    "ten_view_step",
    "top_error",
]
