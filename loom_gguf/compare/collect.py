"""Numbers of a comparison, gathered prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..analysis import Floats, hidden_state_rows
from ..errors import ComparisonError, DifferentModelsError, DifferentTokensError, NotCapturedError
from ..hugging_face_states import LOGITS
from ..states import Array, States
from .measures import cosine_distances, kl_divergences, relative_errors, top_tokens
from .result import Comparison, SideFacts


class Collector:
    """Measures each pair of states as it comes, and keeps the measures alone."""

    def __init__(self, logits: bool) -> None:
        """logits: whether to compare these too."""
        self._logits = logits
        self._labels: tuple[str, ...] = ()
        self._n_layer = 0
        self._parts: list[dict[str, Array]] = []  # per prompt; the rows are the last axis
        self._notes: list[str] = []
        self._texts: dict[int, str] = {}

    def name(self, a: SideFacts, b: SideFacts, text_of: Callable[[int], str]) -> None:
        """Who is compared, and how a token reads; before the first pair, and valid while pairs are added."""
        self._a, self._b, self._text_of = a, b, text_of

    def add(self, a: States, b: States) -> None:
        """Both sides' states of one prompt."""
        _check_same_tokens(a, b)
        if a.n_layer != b.n_layer:
            raise DifferentModelsError(
                f"A has {a.n_layer} layers, B has {b.n_layer}: only states of the same model can be compared"
            )
        rows_a, rows_b = hidden_state_rows(a), hidden_state_rows(b)
        labels = tuple(label for label in rows_a if label in rows_b)
        if not labels:
            raise NotCapturedError(
                f"A and B have no hidden state in common: A has {_listed(rows_a)}, B has {_listed(rows_b)}. Capture "
                f"the same of both"
            )
        if not self._parts:
            self._labels, self._n_layer = labels, a.n_layer
            for name, more, fewer in (("A", rows_a, rows_b), ("B", rows_b, rows_a)):
                if missing := [label for label in more if label not in fewer]:
                    self._notes.append(f"only {name} has {_listed(missing)}: not compared")
        for label in labels:
            _check_same_width(label, rows_a[label], rows_b[label])
        part: dict[str, Array] = {
            "errors": np.stack([relative_errors(rows_a[label], rows_b[label]) for label in labels]),
            "cosine_distances": np.stack([cosine_distances(rows_a[label], rows_b[label]) for label in labels]),
            "prompts": np.full(len(a.tokens), len(self._parts), np.int64),
            "positions": np.array(a.positions, np.int64),
            "tokens": np.array(a.tokens, np.int64),
            **self._logits_of(a, b),
        }
        self._parts.append(part)
        for name in ("tokens", "top_a", "top_b"):
            for token in part.get(name, np.empty(0, np.int64)).tolist():
                if token >= 0 and token not in self._texts and (text := self._text_of(token)):
                    self._texts[token] = text

    def _logits_of(self, a: States, b: States) -> dict[str, Array]:
        if not self._logits:
            return {}
        found = [states.values_by_key.get(LOGITS) for states in (a, b)]
        if found[0] is None or found[1] is None:
            lacking = " and ".join(name for name, value in zip("AB", found, strict=True) if value is None)
            verb = "has" if len(lacking) == 1 else "have"
            if not self._parts:
                self._notes.append(
                    f"{lacking} {verb} no logits (node {LOGITS}): no KL and no agreement of the next token"
                )
            return {}
        logits = found[0].array, found[1].array
        if logits[0].shape != logits[1].shape:
            raise DifferentModelsError(
                f"A's logits are over {logits[0].shape[-1]:,} tokens, B's over {logits[1].shape[-1]:,}: compare the "
                f"hidden states alone (logits=False, --no-logits)"
            )
        return {"kl": kl_divergences(*logits), "top_a": top_tokens(logits[0]), "top_b": top_tokens(logits[1])}

    def result(self, threshold: float, notes: Sequence[str] = ()) -> Comparison:
        """All prompts' numbers, one after the other."""

        def whole(name: str) -> Floats:
            return np.concatenate([part[name] for part in self._parts], axis=-1)

        logits = all("kl" in part for part in self._parts)
        return Comparison(
            a=self._a,
            b=self._b,
            n_layer=self._n_layer,
            states=self._labels,
            errors=whole("errors"),
            cosine_distances=whole("cosine_distances"),
            prompts=whole("prompts"),
            positions=whole("positions"),
            tokens=whole("tokens"),
            kl=whole("kl") if logits else None,
            top_a=whole("top_a") if logits else None,
            top_b=whole("top_b") if logits else None,
            threshold=float(threshold),
            texts=self._texts,
            notes=(*notes, *self._notes),
        )


def _check_same_tokens(a: States, b: States) -> None:
    if not a.tokens:
        raise ComparisonError("there are no rows to compare: capture at least one token")
    if len(a.tokens) != len(b.tokens):
        raise DifferentTokensError(
            f"A has rows of {len(a.tokens):,} tokens, B of {len(b.tokens):,}: capture both from the same tokens"
        )
    for row, (x, y) in enumerate(
        zip(zip(a.positions, a.tokens, strict=True), zip(b.positions, b.tokens, strict=True), strict=True)
    ):
        if x != y:
            raise DifferentTokensError(
                f"row {row} is token {x[1]} at position {x[0]} in A, and token {y[1]} at position {y[0]} in B: capture "
                f"both from the same tokens"
            )


def _check_same_width(label: str, a: Array, b: Array) -> None:
    if a.shape[1:] != b.shape[1:]:
        widths = [" x ".join(map(str, array.shape[1:])) for array in (a, b)]
        raise DifferentModelsError(
            f"hidden state {label} has {widths[0]} values in A and {widths[1]} in B: only states of the same model can "
            f"be compared"
        )


def _listed(labels: Sequence[str] | dict[str, Array]) -> str:
    names = [f"layer {label}" if label.isdigit() else label for label in labels]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
