"""Records of an audit: a parameter with all that is known about it, and a mistake in one."""

import dataclasses

from prelu_jax.initializers.declared import Declared
from prelu_jax.initializers.fit import Fit
from prelu_jax.initializers.parameters import Parameter
from prelu_jax.initializers.statistics import Statistics

KERNELS = ("kernel", "look-up")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A mistake in a parameter, with its remedy.

    Attributes:
        parameter: path of the parameter.
        kind: a name for programs: 'std', 'wrong fan', 'wrong limit', 'truncation', 'mean',
            'same draw', 'alike units', 'depth scaling', 'decay', 'few values', 'not finite' or
            'type'.
        what: description of the mistake, with figures.
        advice: the remedy.
    """

    parameter: str
    kind: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.parameter}: {self.what}. {self.advice}."


@dataclasses.dataclass(frozen=True)
class Audited:
    """A parameter with its declared rule, its statistics and the rule that its numbers fit.

    Attributes:
        parameter: the description of the parameter.
        declared: the declared rule; None without one.
        measured: the statistics of its numbers.
        fit: the rule that the numbers fit.
    """

    parameter: Parameter
    declared: Declared | None
    measured: Statistics
    fit: Fit
