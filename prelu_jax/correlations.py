"""Correlations between positions and between two examples, layer by layer, for `theory`.

Exactness, for independent zero-mean weights and zero biases:

* **Convolutions and dense layers**: exact at any width. Products of two examples follow the rules
  of second moments.
* **Rectifiers**: exact in the wide limit, where values are Gaussian with one variance and one
  cosine for all pairs of examples: for inputs of many channels, or a kernel that reads many values.
  If pairs differ in their cosines, the mean comes out slightly higher than predicted.
* **Max pooling and the pyramid**: approximate (`maxima`). On maps of at most
  `CORRELATED_POSITIONS`, correlations of positions are carried for every pair, exactly in the wide
  limit; on larger maps and after a pool, one correlation represents all pairs.

The mean cosine of a narrow net is lower than predicted. On the reduced 30-layer net with images of
16 × 16 pixels of white noise, the measured 1 - cosine is up to 1.4 times the predicted one if the
convolutions are eight times as wide. At the net's own width, 16 and 32 channels, it is up to 3.5
times with zero padding and 7 times with circular padding, at the last convolutions (a cosine of
0.88 where 0.96 is predicted). In a layer of few outputs, such as the scores, the mean cosine is
lower by about c (1 - c²) / 2n for n outputs.
"""

import dataclasses

import numpy as np
from jax.typing import ArrayLike

from prelu_jax import maxima, moment_maps
from prelu_jax.arch import Conv, MaxPool, SpatialPyramid
from prelu_jax.moment_maps import Map

CORRELATED_POSITIONS = 400  # on larger maps one correlation represents all pairs


@dataclasses.dataclass(frozen=True)
class Correlations:
    """Correlations of a map's values at positions p and q, in examples a and b.

    Products are divided by ``√(E[x(p)²] E[x(q)²])``. Only max pooling needs ``within`` and
    ``across``.

    Attributes:
        within: ``E[x_a(p) x_a(q)]``, ``[h, w, h, w]``, or ``[]`` if one represents all p ≠ q.
        same: ``E[x_a(p) x_b(p)]``, the cosine of two examples at every position, ``[h, w]``.
        across: ``E[x_a(p) x_b(q)]``, like ``within``.
    """

    within: Map
    same: Map
    across: Map

    def cosine(self, x_hw: Map) -> float:
        """Return the cosine of two examples' maps, ``Σ_p E[x_a x_b] / Σ_p E[x²]``."""
        total = float(x_hw.sum())
        return float((self.same * x_hw).sum()) / total if total else 0.0

    def rectified(self, negative_slope: ArrayLike) -> "Correlations":
        """Return the correlations after a rectifier, for Gaussian values."""
        maps = (self.within, self.same, self.across)
        return Correlations(*(moment_maps.rectified_correlation(c, negative_slope) for c in maps))

    def conv(self, x_hw: Map, layer: Conv) -> "Correlations":
        """Return the correlations of a convolution's outputs, from E[x²] of its input, ``[h, w]``.

        For maps of at most `CORRELATED_POSITIONS` the result holds every pair.
        """
        if self.within.ndim or x_hw.size <= CORRELATED_POSITIONS:
            within, across = self._of_all_pairs()
            across = moment_maps.conv_cross_correlation(across, x_hw, layer)
            within = moment_maps.conv_correlation(within, x_hw, layer)
            return Correlations(within, np.einsum("ijij->ij", across), across)
        products, squares = (
            moment_maps.conv_forward(values, layer, 1.0, 1) for values in (self.same * x_hw, x_hw)
        )
        return Correlations(self.within, products / np.maximum(squares, 1e-300), self.across)

    def _of_all_pairs(self) -> tuple[Map, Map]:
        """Return ``within`` and ``across`` for every pair, ``[h, w, h, w]``."""
        if self.within.ndim:
            return self.within, self.across
        within, across = (
            np.full(2 * self.same.shape, float(c)) for c in (self.within, self.across)
        )
        np.einsum("ijij->ij", within)[...] = 1.0
        np.einsum("ijij->ij", across)[...] = self.same
        return within, across

    def dense(self, x_hw: Map) -> "Correlations":
        """Return the correlations of a fully connected layer's outputs, which have no positions."""
        return Correlations(self.within, np.asarray(self.cosine(x_hw)), self.across)

    def max_pool(
        self, y_hw: Map, layer: MaxPool | SpatialPyramid, slope: ArrayLike, within: float
    ) -> "Correlations":
        """Return the correlations after a rectifier and max pooling of ``y_hw``, E[y²].

        ``within`` is `maxima.Pooled.correlation`.
        """
        regions = maxima.regions(layer, y_hw.shape)
        same, across = maxima.max_pool_cosines(
            y_hw, regions, slope, self.within, self.same, self.across
        )
        shape = maxima.pooled_shape(layer, y_hw.shape)
        return Correlations(np.asarray(within), same.reshape(shape), np.asarray(across))


def of_input(shape: tuple[int, ...], within: float, cosine: float) -> Correlations:
    """Return the correlations of a net's input, assuming ``across = within · cosine``."""
    across = np.asarray(within * cosine)
    return Correlations(np.asarray(within), np.full(shape, float(cosine)), across)
