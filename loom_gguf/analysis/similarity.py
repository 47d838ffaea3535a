"""How alike hidden states are: between all tokens, neighbouring tokens, and neighbouring layers.

All are means of cosines, -1 to 1. T is the number of rows (tokens), E their width; float64. A cosine with a row of
zeros is 0 (`geometry.alignment`). NaN or Inf among the values gives NaN, as does a mean over nothing; an array of a
wrong shape raises MeasureError.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .arrays import as_rows, finite, unit_rows
from .geometry import alignment_rows


def anisotropy(rows: npt.ArrayLike) -> float:
    """Mean cosine over all pairs of different rows of (T, E); NaN for one row.

    0 for directions spread evenly, 1 for rows of one direction. K. Ethayarajh, "How Contextual are Contextualized
    Word Representations?", 2019, estimates it from random pairs of a corpus' words; here it is all pairs of the
    given rows, of which neighbours in one text are more alike than random words.
    """
    array = as_rows(rows)
    n_rows = len(array)
    if n_rows < 2 or not finite(array):
        return np.nan
    units = unit_rows(array)
    # The sum over all pairs, (Σu)·(Σu), less that of each row with itself: no T x T matrix is needed.
    total = units.sum(axis=0)
    own = np.einsum("te,te->", units, units)
    return float(np.clip((total @ total - own) / (n_rows * (n_rows - 1)), -1.0, 1.0))


def cosine_next_token(rows: npt.ArrayLike) -> float:
    """Mean cosine between each row of one text, (T, E) in reading order, and the next; NaN for one row."""
    array = as_rows(rows)
    return float(alignment_rows(array[:-1], array[1:]).mean()) if len(array) > 1 else np.nan


def cosine_below(rows: npt.ArrayLike, below: npt.ArrayLike) -> float:
    """Mean cosine between each token's state (T, E) and the same token's state below, at an earlier layer (T, E)."""
    return float(alignment_rows(rows, below).mean())
