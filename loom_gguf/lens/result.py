"""What a lens saw, and the ways to keep and show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..files import StrPath
from ..report.files import csv_text, json_text, save_report
from ..report.numbers import plain
from ..states import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderResult

Measure = Literal["prob", "rank", "kl"]

MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True, eq=False)
class LensResult:
    """The lens of S states at T positions, in the model's order: the embedding, layers, and "final", the prediction.

    A state that holds NaN or Inf has id -1, rank 0, and NaN for the rest.
    """

    labels: list[str]  # S: "embedding", "0", "1", ..., "final"
    tokens: list[int]  # T: the token read at each position
    positions: list[int]  # T
    texts: list[str] | None  # T: the tokens for a person to read; None where the model has no tokenizer
    top_ids: Array  # int32 (S, T, k): the most probable tokens, best first
    top_probs: Array  # float32 (S, T, k): their probabilities
    final_ids: Array  # int32 (T,): the model's own most probable token
    rank_of_final: Array  # int32 (S, T): place of that token in the state's distribution; 1 is its most probable one
    prob_of_final: Array  # float32 (S, T): probability of that token
    kl: npt.NDArray[np.float64]  # (S, T): KL(final || state), in nats
    vocabulary: Mapping[int, str]  # texts of the tokens in top_ids and final_ids; empty without a tokenizer
    model: str  # file name
    arch: str
    matrix: str  # name and type of the output matrix
    engine_logits: bool  # the final row is of llama.cpp's own logits, not of the captured final state

    @property
    def n_tokens(self) -> int:
        """T, the number of positions."""
        return len(self.tokens)

    @property
    def top_k(self) -> int:
        """Number of tokens kept per state and position."""
        return int(self.top_ids.shape[-1])

    def text(self, token: int) -> str:
        """A token for a person to read: its text, else its id; empty for -1."""
        return "" if token < 0 else self.vocabulary.get(token) or f"<{token}>"

    def read(self, at: int) -> str:
        """The token that was read at position number `at`, for a person to read."""
        return (self.texts[at] if self.texts else "") or f"<{self.tokens[at]}>"

    def __repr__(self) -> str:
        """Model and sizes."""
        return f"<LensResult of {self.model}: {len(self.labels)} states, {self.n_tokens} positions, top {self.top_k}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A coloured table of each state's most probable tokens."""
        from .terminal import overview

        yield overview(self)

    # -- numbers ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON holds; what is no number is null."""
        return {
            "format": "loom_gguf.lens",
            "version": 1,
            "model": self.model,
            "architecture": self.arch,
            "output_matrix": self.matrix,
            "engine_logits": self.engine_logits,
            "labels": self.labels,
            "tokens": self.tokens,
            "positions": self.positions,
            "texts": self.texts,
            "final_ids": self.final_ids.tolist(),
            "top_ids": self.top_ids.tolist(),
            "top_probs": plain(self.top_probs.tolist()),
            "rank_of_final": self.rank_of_final.tolist(),
            "prob_of_final": plain(self.prob_of_final.tolist()),
            "kl_nats": plain(self.kl.tolist()),
            "vocabulary": {str(token): text for token, text in self.vocabulary.items()},
        }

    def to_html(self) -> str:
        """A page of its own: a table to click through. It asks nothing of the network."""
        from .page import page

        return page(self)

    def plot(self, measure: Measure = "prob", *, title: str | None = None) -> Figure:
        """Layers upwards, positions to the right, as a matplotlib figure; each cell has the state's top token.

        measure: what the colours mean. "prob" and "rank" are of the model's own most probable token, "kl" is the
            divergence KL(final || state) in nats.
        """
        from .picture import draw

        return draw(self, measure, title)

    def save(self, path: StrPath, *, measure: Measure = "prob") -> None:
        """Write it as the path's suffix says: .png or .svg (a picture), .html, .json or .csv (all numbers)."""
        save_report(path, lambda kind: self._content(kind, measure), "the lens")

    def csv_rows(self) -> Iterator[tuple[Any, ...]]:
        """Every number as rows of a table, the head first: one row per state and position."""
        head = ["state", "position", "token_id", "token", "final_id", "final_token", "rank_of_final", "prob_of_final"]
        tops = [f"top{i}_{what}" for i in range(1, self.top_k + 1) for what in ("id", "token", "prob")]
        yield (*head, "kl_nats", *tops)
        for s, label in enumerate(self.labels):
            for t in range(self.n_tokens):
                final = int(self.final_ids[t])
                row: list[Any] = [label, self.positions[t], self.tokens[t], self.texts[t] if self.texts else ""]
                row += [final, self.vocabulary.get(final, ""), int(self.rank_of_final[s, t])]
                row += [float(self.prob_of_final[s, t]), float(self.kl[s, t])]
                for token, prob in zip(self.top_ids[s, t].tolist(), self.top_probs[s, t].tolist(), strict=True):
                    row += [token, self.vocabulary.get(token, ""), prob]
                yield tuple(row)

    def _content(self, kind: str, measure: Measure) -> str | bytes:
        if kind == "html":
            return self.to_html()
        if kind == "json":
            return json_text(self.to_dict())
        if kind == "csv":
            return csv_text(self.csv_rows())
        from ..report.figures import picture

        return picture(self.plot(measure), kind)
