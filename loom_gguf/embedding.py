"""One vector for a whole text, from the rows of its tokens."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pooling = Literal["mean", "last_token", "first_token", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def check_pooling(pooling: str) -> None:
    """Raise ValueError where there is no such pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")


def pool(rows: Array, pooling: Pooling) -> Array:
    """Rows (n_tokens, n_embd), float32 -> one vector (n_embd,), float32.

    mean: of all tokens, special ones included, as sentence-transformers does with a text that is not padded.
    last_token, first_token: that row; first_token is the CLS pooling of the BERT family.
    max: the largest value in each dimension.
    """
    if pooling == "mean":
        return np.asarray(rows.mean(axis=0, dtype=np.float64).astype(np.float32))
    if pooling == "last_token":
        return np.asarray(rows[-1].copy())
    if pooling == "first_token":
        return np.asarray(rows[0].copy())
    return np.asarray(rows.max(axis=0))


def normalized(vector: Array) -> Array:
    """The vector scaled to length 1 (L2); a zero vector stays zero."""
    length = np.linalg.norm(vector.astype(np.float64))
    return np.asarray((vector / length).astype(np.float32)) if length > 0 else vector
