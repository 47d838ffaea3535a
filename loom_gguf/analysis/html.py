"""The report as one HTML page that needs nothing else: styles and pictures are in it, and it has no scripts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from .export import MAP_TEXTS, picture
from .figures import MAPS, PANELS, Theme, curve, map_scale, map_title, panel_title, token_map
from .report import MEASURES, Analysis, LayerReport

# Stand for the page's own colours, which differ between light and dark; matplotlib needs numbers.
_STANDINS = {
    "#010203": "var(--ink)",
    "#010204": "var(--grid)",
    **{f"#0102{16 + i:02x}": f"var(--series-{i + 1})" for i in range(6)},
}
_NAMES = list(_STANDINS)
_PAGE = Theme(ink=_NAMES[0], grid=_NAMES[1], series=tuple(_NAMES[2:]), missing="#e3120b", background="none")

_SECOND = (
    "norm_mean", "norm_std", "norm_min", "norm_percentile_25", "norm_percentile_50", "norm_percentile_75", "norm_max",
    "mean", "std", "min", "percentile_25", "percentile_50", "percentile_75", "max", "n_nonfinite",
)  # fmt: skip
_FIRST = tuple(name for name in MEASURES if name not in _SECOND)


def html_report(analyses: Sequence[Analysis]) -> str:
    """The page."""
    from jinja2 import Environment

    from .. import __version__

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (resources.files("loom_gguf.analysis") / "report.html.j2").read_text("utf-8")
    page = environment.from_string(source).render(
        analyses=analyses,
        version=__version__,
        measures=MEASURES,
        panels=[_panel(analyses, measure) for measure in PANELS],
        maps=[_maps(number, analysis) for number, analysis in enumerate(analyses)],
        map_texts=MAP_TEXTS,
        tables=[("Geometry and similarity", _FIRST), ("Lengths and values", _SECOND)],
        cell=_cell,
        differences=differences(analyses),
        facts=_facts,
        shown=_shown,
    )
    return page.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair in a name has no bytes


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
        "svg": _inline(picture(curve(analyses, measure, _PAGE), "svg", text=True, name=measure), measure),
    }


def _maps(number: int, analysis: Analysis) -> list[dict[str, Any]]:
    found = []
    for text_number, text in enumerate(analysis.texts[:MAP_TEXTS]):
        for measure in MAPS:
            figure = token_map(analysis, text, measure, _PAGE, title=False)
            if figure is not None:
                name = f"map-{number}-{text_number}-{measure}"
                found.append(
                    {
                        "title": map_title(measure),
                        "scale": " ".join(map_scale(measure).split()),
                        "text": text_number + 1,
                        "svg": _inline(picture(figure, "svg", text=True, name=name), name),
                    }
                )
    return found


def _inline(svg: bytes, name: str) -> Any:
    """An SVG file of matplotlib's as a part of a page."""
    from markupsafe import Markup

    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, count=1, flags=re.DOTALL)
    # One page has many of them, and an id belongs to one element.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    for standin, colour in _STANDINS.items():
        text = text.replace(standin, colour)
    return Markup(text.replace("<svg ", '<svg aria-hidden="true" ', 1))  # the figure's caption and the table say it


def _cell(layer: LayerReport, measure: str) -> str:
    value = layer.value(measure)
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if MEASURES[measure].unit in ("dimensions", "values") and value % 1 == 0 else f"{value:.4g}"


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
