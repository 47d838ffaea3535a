"""From captured states to an `Analysis`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..errors import StatesError
from ..states import Array, States
from .geometry import alignment_rows, beta_ratio, energy90_rows, entropy, pca90
from .report import Analysis, LayerReport, TextReport
from .rows import Floats, flat, hidden_state_rows, norms, turns
from .similarity import anisotropy
from .statistics import outlier_dimensions, recurring_outliers, vector_statistics

Progress = Callable[[str, int, int], None]  # what is being done, how many steps are done, of how many


class TextStates(NamedTuple):
    """The states of one text, with what is known of it."""

    states: States
    text: str | None = None
    token_texts: Sequence[str] | None = None


def analyze_states(
    texts: Sequence[TextStates],
    *,
    name: str,
    facts: Mapping[str, Any] | None = None,
    skip_first: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """The numbers of each captured hidden state, over the rows of all texts together and of each text.

    The states must be of one model, with the same ones captured for every text. `skip_first` leaves out the rows at
    the first positions of each text: many models make the first token's state a hundred times longer than all
    others, and it then decides the entropy and the norms.
    Raises NotCapturedError where there are no hidden states, StatesError where texts do not fit together.
    """
    if not texts:
        raise StatesError(f"{name}: nothing to analyze, no text given")
    if skip_first < 0:
        raise StatesError(f"skip_first counts positions, so it is not negative: {skip_first}")
    parts = [_kept(text.states, skip_first, f"{name}, text {number}") for number, text in enumerate(texts, 1)]
    _check_alike([text.states for text in texts], parts, name)
    n_layer = texts[0].states.n_layer
    labels = list(parts[0])
    several = len(parts) > 1
    total, done = len(labels) * (len(parts) + several), 0

    def measured(chosen: Sequence[Mapping[str, Array]]) -> tuple[LayerReport, ...]:
        nonlocal done
        layers: list[LayerReport] = []
        before: list[Floats] | None = None
        for label in labels:
            if progress is not None:
                progress(f"measuring {name}", done, total)
            rows = [flat(part[label]) for part in chosen]
            layers.append(_layer(label, n_layer, rows, layers[-1] if layers else None, before))
            before, done = rows, done + 1
        return tuple(layers)

    each = [measured([part]) for part in parts]
    together = measured(parts) if several else each[0]
    if progress is not None:
        progress(f"measuring {name}", total, total)
    blocks = [layer for layer in together if layer.label.isdecimal()] or list(together)
    return Analysis(
        name=name,
        facts=dict(facts or {}),
        n_layer=n_layer,
        skip_first=skip_first,
        layers=together,
        beta_pca90=beta_ratio(together[0].d_eff_pca90, together[-1].d_eff_pca90),
        beta_entropy=beta_ratio(together[0].d_eff_entropy, together[-1].d_eff_entropy),
        outliers=recurring_outliers([layer.outliers for layer in blocks]),
        texts=tuple(
            _text(text, part, layers, skip_first) for text, part, layers in zip(texts, parts, each, strict=True)
        ),
    )


def _kept(states: States, skip_first: int, what: str) -> dict[str, Array]:
    """label -> rows at positions from `skip_first` on."""
    kept = np.asarray(states.positions) >= skip_first
    if not kept.any():
        raise StatesError(
            f"{what} has {len(kept)} rows, none at a position from {skip_first} on: leave out fewer, or take a longer "
            f"text"
        )
    return {label: array if kept.all() else array[kept] for label, array in hidden_state_rows(states).items()}


def _check_alike(states: Sequence[States], parts: Sequence[Mapping[str, Array]], name: str) -> None:
    first = parts[0]
    for number, (each, part) in enumerate(zip(states, parts, strict=True), 1):
        if each.n_layer != states[0].n_layer or list(part) != list(first):
            raise StatesError(
                f"{name}: text {number} has other hidden states than text 1 ({', '.join(part)} of {each.n_layer} "
                f"blocks, not {', '.join(first)} of {states[0].n_layer}): capture the same ones of one model"
            )
        for label, rows in part.items():
            if rows.shape[1:] != first[label].shape[1:]:
                raise StatesError(
                    f"{name}: {label} of text {number} has rows of {_size(rows)} values, that of text 1 of "
                    f"{_size(first[label])}: they are of different models"
                )


def _size(rows: Array) -> int:
    return int(np.prod(rows.shape[1:]))


def _layer(
    label: str, n_layer: int, parts: list[Floats], below: LayerReport | None, before: list[Floats] | None
) -> LayerReport:
    """`parts`: the rows (T, E) of each text; `before`: those of the state below."""
    rows = np.concatenate(parts)
    values, lengths = vector_statistics(rows), vector_statistics(norms(rows))
    dimensions, spread, counts = pca90(rows), entropy(rows), energy90_rows(rows)
    energies = rows.shape[1] / np.where(counts > 0, counts, np.nan)
    along = [alignment_rows(part[:-1], part[1:]) for part in parts if len(part) > 1]
    # States of several streams can be wider than the embedding below them.
    alike = before is not None and before[0].shape[1] == rows.shape[1]
    upwards = [alignment_rows(*pair) for pair in zip(parts, before or [], strict=True)] if alike else []
    return LayerReport(
        label=label,
        depth=_depth(label, n_layer),
        below=None if below is None else below.label,
        n_rows=len(rows),
        width=rows.shape[1],
        d_eff_pca90=dimensions,
        d_eff_entropy=spread,
        d_eff_energy90=float(counts.mean()),
        beta_pca90=np.nan if below is None else beta_ratio(below.d_eff_pca90, dimensions),
        beta_entropy=np.nan if below is None else beta_ratio(below.d_eff_entropy, spread),
        beta_energy=float(energies.mean()),
        norm_mean=lengths.mean,
        norm_std=lengths.std,
        norm_min=lengths.min,
        norm_percentile_25=lengths.percentile_25,
        norm_percentile_50=lengths.percentile_50,
        norm_percentile_75=lengths.percentile_75,
        norm_max=lengths.max,
        mean=values.mean,
        std=values.std,
        min=values.min,
        percentile_25=values.percentile_25,
        percentile_50=values.percentile_50,
        percentile_75=values.percentile_75,
        max=values.max,
        sparsity=values.sparsity,
        anisotropy=anisotropy(rows),
        cosine_below=_mean(upwards),
        cosine_next_token=_mean(along),
        outliers=outlier_dimensions(rows),
        n_nonfinite=int((~np.isfinite(rows)).sum()),
    )


def _depth(label: str, n_layer: int) -> float:
    """0 for the embedding, 1 for the final state, the blocks in equal steps between."""
    step = {"embedding": 0, "final": n_layer + 1}.get(label)
    return (int(label) + 1 if step is None else step) / (n_layer + 1)


def _mean(parts: list[Floats]) -> float:
    return float(np.concatenate(parts).mean()) if parts else np.nan


def _text(text: TextStates, rows: Mapping[str, Array], layers: tuple[LayerReport, ...], skip_first: int) -> TextReport:
    states, flattened = text.states, [flat(array) for array in rows.values()]
    kept = [r for r, position in enumerate(states.positions) if position >= skip_first]
    angles = [turns(below, above) for below, above in pairwise(flattened) if below.shape == above.shape]
    return TextReport(
        text=text.text,
        tokens=tuple(states.tokens[r] for r in kept),
        positions=tuple(states.positions[r] for r in kept),
        token_texts=None if text.token_texts is None else tuple(text.token_texts[r] for r in kept),
        layers=layers,
        norms=_tuples([norms(array) for array in flattened]),
        turns=_tuples(angles) if len(angles) == len(flattened) - 1 else (),
    )


def _tuples(arrays: list[Floats]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, array)) for array in arrays)
