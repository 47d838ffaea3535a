"""What a measure takes: arrays of real numbers, as float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MeasureError
from .rows import Floats


def as_rows(rows: npt.ArrayLike) -> Floats:
    """(T, E) float64, T and E at least 1. Raises MeasureError for anything else."""
    array = _numbers(rows)
    if array.ndim != 2 or array.size == 0:
        raise MeasureError(
            f"a measure of rows needs a 2-d array, one row per token, with at least one row and one column; this has "
            f"shape {array.shape}"
        )
    return array


def as_vector(vector: npt.ArrayLike) -> Floats:
    """(E,) float64, E at least 1. Raises MeasureError for anything else."""
    array = _numbers(vector)
    if array.ndim != 1 or array.size == 0:
        raise MeasureError(
            f"a measure of one vector needs a 1-d array with at least one value; this has shape {array.shape}"
        )
    return array


def as_values(values: npt.ArrayLike) -> Floats:
    """Any shape, float64, at least one value. Raises MeasureError for anything else."""
    array = _numbers(values)
    if array.size == 0:
        raise MeasureError(f"a statistic needs at least one value; this array has shape {array.shape}")
    return array


def unit_rows(rows: Floats) -> Floats:
    """Each row divided by its L2 norm, (T, E); a row of zeros stays one. The rows must be finite."""
    # By the largest value first: the squares of very large or small values leave float64's range.
    peaks = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(peaks > 0, peaks, 1.0)
    norms = np.sqrt(np.einsum("te,te->t", scaled, scaled))[:, None]
    return np.asarray(scaled / np.where(norms > 0, norms, 1.0))


def finite(array: npt.NDArray[Any]) -> bool:
    """Whether there is no NaN and no Inf."""
    return bool(np.isfinite(array).all())


def _numbers(values: npt.ArrayLike) -> Floats:
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise MeasureError(f"this is no array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise MeasureError(f"a measure needs real numbers; this array has dtype {array.dtype}")
    return array.astype(np.float64)
