"""Where a signal lives and dies in a Flax model: measured forward and backward, layer by layer."""

from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.probe import Probe, measure, prepare

__all__ = ["LayerStatistics", "Measurement", "Probe", "measure", "prepare"]
