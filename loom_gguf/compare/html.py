"""A comparison as one HTML file: no script, and nothing that is fetched from elsewhere."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from ..report.figures import PAPER, Theme
from ..report.labels import visible
from ..report.numbers import number
from ..report.page import PAGE, inline_svg, render
from ..report.page import page as whole_page
from .figure import figure
from .report import COLUMNS, findings, side_text, table_rows
from .result import Comparison

if TYPE_CHECKING:
    from markupsafe import Markup

_WORST = 20  # tokens that are listed
_STYLE = """.facts td, .facts th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts { width: auto; }
.parting th, .parting td { background: var(--shade); font-weight: 600; }
td { white-space: pre; }"""


def page(comparison: Comparison) -> str:
    """A whole HTML document."""
    title = f"{comparison.a.name} and {comparison.b.name}: where they part"
    return whole_page(title, body(comparison, PAGE), style=_STYLE)


def body(comparison: Comparison, theme: Theme = PAPER) -> Markup:
    """The report as a piece of HTML, for a page or, on paper of its own, for a notebook."""
    c = comparison
    return render(
        "loom_gguf.compare",
        "body.html.j2",
        a=side_text(c.a),
        b=side_text(c.b),
        n_rows=f"{len(c.tokens):,}",
        n_prompts=int(c.prompts[-1]) + 1,
        findings=list(findings(c)),
        picture=inline_svg(figure(c, theme, title=False), f"comparison-{zlib.crc32(c.errors.tobytes()):08x}"),
        columns=COLUMNS,
        rows=list(zip(c.states, table_rows(c), strict=True)),
        parting=c.first_parting,
        worst=_worst(c),
    )


def _worst(c: Comparison) -> list[tuple[str, ...]]:
    if c.kl is None or c.top_a is None or c.top_b is None:
        return []
    order = np.argsort(-np.nan_to_num(c.kl, nan=np.inf), kind="stable")
    return [
        (
            str(c.prompts[r]),
            str(c.positions[r]),
            _token(c, int(c.tokens[r])),
            _token(c, int(c.top_a[r])),
            _token(c, int(c.top_b[r])),
            number(c.kl[r]),
        )
        for r in order[:_WORST].tolist()
        if c.kl[r] != 0
    ]


def _token(c: Comparison, token: int) -> str:
    if token < 0:
        return "no number"
    text = c.texts.get(token)
    return str(token) if text is None else f"{visible(text)} ({token})"
