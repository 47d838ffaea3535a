"""One vector per text and hidden state: what a probe reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..analysis import hidden_state_rows
from ..capture import Capture
from ..embedding import POOLINGS, Pooling, pool
from ..errors import CaptureError, PromptError
from ..model import Model
from ..states import Array
from ..states_file import model_facts

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Features:
    """Vectors of N texts at S hidden states."""

    values: Array  # (N, S, E), float32
    states: tuple[str, ...]  # S names: "embedding", "0", "1", ..., "final"
    facts: dict[str, Any] = field(default_factory=dict)  # the model, and how the tokens of a text became one vector

    def __repr__(self) -> str:
        """Sizes only."""
        n, s, e = self.values.shape
        return f"<Features: {n} texts, {s} states ({self.states[0]} to {self.states[-1]}), n_embd {e}>"


def check_text_pooling(pooling: object) -> None:
    """Raise ValueError where it is neither a token's index nor the name of a pooling."""
    if not (isinstance(pooling, int) and not isinstance(pooling, bool)) and pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(POOLINGS)} or a token's index, not {pooling!r}")


def collect_rows(
    model: Model,
    texts: Sequence[str | Sequence[int]],
    pooling: Pooling | int = "last_token",
    *,
    capture: Capture | None = None,
    progress: Progress | None = None,
) -> Features:
    """Run every text through the model and keep one vector per hidden state: (N, S, E), float32.

    texts: strings, or token ids.
    pooling: "last_token", "first_token", "mean" or "max" of all tokens, as `Model.embed` has them; or the index of a
        token of each text, special tokens counted, negative ones from the end.
    capture: which hidden states; None takes the embedding, every layer and final. Other nodes are left out.
    progress: called with (texts done, texts in all).

    All vectors are kept in memory: 1,000 texts at 34 states of width 4096 take 0.56 GB.
    """
    check_text_pooling(pooling)
    if isinstance(texts, str):
        raise TypeError("texts is a list of texts; for one text write [text]")
    wanted = Capture.all_layers(embedding=True, final=True) if capture is None else capture
    keep: Literal["all", "last"] = "last" if pooling in ("last_token", -1) else "all"
    vectors: Array | None = None
    names: tuple[str, ...] = ()
    for i, text in enumerate(texts):
        try:
            rows = hidden_state_rows(model.forward(text, wanted, keep=keep))
            pooled = [_vector(array, -1 if keep == "last" else pooling) for array in rows.values()]
        except PromptError as error:
            raise type(error)(f"text {i + 1}: {error}") from None
        if vectors is None:
            names = tuple(rows)
            if len({vector.shape for vector in pooled}) > 1:
                raise CaptureError("the hidden states differ in width: probe them one at a time, with `capture`")
            vectors = np.empty((len(texts), len(names), pooled[0].size), np.float32)
        vectors[i] = np.stack([vector.ravel() for vector in pooled])
        if progress is not None:
            progress(i + 1, len(texts))
    if vectors is None:
        raise ValueError("there are no texts")
    return Features(vectors, names, {**model_facts(model), "pooling": pooling})


def _vector(rows: Array, pooling: Pooling | int) -> Array:
    if not isinstance(pooling, int):
        return pool(rows, pooling)
    if not -len(rows) <= pooling < len(rows):
        raise PromptError(f"it has {len(rows)} tokens, so none of index {pooling}")
    return np.asarray(rows[pooling])
