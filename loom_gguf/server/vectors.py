"""How a text's vector is made where the request does not say, and what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..embedding import Pooling
from .errors import RequestError
from .models import Facts

_POOLING: dict[int, Pooling] = {1: "mean", 2: "first_token", 3: "last_token"}  # <arch>.pooling_type in GGUF files


def pooling_of(facts: Facts) -> Pooling:
    """As the file says; else encoders take the mean, and others the last token, which has seen all of the text."""
    said = facts.hparam("pooling_type")
    if isinstance(said, int) and said in _POOLING:
        return _POOLING[said]
    return "mean" if facts.hidden_level == "prompt" else "last_token"


def shortened(vector: Any, dimensions: int) -> Any:
    """The first `dimensions` values, of length 1 again; 0: all, as they are."""
    vector = checked(vector)
    if not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    norm = float(np.linalg.norm(cut))
    return np.ascontiguousarray(cut / np.float32(norm) if norm else cut)


def checked(vector: Any) -> Any:
    """The vector as JSON can hold it; RequestError where it cannot."""
    vector = np.ascontiguousarray(vector, np.float32)
    if not np.isfinite(vector).all():
        raise RequestError(500, "the embedding has NaN or infinite values")
    return vector
