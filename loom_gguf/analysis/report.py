"""What an analysis found: one record of numbers per hidden state, for each text and for all texts together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

FORMAT = "loom_gguf.analysis"
VERSION = 1


class Measure(NamedTuple):
    """What one of the numbers of a `LayerReport` is."""

    title: str
    unit: str
    definition: str


_OWN = "the model's own units"

# One entry per number of LayerReport, under its field's name, in the order of the tables.
MEASURES: Mapping[str, Measure] = {
    "d_eff_pca90": Measure(
        "D_eff pca90", "dimensions",
        "principal components that hold 90% of the variance of the rows, L2-normalised and centred; at most one less "
        "than rows",
    ),
    "d_eff_entropy": Measure(
        "D_eff entropy", "dimensions",
        "exp of the entropy of σ²/Σσ², σ the singular values of the rows as they are; long rows count more",
    ),
    "d_eff_energy90": Measure(
        "D_eff energy90", "dimensions",
        "largest squares of one row that sum up to 90% of its squared length, mean over tokens",
    ),
    "beta_pca90": Measure(
        "β ratio, pca90", "ratio",
        "D_eff pca90 of the captured state below over that of this one; above 1 the layer collapses dimensions",
    ),
    "beta_entropy": Measure(
        "β ratio, entropy", "ratio",
        "D_eff entropy of the captured state below over that of this one; above 1 the layer collapses dimensions",
    ),
    "beta_energy": Measure("β energy", "ratio", "width of a row over its D_eff energy90, mean over tokens"),
    "norm_mean": Measure("L2 norm, mean", _OWN, "mean length of the rows"),
    "norm_std": Measure("L2 norm, std", _OWN, "standard deviation of the lengths of the rows"),
    "norm_min": Measure("L2 norm, min", _OWN, "shortest row"),
    "norm_percentile_25": Measure("L2 norm, 25%", _OWN, "25th percentile of the lengths of the rows"),
    "norm_percentile_50": Measure("L2 norm, median", _OWN, "median length of the rows"),
    "norm_percentile_75": Measure("L2 norm, 75%", _OWN, "75th percentile of the lengths of the rows"),
    "norm_max": Measure("L2 norm, max", _OWN, "longest row"),
    "mean": Measure("value, mean", _OWN, "mean of all values"),
    "std": Measure("value, std", _OWN, "standard deviation of all values"),
    "min": Measure("value, min", _OWN, "smallest value"),
    "percentile_25": Measure("value, 25%", _OWN, "25th percentile of all values"),
    "percentile_50": Measure("value, median", _OWN, "median of all values"),
    "percentile_75": Measure("value, 75%", _OWN, "75th percentile of all values"),
    "max": Measure("value, max", _OWN, "largest value"),
    "sparsity": Measure("sparsity", "share", "share of values with |x| < 1e-6"),
    "anisotropy": Measure(
        "anisotropy", "cosine", "mean cosine over all pairs of rows (after Ethayarajh, 2019, who samples words)"
    ),
    "cosine_below": Measure(
        "cosine to the layer below", "cosine", "between each row and the same token's captured state below, mean"
    ),
    "cosine_next_token": Measure(
        "cosine to the next token", "cosine", "between each row and that of the next token of its text, mean"
    ),
    "n_outliers": Measure(
        "outlier dimensions", "dimensions",
        "columns whose |x| is at least 6 times the row's root mean square in at least 6% of the rows (thresholds of "
        "Dettmers et al., LLM.int8(), 2022)",
    ),
    "n_nonfinite": Measure("NaN and Inf", "values", "values that are no finite number; nothing over them is defined"),
}  # fmt: skip


@dataclass(frozen=True)
class LayerReport:
    """The numbers of one hidden state; `MEASURES` says what each is. NaN: not defined for these rows."""

    label: str  # "embedding", a block's index, or "final"
    depth: float  # 0 at the embedding, 1 at the final state, equal steps between
    below: str | None  # label of the captured state below, to which betas and cosine_below refer
    n_rows: int
    width: int  # values of one row
    d_eff_pca90: float
    d_eff_entropy: float
    d_eff_energy90: float
    beta_pca90: float
    beta_entropy: float
    beta_energy: float
    norm_mean: float
    norm_std: float
    norm_min: float
    norm_percentile_25: float
    norm_percentile_50: float
    norm_percentile_75: float
    norm_max: float
    mean: float
    std: float
    min: float
    percentile_25: float
    percentile_50: float
    percentile_75: float
    max: float
    sparsity: float
    anisotropy: float
    cosine_below: float
    cosine_next_token: float
    outliers: tuple[int, ...]  # indices of the outlier dimensions
    n_nonfinite: int

    @property
    def n_outliers(self) -> int:
        """Number of outlier dimensions."""
        return len(self.outliers)

    def value(self, measure: str) -> float:
        """One number by its name in `MEASURES`."""
        return float(getattr(self, measure))


@dataclass(frozen=True)
class TextReport:
    """The numbers of one text."""

    text: str | None  # None: not known, only its tokens
    tokens: tuple[int, ...]  # S states, T tokens
    positions: tuple[int, ...]
    token_texts: tuple[str, ...] | None
    layers: tuple[LayerReport, ...]  # S, from the lowest
    norms: tuple[tuple[float, ...], ...]  # (S, T): L2 norm of each row
    turns: tuple[tuple[float, ...], ...]  # (S - 1, T): angle of each row to the one below, degrees; () if undefined


@dataclass(frozen=True)
class Analysis:
    """The numbers of one model or file: of all its texts together, and of each."""

    name: str
    facts: Mapping[str, Any]  # what is known of the model: architecture, quantization, ...
    n_layer: int
    skip_first: int  # rows at positions below this were left out
    layers: tuple[LayerReport, ...]  # over the rows of all texts
    beta_pca90: float  # D_eff of the lowest captured state over that of the highest
    beta_entropy: float
    outliers: tuple[int, ...]  # outlier dimensions of at least 25% of the captured blocks
    texts: tuple[TextReport, ...]

    @property
    def width(self) -> int:
        """Values of one row (n_embd)."""
        return self.layers[-1].width

    @property
    def n_rows(self) -> int:
        """Number of rows of all texts."""
        return self.layers[0].n_rows

    def to_dict(self) -> dict[str, Any]:
        """Every number, as JSON has it: what is not a finite number is None."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def to_json(analyses: list[Analysis]) -> dict[str, Any]:
    """A document of several analyses, with what each number is."""
    from .. import __version__

    return {
        "format": FORMAT,
        "version": VERSION,
        "loom_gguf": __version__,
        "measures": {name: measure._asdict() for name, measure in MEASURES.items()},
        "analyses": [analysis.to_dict() for analysis in analyses],
    }


ROW_HEAD = ("source", "text", "layer", "depth", "below", "n_rows", "width")


def table(analyses: list[Analysis]) -> Iterator[tuple[Any, ...]]:
    """Every number of every layer as rows of a table, the head first; "text" is its number, "all" for all together."""
    yield (*ROW_HEAD, *MEASURES, "outliers")
    for analysis in analyses:
        parts: list[tuple[str, tuple[LayerReport, ...]]] = [("all", analysis.layers)]
        if len(analysis.texts) > 1:
            parts += [(str(number), text.layers) for number, text in enumerate(analysis.texts, 1)]
        for text, layers in parts:
            for layer in layers:
                place = (analysis.name, text, layer.label, layer.depth, layer.below or "", layer.n_rows, layer.width)
                numbers = (getattr(layer, name) for name in MEASURES)
                yield (*place, *map(_cell, numbers), " ".join(map(str, layer.outliers)))


def _cell(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
