"""A model's signal, measured forward and backward, layer by layer, and judged."""

from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage, NotMeasured
from prelu_jax.signal.drift import Prediction
from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.probe import Probe, measure, prepare
from prelu_jax.signal.report import Report
from prelu_jax.signal.verdict import Finding

Unseen = NotMeasured  # its former name

__all__ = [
    "Coverage",
    "Examples",
    "Finding",
    "LayerStatistics",
    "Measurement",
    "NotMeasured",
    "Prediction",
    "Probe",
    "Report",
    "Unseen",
    "measure",
    "prepare",
]
