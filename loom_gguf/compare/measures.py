"""How far two arrays of rows are apart: plain functions from rows to numbers, computed in float64.

T is the number of rows, E is n_embd, V the size of the vocabulary. A row is usable where all its values are finite
(logits: where a softmax exists). A row that only one side can use is infinitely far; where neither can, there is no
number (NaN).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..analysis import Floats
from ..states import Array

_PIECE = 1 << 20  # values converted to float64 at a time, so that a long prompt's logits are not doubled in memory


def relative_errors(a: Array, b: Array) -> Floats:
    """|a - b| / |a| of every row (T, ...), Euclidean lengths: (T,), without unit.

    0 where both rows are zero, infinite where only a's is.
    """
    errors = np.empty(len(a))
    for piece, x, y in _pieces(a, b):
        with np.errstate(divide="ignore", invalid="ignore"):
            length, difference = _norm(x), _norm(x - y)
            errors[piece] = np.where(difference == 0, 0.0, difference / length)
        errors[piece] = _judged(errors[piece], _finite(x), _finite(y))
    return errors


def cosine_distances(a: Array, b: Array) -> Floats:
    """1 - cosine of every pair of rows (T, ...): (T,), from 0 (same direction) to 2 (opposite), without unit.

    Computed as |u - v|^2 / 2 of the unit vectors u and v, which keeps small distances that 1 - u.v rounds away. 0 where
    both rows are zero, 1 where one of them is; NaN where either has a value that is not finite.
    """
    distances = np.empty(len(a))
    for piece, x, y in _pieces(a, b):
        lengths = _norm(x), _norm(y)
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = _norm(x / lengths[0][:, None] - y / lengths[1][:, None]) ** 2 / 2
        zero = (lengths[0] == 0).astype(int) + (lengths[1] == 0)
        apart = np.where(zero == 2, 0.0, np.where(zero == 1, 1.0, apart))
        distances[piece] = np.where(_finite(x) & _finite(y), apart, np.nan)
    return distances


def kl_divergences(a: Array, b: Array) -> Floats:
    """KL(A||B) of the next-token distributions softmax(a) and softmax(b), rows of logits (T, V): (T,), in nats.

    A logit of -inf is a probability of 0; KL is infinite where b gives 0 to what a does not.
    """
    divergences = np.empty(len(a))
    for piece, x, y in _pieces(a, b):
        usable = has_softmax(x), has_softmax(y)
        log_p, log_q = (_log_softmax(np.where(ok[:, None], z, 0.0)) for ok, z in zip(usable, (x, y), strict=True))
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        # Gibbs' inequality: what is below 0 is rounding.
        divergences[piece] = _judged(np.maximum(terms.sum(1), 0.0), *usable)
    return divergences


def top_tokens(logits: Array) -> Array:
    """The most probable token of every row of logits (T, V), the first of several: int64 (T,); -1 without a softmax."""
    tops = np.empty(len(logits), np.int64)
    for piece, x, _ in _pieces(logits, logits[:, :0]):
        usable = has_softmax(x)
        tops[piece] = np.where(usable, np.where(usable[:, None], x, 0.0).argmax(1), -1)
    return tops


def has_softmax(logits: Array) -> Array:
    """Which rows of logits (T, V) define probabilities: no NaN, no +inf, and not all -inf: bool (T,)."""
    return np.asarray(np.isfinite(logits).any(1) & ~np.isnan(logits).any(1) & ~np.isposinf(logits).any(1))


def _finite(rows: Floats) -> Array:
    return np.asarray(np.isfinite(rows).all(1))


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _judged(numbers: Floats, usable_a: Array, usable_b: Array) -> Floats:
    return np.where(usable_a & usable_b, numbers, np.where(usable_a | usable_b, np.inf, np.nan))


def _pieces(a: Array, b: Array) -> Iterator[tuple[slice, Floats, Floats]]:
    """Rows of both as float64 (t, width), a few at a time. A state of several streams counts as one long vector."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    step = max(1, _PIECE // max(1, a.shape[1]))
    for start in range(0, len(a), step):
        piece = slice(start, min(start + step, len(a)))
        yield piece, a[piece].astype(np.float64), b[piece].astype(np.float64)


def _norm(rows: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(np.einsum("te,te->t", rows, rows)))
