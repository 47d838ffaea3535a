"""How many dimensions hidden states use: three definitions of D_eff, two of β, and alignment.

The names and definitions are those of The Loom's geometry metrics; they give different numbers, so a number should
always be shown with its definition's name. T is the number of rows (tokens), E their width. Everything is computed in
float64. NaN or Inf among the values gives NaN; an array of a wrong shape raises MeasureError.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import MeasureError
from .arrays import as_rows, as_vector, finite, unit_rows
from .rows import Floats

_SHARE = 0.9
_TIE = 1e-9  # a sum of equal parts that reaches the share exactly must not miss it by rounding


def pca90(rows: npt.ArrayLike) -> float:
    """D_eff `pca90` of rows (T, E): the number of principal components that hold 90% of the variance of directions.

    Each row is divided by its L2 norm (a row of zeros stays zero), the mean row is subtracted, and the largest
    eigenvalues of the covariance are counted until they sum up to 90% of all of them. So lengths make no difference,
    nor does a rotation. At most min(T - 1, E); 0 where the directions do not vary: one row, or constant rows.
    """
    array = as_rows(rows)
    if not finite(array):
        return np.nan
    units = unit_rows(array)
    spectrum = _spectrum(units - units.mean(axis=0))
    # What is left of equal directions after the subtraction is rounding, not variance.
    rounding = len(array) * (max(array.shape) * np.finfo(np.float64).eps) ** 2
    return float(_count(spectrum)) if spectrum.sum() > rounding else 0.0


def entropy(rows: npt.ArrayLike) -> float:
    """D_eff `entropy` of rows (T, E): exp(-Σ p ln p), p = σ²/Σσ², of the singular values σ of the rows as they are.

    The rows are neither centred nor normalised, so long rows count more. 1 for rows of one direction, min(T, E) for
    a flat spectrum; 0 where all rows are zero. O. Roy and M. Vetterli, "The effective rank", 2007, define the same
    with p = σ/Σσ.
    """
    array = as_rows(rows)
    if not finite(array):
        return np.nan
    peak = np.abs(array).max()
    if peak == 0:
        return 0.0
    spectrum = _spectrum(array / peak)
    shares = spectrum[spectrum > 0] / spectrum.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def energy90(vector: npt.ArrayLike) -> float:
    """D_eff `energy90` of one vector (E,): the number of its largest squares x² that sum up to 90% of all of them.

    1 where one value is all, ceil(0.9 E) where all values are of one size, 0 for a vector of zeros. It depends on
    the axes: a rotation changes it.
    """
    return float(energy90_rows(as_vector(vector)[None])[0])


def energy90_rows(rows: npt.ArrayLike) -> Floats:
    """`energy90` of each of the rows (T, E), (T,)."""
    array = as_rows(rows)
    counts = np.full(len(array), np.nan)
    good = np.isfinite(array).all(axis=1)
    magnitudes = np.abs(array[good])
    peaks = magnitudes.max(axis=1, keepdims=True, initial=0.0)
    squares = np.square(magnitudes / np.where(peaks > 0, peaks, 1.0))
    squares.sort(axis=1)
    sums = np.cumsum(squares[:, ::-1], axis=1)
    counts[good] = np.where(peaks[:, 0] > 0, (sums < sums[:, -1:] * (_SHARE - _TIE)).sum(axis=1) + 1, 0)
    return counts


def beta_ratio(d_input: float, d_output: float) -> float:
    """β `ratio`: D_eff of what goes into a layer (or a model) over D_eff of what comes out, by one definition.

    Above 1 the layer collapses dimensions, below 1 it opens them. NaN where either is 0 or NaN.
    """
    if d_input < 0 or d_output < 0:
        raise MeasureError(f"a number of dimensions is not negative: {d_input} and {d_output}")
    return float(d_input / d_output) if d_input > 0 and d_output > 0 else np.nan


def beta_energy(vector: npt.ArrayLike) -> float:
    """β `energy` of one vector (E,): E / `energy90`; from about 1.1 (evenly spread) to E. NaN for a vector of zeros."""
    array = as_vector(vector)
    count = energy90(array)
    return len(array) / count if count > 0 else np.nan


def alignment(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Cosine of the angle between two vectors (E,), -1 to 1; 0 where one of them is zero."""
    u, v = as_vector(first), as_vector(second)
    if u.shape != v.shape:
        raise MeasureError(f"two vectors of different lengths, {len(u)} and {len(v)}, have no angle between them")
    return float(alignment_rows(u[None], v[None])[0])


def alignment_rows(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """`alignment` of row t of one array (T, E) with row t of the other, (T,)."""
    u, v = as_rows(first), as_rows(second)
    if u.shape != v.shape:
        raise MeasureError(f"rows of different shapes, {u.shape} and {v.shape}, cannot be aligned one with the other")
    cosines = np.full(len(u), np.nan)
    good = np.isfinite(u).all(axis=1) & np.isfinite(v).all(axis=1)
    if good.any():
        cosines[good] = np.clip(np.einsum("te,te->t", unit_rows(u[good]), unit_rows(v[good])), -1.0, 1.0)
    return cosines


def _spectrum(rows: Floats) -> Floats:
    """Squares of the singular values of rows (T, E), min(T, E) of them, the largest first.

    They are the eigenvalues of the smaller of the two Gram matrices: for T << E that is T x T, and no E x E
    covariance is made. Squaring costs digits of the smallest ones only, far below 1e-9 of the sum.
    """
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    return np.asarray(np.clip(np.linalg.eigvalsh(gram), 0.0, None)[::-1])


def _count(spectrum: Floats) -> int:
    """How many of the values, the largest first, reach 90% of their sum."""
    sums = np.cumsum(spectrum)
    return int((sums < sums[-1] * (_SHARE - _TIE)).sum()) + 1
