"""Statistics of the values of hidden states: size, spread, sparsity, outlier dimensions.

T is the number of rows (tokens), E their width; float64. NaN or Inf among the values gives NaN; an empty array raises
MeasureError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MeasureError
from .arrays import as_rows, as_values, finite, unit_rows

NEAR_ZERO = 1e-6

# T. Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, section 4: a feature
# is an outlier where its magnitude is at least 6.0, in at least 6% of the positions and 25% of the layers.
OUTLIER_MAGNITUDE = 6.0
OUTLIER_TOKENS = 0.06
OUTLIER_LAYERS = 0.25


@dataclass(frozen=True)
class VectorStatistics:
    """What `vector_statistics` says about an array."""

    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float  # of the population: divided by the number of values
    min: float
    max: float
    l2_norm: float  # of all values as one vector
    sparsity: float  # share of values below 1e-6 in magnitude
    percentile_25: float
    percentile_50: float
    percentile_75: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, except that JSON has no NaN."""
        return {**asdict(self), "shape": list(self.shape)}


def vector_statistics(array: npt.ArrayLike) -> VectorStatistics:
    """Statistics over all values of an array of any shape, in its own units. Percentiles are linear between values."""
    values = as_values(array)
    dtype = str(np.asarray(array).dtype)
    numbers = [np.nan] * 9
    if finite(values):
        peak = float(np.abs(values).max())
        scale = peak if peak > 0 else 1.0  # sums of the squares of very large values leave float64's range
        scaled = values.ravel() / scale
        quartiles = np.percentile(values, (25, 50, 75))
        numbers = [
            float(scaled.mean() * scale),
            float(scaled.std() * scale),
            float(values.min()),
            float(values.max()),
            float(np.sqrt(scaled @ scaled) * scale),
            sparsity(values),
            *map(float, quartiles),
        ]
    return VectorStatistics(values.shape, dtype, *numbers)


def sparsity(values: npt.ArrayLike) -> float:
    """Share of values with |x| < 1e-6, 0 to 1, of an array of any shape."""
    array = as_values(values)
    return float((np.abs(array) < NEAR_ZERO).mean()) if finite(array) else np.nan


def outlier_dimensions(
    rows: npt.ArrayLike, *, magnitude: float = OUTLIER_MAGNITUDE, tokens: float = OUTLIER_TOKENS
) -> tuple[int, ...]:
    """Indices of the columns of (T, E) that are large, 6 times the row's root mean square, in at least 6% of the rows.

    The thresholds are those of Dettmers et al., "LLM.int8()", 2022, where values are what a block's norm has made of
    the states. The rows here come before that norm, so each is divided by its root mean square first, as such a norm
    does: lengths make no difference. No value reaches 6 where E < 36. Rows with NaN or Inf, or of zeros, have no
    large value.
    """
    array = as_rows(rows)
    if not (magnitude > 0 and 0 < tokens <= 1):
        raise MeasureError(
            f"a magnitude above 0 and a share of tokens up to 1 are needed, not {magnitude} and {tokens}"
        )
    # Not share * T alone: 0.07 * 100 is a little more than 7.
    needed = max(1, int(np.ceil(tokens * len(array) - 1e-9)))
    good = array[np.isfinite(array).all(axis=1)]
    large = np.abs(unit_rows(good)) * np.sqrt(array.shape[1]) >= magnitude * (1 - 1e-12) if len(good) else good
    return tuple(np.flatnonzero(large.sum(axis=0) >= needed).tolist())


def recurring_outliers(per_layer: Sequence[Collection[int]], *, layers: float = OUTLIER_LAYERS) -> tuple[int, ...]:
    """Dimensions that are outliers in at least the share `layers` of the layers (25%: Dettmers et al., 2022)."""
    counts = Counter(dimension for found in per_layer for dimension in set(found))
    return tuple(sorted(d for d, count in counts.items() if count >= layers * len(per_layer) - 1e-9))
