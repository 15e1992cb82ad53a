"""One reading of any JAX function: its affine operations, wherever they are."""

from prelu_jax.tracing.evaluation import Visit
from prelu_jax.tracing.operations import Operation
from prelu_jax.tracing.program import Program, at, trace
from prelu_jax.tracing.reading import Reading

__all__ = ["Operation", "Program", "Reading", "Visit", "at", "trace"]
