"""Packaging of prelu_jax. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "prelu_jax/__init__.py").read_text())[1]

# The page of a package index; the README's relative links would be broken there.
LONG_DESCRIPTION = """\
# prelu_jax

Initialisers, a PReLU layer, and tools that find and repair a vanishing or exploding signal in any
JAX model, after He, Zhang, Ren & Sun 2015,
[*Delving Deep into Rectifiers*](https://arxiv.org/abs/1502.01852).

```bash
pip install prelu_jax             # jax, flax, numpy, scipy, rich, absl-py
pip install 'prelu_jax[plot]'     # and matplotlib, for the figures of reports
pip install 'prelu_jax[kmeans]'   # and scikit-learn, for filters by k-means
pip install 'prelu_jax[train]'    # and all that training needs
```

```python
import jax

import prelu_jax as pj

model = pj.models.build(pj.arch.SMALL_14_REDUCED, num_classes=10, rectifier="prelu")
images = jax.random.normal(jax.random.key(0), (32, 32, 32, 3))
variables = jax.jit(model.init)(jax.random.key(1), images)
print(pj.diagnose(model, variables, images))  # a table, a verdict, advice
variables, report = pj.calibrate(model, variables, images, method="lsuv")
```

The source distribution holds the documentation, the tests and the paper's experiments.
"""

# jax 0.11 needs Python 3.12; on Python 3.11 pip resolves to jax 0.10.
JAX = ">=0.10,<0.12"

PLOT = ["matplotlib>=3.9"]
KMEANS = ["scikit-learn>=1.5", "threadpoolctl>=3"]
# For prelu_jax.data, .evaluation, .training and .runs, the experiments and launch.local.
TRAIN = [
    *PLOT,
    *KMEANS,
    "grain>=0.2.18,<0.3",
    "markdown-it-py>=3",
    "ml_collections>=1.0",
    "opencv-python-headless>=4.11",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.11.30,<0.13",
    "pillow>=10",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
]
DATA = [
    *TRAIN,
    "tensorflow-datasets>=4.9.10,<5",
    "importlib_resources",  # TFDS uses it without declaring it
    "array_record>=0.8; sys_platform == 'linux'",
]
BENCH = [*DATA, "torch>=2.8", "lsuv>=0.3", "anyinit>=0.4"]
NOTEBOOK = [*TRAIN, "ipykernel>=6", "nbclient>=0.10", "nbformat>=5"]
LAUNCH = [*TRAIN, "submitit>=1.5"]
DOCS = [*TRAIN, "furo>=2025.7", "myst-nb>=1.3", "sphinx>=8.2,<10"]
TEST = dict.fromkeys(  # each once
    (
        *LAUNCH,
        *NOTEBOOK,
        *DATA,
        "dm-haiku>=0.0.14",  # for tests with models of other libraries
        "equinox>=0.13",
        "hypothesis>=6",
        "mypy>=1.15,<2.5",  # a new version of a linter may complain of the same code
        "pytest>=8",
        "pytest-xdist>=3.6",  # test files in parallel: XLA compiles on one core
        "ruff>=0.12,<0.18",
        "setuptools>=77",  # a test builds the wheel and the sdist
    )
)

setup(
    name="prelu_jax",
    version=VERSION,
    description="Training very deep rectifier networks from scratch, in JAX and Flax",
    long_description=LONG_DESCRIPTION,
    long_description_content_type="text/markdown",
    author="The prelu_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=(
        "jax flax prelu initialization he-initialization xavier lsuv rectifier deep-learning "
        "signal-propagation"
    ),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["prelu_jax", "prelu_jax.*"]),
    package_data={"prelu_jax": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        f"jax{JAX}",
        "absl-py>=2.1",
        "flax>=0.12,<0.13",
        "numpy>=2.0",
        "rich>=13",
        "scipy>=1.13",
    ],
    extras_require={
        "plot": PLOT,
        "kmeans": KMEANS,
        "train": TRAIN,
        "data": DATA,
        "bench": BENCH,
        "notebook": NOTEBOOK,
        "launch": LAUNCH,
        "docs": DOCS,
        "test": list(TEST),
        "cuda": [f"jax[cuda13]{JAX}"],
        "tpu": [f"jax[tpu]{JAX}"],
    },
)
