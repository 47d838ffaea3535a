"""The skeleton of an HTML page that needs nothing else: styles, pictures and scripts are in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from .figures import PAPER, Theme, picture
from .numbers import plain

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Stand for the page's own colours, which differ between light and dark; matplotlib needs numbers.
_STANDINS = {
    "#010203": "var(--ink)",
    "#010204": "var(--soft)",
    "#010205": "var(--grid)",
    **{f"#0102{16 + i:02x}": f"var(--series-{i + 1})" for i in range(len(PAPER.series))},
}
_INK, _SOFT, _GRID, *_SERIES = _STANDINS
PAGE = Theme(ink=_INK, soft=_SOFT, grid=_GRID, series=tuple(_SERIES), background="none")  # for inline_svg


def page(title: str, body: Markup, *, header: Markup | str = "", style: str = "", script: str = "") -> str:
    """A whole HTML document; its title stands above the header, and that above the body.

    style: CSS of this page's own, after the common one, whose colours it uses (`--ink`, `--soft`, `--grid`, `--paper`,
    `--shade`, `--series-1` to `--series-6`). script: JavaScript to run at the end; no other can run.
    """
    from markupsafe import Markup

    from .. import __version__

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = render(
        "loom_gguf.report", "page.html.j2", title=title, header=header, body=body, version=__version__,
        style=Markup(style), script=Markup(script), digest=digest,
    )  # fmt: skip
    return text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair in a name has no bytes


def render(package: str, template: str, **values: Any) -> Markup:
    """A template that lies in a package, filled; what is text in `values` is shown as text."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return Markup(environment.from_string(part(package, template)).render(values))


def part(package: str, name: str) -> str:
    """The text of a file that lies in a package."""
    return (resources.files(package) / name).read_text("utf-8")


def script_data(document: Any) -> Markup:
    """A document as JSON for a <script type="application/json"> element."""
    from markupsafe import Markup

    # Inside a script element only "<" could end it; lone surrogates of broken UTF-8 are escaped by ascii anyway.
    return Markup(json.dumps(plain(document), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"))


def inline_svg(figure: Figure, name: str) -> Markup:
    """A figure as a part of a page; drawn with PAGE, it takes the page's colours.

    name: of its own in the page. Hidden from screen readers: a caption and a table beside it say what it shows.
    """
    from markupsafe import Markup

    text = picture(figure, "svg", text=True, name=name).decode()
    text = text[text.index("<svg") :]  # without the XML head, which names a DTD elsewhere
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, count=1, flags=re.DOTALL)
    # One page has many of them, and an id belongs to one element.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    for standin, colour in _STANDINS.items():
        text = text.replace(standin, colour)
    return Markup(text.replace("<svg ", '<svg aria-hidden="true" ', 1))
