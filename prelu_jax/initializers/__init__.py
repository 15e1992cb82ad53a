"""Weight initialisers with the papers' own definitions.

Every factory returns a callable ``(key, shape, dtype) -> array`` that Flax, Haiku and plain JAX
accept. Names are exact: ``normal`` is a true Gaussian (JAX's own ``he_normal`` and
``glorot_normal`` are truncated at two standard deviations), also in half precision (JAX draws
bfloat16 weights from 7 bits of uniform noise; here they are drawn in float32 and rounded).

Three initialisers are called Xavier in the literature, and a fourth in JAX:

============================  =========================================  ======================
where                         here                                       variance
============================  =========================================  ======================
Glorot & Bengio 2010, Eq. 16  ``xavier_uniform()``, uniform              2 / (fan_in + fan_out)
Caffe's ``xavier`` filler     ``caffe_xavier()``, uniform                1 / fan_in
He et al. 2015, Fig. 2 and 3  ``he2015_xavier()``, Gaussian              1 / fan_out
`jax.nn.initializers`         ``xavier('fan_avg', 'truncated_normal')``  2 / (fan_in + fan_out)
============================  =========================================  ======================

Kaiming, He and Caffe's ``msra`` are the same rule: ``he_normal()`` is ``caffe_msra()`` except for
groups. ``kaiming_*`` are other names of ``he_*``, ``glorot_*`` of ``xavier_*`` and ``msra`` of
``caffe_msra``. `torch.nn.init` agrees in variance with ``he_*`` and ``xavier_*`` for dense and
plain convolutional kernels. It differs for groups (fan_out counts all of them) and for transposed
convolutions (its fans are swapped).
"""

from prelu_jax.initializers.audit import table
from prelu_jax.initializers.audited import Finding
from prelu_jax.initializers.factories import (
    REGISTRY,
    caffe_msra,
    caffe_xavier,
    constant,
    delta_orthogonal,
    dirac,
    gaussian,
    get,
    glorot,
    glorot_normal,
    glorot_uniform,
    he,
    he2015_xavier,
    he_normal,
    he_uniform,
    kaiming,
    kaiming_normal,
    kaiming_uniform,
    lecun,
    lecun_normal,
    lecun_uniform,
    msra,
    options,
    orthogonal,
    xavier,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from prelu_jax.initializers.fans import MODES, Layout, Mode, fans
from prelu_jax.initializers.foreign import describe
from prelu_jax.initializers.layers import for_layer
from prelu_jax.initializers.listing import Row, Table
from prelu_jax.initializers.rules import (
    DISTRIBUTIONS,
    Constant,
    Distribution,
    Gaussian,
    Initializer,
    Orthogonal,
    VarianceScaling,
    from_matrices,
)

__all__ = [
    "DISTRIBUTIONS",
    "MODES",
    "REGISTRY",
    "Constant",
    "Distribution",
    "Finding",
    "Gaussian",
    "Initializer",
    "Layout",
    "Mode",
    "Orthogonal",
    "Row",
    "Table",
    "VarianceScaling",
    "caffe_msra",
    "caffe_xavier",
    "constant",
    "delta_orthogonal",
    "describe",
    "dirac",
    "fans",
    "for_layer",
    "from_matrices",
    "gaussian",
    "get",
    "glorot",
    "glorot_normal",
    "glorot_uniform",
    "he",
    "he2015_xavier",
    "he_normal",
    "he_uniform",
    "kaiming",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun",
    "lecun_normal",
    "lecun_uniform",
    "msra",
    "options",
    "orthogonal",
    "table",
    "xavier",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
