"""What a comparison found: every number, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import Floats
from ..states import Array

if TYPE_CHECKING:
    from rich.console import RenderableType

# Above what one file differs by between fast and exact, quantized weights included: docs/compare.md has the table.
THRESHOLD = 0.05


@dataclass(frozen=True)
class SideFacts:
    """What was compared."""

    name: str
    facts: Mapping[str, Any]  # architecture, quantization, precision, ...: what is known of it


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same tokens through A and B.

    S is the number of hidden states that both sides have, in the model's order; R the number of rows (tokens) of all
    prompts after one another. A row's relative error is |a - b| / |a| (Euclidean lengths); infinite where a is zero and
    b is not, or where only one of the two is free of NaN and Inf; NaN where neither is.
    """

    a: SideFacts
    b: SideFacts
    n_layer: int
    states: tuple[str, ...]  # (S,): "embedding", the layers' indices ("0", "1", ...), "final"
    errors: Floats  # (S, R), relative, without unit
    cosine_distances: Floats  # (S, R): 1 - cosine, 0 to 2
    prompts: Array  # int64 (R,): number of the prompt that a row belongs to
    positions: Array  # int64 (R,): within its prompt
    tokens: Array  # int64 (R,): the token read there
    kl: Floats | None  # (R,): KL(A||B) of the next-token distributions, in nats; None: no logits on both sides
    top_a: Array | None  # int64 (R,): A's most probable next token; -1: its logits are no numbers
    top_b: Array | None
    threshold: float = THRESHOLD
    texts: Mapping[int, str] = field(default_factory=dict)  # of the tokens above, where they are known
    notes: tuple[str, ...] = ()  # what was left out, and why

    # -- by hidden state ----------------------------------------------------------------------------------------

    @property
    def cosines(self) -> Floats:
        """Cosine of a and b, (S, R): 1 where both are zero, 0 where one is, NaN where a value is not finite."""
        return 1 - self.cosine_distances

    @cached_property
    def median_error(self) -> Floats:
        """Median over the rows of the relative error, (S,)."""
        return _over_rows(np.median, self.errors)

    @cached_property
    def mean_error(self) -> Floats:
        """Mean over the rows of the relative error, (S,)."""
        return _over_rows(np.mean, self.errors)

    @cached_property
    def max_error(self) -> Floats:
        """Largest relative error of any row, (S,)."""
        return _over_rows(np.max, self.errors)

    def error_quantile(self, q: float) -> Floats:
        """The relative error that a part `q` (0 to 1) of the rows does not exceed, (S,)."""
        return _over_rows(lambda rows: np.quantile(rows, q, method="inverted_cdf"), self.errors)

    @cached_property
    def mean_cosine(self) -> Floats:
        """Mean over the rows of the cosine, (S,)."""
        return 1 - _over_rows(np.mean, self.cosine_distances)

    @cached_property
    def min_cosine(self) -> Floats:
        """Smallest cosine of any row, (S,)."""
        return 1 - _over_rows(np.max, self.cosine_distances)

    @cached_property
    def worst_rows(self) -> Array:
        """Index of the row with the largest relative error, int64 (S,)."""
        return np.asarray(np.where(np.isnan(self.errors), -1, self.errors).argmax(1))

    @cached_property
    def growth(self) -> Floats:
        """How many times the state before's median relative error each state's is, (S,), without unit.

        Errors below 1% of the largest count as that 1%, so that growth out of nothing is finite (at most 100 times) and
        growth among negligible errors is none (1). The first state is held against that 1%. 1 where a median is NaN.
        """
        median = self.median_error
        finite = median[np.isfinite(median)]
        floor = finite.max() / 100 if finite.size and finite.max() > 0 else 1.0
        errors = np.maximum(median, floor)
        with np.errstate(invalid="ignore"):
            factors = errors / np.concatenate([[floor], errors[:-1]])
        return np.where(np.isnan(factors), 1.0, factors)

    # -- where they part ----------------------------------------------------------------------------------------

    def first_above(self, threshold: float) -> str | None:
        """The first state in which some row's relative error exceeds `threshold`; None: there is none.

        A row that only one side has in finite numbers exceeds every threshold.
        """
        with np.errstate(invalid="ignore"):
            above = (self.errors > threshold).any(1)
        return self.states[int(above.argmax())] if above.any() else None

    @property
    def first_parting(self) -> str | None:
        """The first state in which some row's relative error exceeds the comparison's threshold."""
        return self.first_above(self.threshold)

    @property
    def first_difference(self) -> str | None:
        """The first state in which some row differs at all. After a changed weight, in exact mode: its own block."""
        return self.first_above(0.0)

    @property
    def largest_jump(self) -> str | None:
        """The state at which the median relative error grows by the largest factor (see `growth`); None: nowhere.

        It needs no threshold, and what fewer than half of the rows do does not move it.
        """
        return self.states[int(self.growth.argmax())] if self.growth.max() > 1 else None

    @property
    def identical(self) -> bool:
        """Whether no number differs, in the hidden states and in the logits."""
        rows_differ = ~((self.errors == 0) | np.isnan(self.errors))
        return not rows_differ.any() and (self.kl is None or bool((np.isnan(self.kl) | (self.kl == 0)).all()))

    # -- logits -------------------------------------------------------------------------------------------------

    @property
    def same_top1(self) -> Array | None:
        """Whether both find the same next token most probable, bool (R,); False where logits are no numbers."""
        if self.top_a is None or self.top_b is None:
            return None
        return np.asarray((self.top_a == self.top_b) & (self.top_a >= 0))

    @property
    def top1_agreement(self) -> float | None:
        """Part of the rows, 0 to 1, in which both find the same next token most probable."""
        same = self.same_top1
        return None if same is None else float(same.mean())

    @property
    def kl_statistics(self) -> dict[str, float] | None:
        """Mean, median, 99th percentile and maximum over the rows of KL(A||B), in nats."""
        if self.kl is None:
            return None
        measures: dict[str, Callable[[Floats], Any]] = {
            "mean": np.mean,
            "median": np.median,
            "p99": lambda rows: np.quantile(rows, 0.99, method="inverted_cdf"),
            "max": np.max,
        }
        return {name: float(_over_rows(measure, self.kl[None])[0]) for name, measure in measures.items()}

    # -- to look at ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Every number as plain values, for JSON; null stands for NaN and infinity."""
        from .report import to_dict

        return to_dict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a report, a picture or the numbers: .html, .png, .svg, .json or .csv."""
        from .report import save

        save(self, path)

    def __rich__(self) -> RenderableType:
        """The table for a terminal."""
        from .report import terminal_report

        return terminal_report(self)

    def _repr_html_(self) -> str:
        from .html import body

        return body(self)

    def __repr__(self) -> str:
        """Names, sizes, and where they part."""
        return (
            f"<Comparison {self.a.name} | {self.b.name}: {len(self.states)} states, {len(self.tokens)} rows, "
            f"parts at {self.first_parting or 'none'}>"
        )


def _over_rows(measure: Callable[[Floats], Any], values: Floats) -> Floats:
    """A measure of each state's rows that have a number, (S, R) to (S,); NaN where no row has."""
    found = []
    for rows in values:
        known = rows[~np.isnan(rows)]
        found.append(float(measure(known)) if known.size else np.nan)
    return np.array(found)
