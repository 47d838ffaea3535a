"""Softmax, ranks and divergences over a large vocabulary, a block of it at a time.

S is the number of states, T that of positions, E is n_embd, V is n_vocab, B the tokens of one block. Only (S, T, B)
logits exist at once, and B rows of the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..states import Array
from .head import Head

Progress = Callable[[str, int, int], None]  # what is being done, how many steps are done, of how many
Doubles = npt.NDArray[np.float64]

_BLOCK_VALUES = 2**23  # of the logits and of the matrix: 32 MiB each in float32


@dataclass(frozen=True)
class Final:
    """The model's own prediction at each position."""

    ids: Array  # int32 (T,): its most probable token; -1 where its logits are no numbers
    log_sum: Doubles  # (T,): log of the sum of exp(logit)


@dataclass(frozen=True)
class Numbers:
    """What the lens says of each state at each position. NaN, rank 0 and id -1 where a state holds NaN or Inf."""

    top_ids: Array  # int32 (S, T, k)
    top_probs: Array  # float32 (S, T, k)
    rank: Array  # int32 (S, T)
    prob: Array  # float32 (S, T)
    kl: Doubles  # (S, T)
    check_error: float  # largest difference of the checked logits over the largest of them


def blocks(head: Head, n_rows: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each block of the vocabulary, for so many rows of logits."""
    step = max(_BLOCK_VALUES // max(n_rows, head.n_embd), 32)
    for first in range(0, head.n_vocab, step):
        yield first, min(first + step, head.n_vocab)


@np.errstate(over="ignore", invalid="ignore")
def final_facts(head: Head, normed: Array, own_logits: Array | None) -> Final:
    """The final prediction: of llama.cpp's logits (T, V), or else of the last of the states `normed` (S, T, E)."""
    n_tokens = normed.shape[1] if own_logits is None else len(own_logits)
    best, ids = np.full(n_tokens, -np.inf, np.float32), np.full(n_tokens, -1, np.int32)
    log_sum = _LogSum((n_tokens,))
    for first, end in blocks(head, n_tokens):
        logits = head.logits(_finite(normed[-1]), first, end) if own_logits is None else own_logits[:, first:end]
        at = logits.argmax(axis=1)  # a NaN counts as the largest, and is taken out below
        values = np.take_along_axis(logits, at[:, None], 1)[:, 0]
        better = ~(values <= best)
        best, ids = np.where(better, values, best), np.where(better, at + first, ids)
        log_sum.add(logits)
    total = log_sum.value()
    known = np.isfinite(total)
    if own_logits is None:
        known &= np.isfinite(normed[-1]).all(axis=-1)
    return Final(np.where(known, ids, -1).astype(np.int32), np.where(known, total, np.nan))


@np.errstate(over="ignore", invalid="ignore")
def read_blocks(
    head: Head,
    normed: Array,
    own_logits: Array | None,
    final: Final,
    top_k: int,
    check_rows: Array,
    check_logits: Array,
    progress: Progress | None = None,
) -> Numbers:
    """All numbers of the states `normed` (S, T, E), and of `own_logits` (T, V) as one more where they are given.

    check_rows (C, E), check_logits (C, V): rows whose logits are known.
    """
    n_read, n_tokens = normed.shape[:2]
    n_states = n_read + (own_logits is not None)
    known = np.asarray(np.isfinite(normed).all(axis=-1))  # (S, T)
    normed = _finite(normed)
    check_rows, check_logits = _both_finite(check_rows, check_logits)
    stacked = np.concatenate([normed.reshape(-1, head.n_embd), check_rows])
    targets = np.maximum(final.ids, 0)
    of_target = head.logits_at(normed, targets)
    if own_logits is not None:
        known = np.concatenate([known, np.asarray(np.isfinite(own_logits).all(axis=-1))[None]])
        of_target = np.concatenate([of_target, own_logits[np.arange(n_tokens), targets][None]])

    log_sum, top = _LogSum((n_states, n_tokens)), _Top(top_k, (n_states, n_tokens))
    above = np.zeros((n_states, n_tokens), np.int64)
    distance = np.zeros((n_states, n_tokens))  # mean of (final logit - logit) over the final distribution
    worst = 0.0
    for first, end in blocks(head, len(stacked) + n_tokens):
        if progress is not None:
            progress("multiplying with the output matrix", first, head.n_vocab)
        logits = head.logits(stacked, first, end)
        checked = logits[n_read * n_tokens :]
        if checked.size:
            worst = max(worst, float(np.abs(checked - check_logits[:, first:end]).max()))
        logits = logits[: n_read * n_tokens].reshape(n_read, n_tokens, end - first)
        if own_logits is not None:
            own = np.where(known[-1][:, None], own_logits[:, first:end], 0)
            logits = np.concatenate([logits, own[None]])
        log_sum.add(logits)
        top.add(logits, first)
        weights = np.exp(logits[-1] - np.where(np.isnan(final.log_sum), 0, final.log_sum)[:, None])
        is_target = np.arange(first, end) == targets[:, None]
        for s in range(n_states):
            above[s] += ((logits[s] > of_target[s][:, None]) & ~is_target).sum(axis=-1)
            distance[s] += (weights * (logits[-1] - logits[s])).sum(axis=-1, dtype=np.float64)
    if progress is not None:
        progress("multiplying with the output matrix", head.n_vocab, head.n_vocab)
    largest = float(np.abs(check_logits).max(initial=0.0))
    return _numbers(known, final, log_sum.value(), top, above, of_target, distance, worst / max(largest, 1e-30))


def _numbers(
    known: Array, final: Final, total: Doubles, top: _Top, above: Array, of_target: Array, distance: Doubles,
    check_error: float,
) -> Numbers:  # fmt: skip
    known = known & np.isfinite(total)
    compared = known & (final.ids >= 0)
    top_probs = np.exp(top.values - total[..., None])
    # The target's own logit was computed apart from the blocks, so that its last bits may differ: where it is among
    # the first, its place there is its rank, and else it comes behind them.
    found = top.ids == final.ids[:, None]
    rank = np.where(found.any(axis=-1), found.argmax(axis=-1) + 1, np.maximum(above, top.ids.shape[-1]) + 1)
    among = np.take_along_axis(top_probs, found.argmax(axis=-1)[..., None], -1)[..., 0]
    prob = np.where(found.any(axis=-1), among, np.exp(of_target - total))
    kl = np.maximum(distance - np.where(compared, final.log_sum, 0) + total, 0)  # below 0 only by rounding
    return Numbers(
        top_ids=np.where(known[..., None], top.ids, -1).astype(np.int32),
        top_probs=np.where(known[..., None], top_probs, np.nan).astype(np.float32),
        rank=np.where(compared, rank, 0).astype(np.int32),
        prob=np.where(compared, prob, np.nan).astype(np.float32),
        kl=np.where(compared, kl, np.nan),
        check_error=check_error,
    )


class _LogSum:
    """log(sum(exp(x))) of rows that come in blocks, in float64."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._largest = np.full(shape, -np.inf)
        self._sum = np.zeros(shape)

    def add(self, block: Array) -> None:
        """A block, (*shape, B)."""
        with np.errstate(invalid="ignore", over="ignore"):
            largest = np.maximum(self._largest, block.max(axis=-1))
            shift = np.where(np.isfinite(largest), largest, 0)
            self._sum *= np.exp(self._largest - shift)
            # float32 is enough of each summand, and half the time; the sum is what needs more.
            self._sum += np.exp(block - shift[..., None].astype(np.float32)).sum(axis=-1, dtype=np.float64)
            self._largest = largest

    def value(self) -> Doubles:
        """The logarithm, (*shape)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(np.isfinite(self._largest), self._largest, 0) + np.log(self._sum))


class _Top:
    """The k largest values of rows that come in blocks; of equal ones those that came first."""

    def __init__(self, k: int, shape: tuple[int, ...]) -> None:
        self._k = k
        self.values = np.empty((*shape, 0), np.float32)
        self.ids = np.empty((*shape, 0), np.int64)

    def add(self, block: Array, first: int) -> None:
        """A block, (*shape, B), of the tokens from `first` on."""
        k = min(self._k, block.shape[-1])
        at = np.argpartition(-block, k - 1, axis=-1)[..., :k] if k < block.shape[-1] else np.arange(k)
        at = np.broadcast_to(at, (*block.shape[:-1], k))
        values = np.concatenate([self.values, np.take_along_axis(block, at, -1)], axis=-1)
        ids = np.concatenate([self.ids, at + first], axis=-1)
        order = np.lexsort((ids, -values), axis=-1)[..., : self._k]
        self.values = np.take_along_axis(values, order, -1)
        self.ids = np.take_along_axis(ids, order, -1)


def _finite(rows: Array) -> Array:
    """Rows without those that hold NaN or Inf: these become 0, so that they disturb nothing."""
    return np.where(np.isfinite(rows).all(axis=-1, keepdims=True), rows, np.float32(0))


def _both_finite(rows: Array, logits: Array) -> tuple[Array, Array]:
    known = np.isfinite(rows).all(axis=-1) & np.isfinite(logits).all(axis=-1)
    return (rows, logits) if known.all() else (rows[known], logits[known])
