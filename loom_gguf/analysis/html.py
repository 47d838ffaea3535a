"""The report as one HTML page that needs nothing else: styles and pictures are in it, and it has no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report.numbers import number
from ..report.page import PAGE, inline_svg, page, render
from .export import MAP_TEXTS
from .figures import MAPS, PANELS, curve, map_of, panel_title, token_map
from .report import MEASURES, Analysis, LayerReport

_SECOND = (
    "norm_mean", "norm_std", "norm_min", "norm_percentile_25", "norm_percentile_50", "norm_percentile_75", "norm_max",
    "mean", "std", "min", "percentile_25", "percentile_50", "percentile_75", "max", "n_nonfinite",
)  # fmt: skip
_FIRST = tuple(name for name in MEASURES if name not in _SECOND)


def html_report(analyses: Sequence[Analysis]) -> str:
    """The page."""
    header = render(
        "loom_gguf.analysis", "header.html.j2", analyses=analyses, differences=differences(analyses), facts=_facts
    )
    body = render(
        "loom_gguf.analysis",
        "body.html.j2",
        analyses=analyses,
        measures=MEASURES,
        panels=[_panel(analyses, measure) for measure in PANELS],
        maps=[_maps(place, analysis) for place, analysis in enumerate(analyses)],
        map_texts=MAP_TEXTS,
        tables=[("Geometry and similarity", _FIRST), ("Lengths and values", _SECOND)],
        cell=_cell,
        number=number,
        shown=_shown,
    )
    return page(f"Hidden states of {', '.join(analysis.name for analysis in analyses)}", body, header=header)


def differences(analyses: Sequence[Analysis]) -> list[str]:
    """What to keep in mind when these are compared: sentences."""
    found = []
    if len({analysis.width for analysis in analyses}) > 1:
        widths = ", ".join(f"{analysis.width} ({analysis.name})" for analysis in analyses)
        found.append(
            f"The states have different widths: {widths}. Shapes of curves can be compared, numbers of dimensions and "
            f"norms cannot; β, cosines and shares can."
        )
    if len({tuple(text.tokens for text in analysis.texts) for analysis in analyses}) > 1:
        found.append(
            "The sources read different tokens: a difference between curves can be one of texts or of tokenizers."
        )
    if len({analysis.n_rows for analysis in analyses}) > 1:
        found.append("The numbers of rows differ, and D_eff pca90 is always less than the number of rows.")
    if any(map(_missing, analyses)):
        missing = "; ".join(f"{analysis.name} lacks {_missing(analysis) or 'none'}" for analysis in analyses)
        found.append(f"Not all hidden states were captured, so β and cosines may span several blocks: {missing}.")
    return found


def _missing(analysis: Analysis) -> str:
    """The hidden states that were not captured, in words."""
    have = {layer.label for layer in analysis.layers}
    blocks = sum(str(il) not in have for il in range(analysis.n_layer))
    parts = [label for label in ("embedding", "final") if label not in have]
    return ", ".join(parts + ([f"{blocks} of {analysis.n_layer} blocks"] if blocks else []))


def _panel(analyses: Sequence[Analysis], measure: str) -> dict[str, Any]:
    definition = MEASURES[measure].definition
    if measure == "norm_percentile_50":
        definition = "lengths of the rows"
    return {
        "title": panel_title(measure),
        "unit": MEASURES[measure].unit,
        "definition": definition,
        "svg": inline_svg(curve(analyses, measure, PAGE), measure),
    }


def _maps(place: int, analysis: Analysis) -> list[dict[str, Any]]:
    found = []
    for text_number, text in enumerate(analysis.texts[:MAP_TEXTS]):
        for measure in MAPS:
            shown, figure = map_of(analysis, text, measure), token_map(analysis, text, measure, PAGE, title=False)
            if shown is not None and figure is not None:
                found.append(
                    {
                        "title": shown.title,
                        "scale": shown.scale,
                        "text": text_number + 1,
                        "svg": inline_svg(figure, f"map-{place}-{text_number}-{measure}"),
                    }
                )
    return found


def _cell(layer: LayerReport, measure: str) -> str:
    return number(layer.value(measure), 4)


def _shown(text: str) -> str:
    """A text whose control characters are seen, as far as they are no space."""
    return "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text)


def _facts(analysis: Analysis) -> str:
    facts = analysis.facts
    parts = [str(facts[key]) for key in ("architecture", "quantization") if facts.get(key)]
    parts += [f"{analysis.n_layer} layers", f"width {analysis.width}", f"{analysis.n_rows} rows"]
    if analysis.skip_first:
        parts.append(f"positions below {analysis.skip_first} left out")
    return ", ".join(parts)
