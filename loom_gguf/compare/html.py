"""A comparison as one HTML file: no script, and nothing that is fetched from elsewhere."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from .figure import draw
from .report import COLUMNS, findings, number, side_text, table_rows
from .result import Comparison

_WORST = 20  # tokens that are listed


def page(comparison: Comparison) -> str:
    """A whole HTML document."""
    title = f"{comparison.a.name} and {comparison.b.name}: where they part"
    return _render("page.html", title=title, body=Markup(body(comparison)))


def body(comparison: Comparison) -> str:
    """The report as a piece of HTML, for a page or a notebook."""
    c = comparison
    return _render(
        "body.html",
        a=side_text(c.a),
        b=side_text(c.b),
        n_rows=f"{len(c.tokens):,}",
        n_prompts=int(c.prompts[-1]) + 1,
        findings=list(findings(c)),
        picture=Markup(_svg(c)),
        columns=COLUMNS,
        rows=list(zip(c.states, table_rows(c), strict=True)),
        parting=c.first_parting,
        worst=_worst(c),
    )


def _render(template: str, **values: Any) -> str:
    return Environment(loader=PackageLoader("loom_gguf.compare"), autoescape=True).get_template(template).render(values)


def _svg(comparison: Comparison) -> str:
    """The picture as an <svg> element; without the XML head, which names a DTD elsewhere."""
    text = io.StringIO()
    draw(comparison, text, "svg")
    svg = text.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


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
    return str(token) if text is None else f"{text!r} ({token})"
