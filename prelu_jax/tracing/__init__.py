"""One reading of any JAX function: its affine operations, wherever they are."""

from prelu_jax.tracing.arrangement import Arrangement
from prelu_jax.tracing.evaluation import Visit
from prelu_jax.tracing.operations import Operation
from prelu_jax.tracing.program import Program, at, trace, zeros
from prelu_jax.tracing.reading import Reading

__all__ = ["Arrangement", "Operation", "Program", "Reading", "Visit", "at", "trace", "zeros"]
