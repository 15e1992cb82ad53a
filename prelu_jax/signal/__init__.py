"""Where a signal lives and dies in a Flax model: measured forward and backward, layer by layer."""

from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.probe import Probe, measure, prepare
from prelu_jax.signal.report import Report
from prelu_jax.signal.verdict import Finding, Prediction

__all__ = [
    "Finding",
    "LayerStatistics",
    "Measurement",
    "Prediction",
    "Probe",
    "Report",
    "measure",
    "prepare",
]
