"""The lens as one HTML file: everything is in it, and it asks nothing of the network."""

from __future__ import annotations

from ..report.labels import short_name, visible
from ..report.page import page as whole_page
from ..report.page import part, render, script_data
from ..report.terminal import CIVIDIS, MISSING_COLOUR
from .result import LensResult

_HERE = "loom_gguf.lens"


def page(result: LensResult) -> str:
    """The text of the page."""
    data = result.to_dict()
    # What a person is shown; ids without a text are shown as such.
    data["shown"] = {str(token): visible(result.text(int(token))) for token in _used(result)}
    data["read"] = [visible(result.read(t)) for t in range(result.n_tokens)]
    data["cividis"], data["missing"] = CIVIDIS, MISSING_COLOUR
    del data["vocabulary"], data["texts"]
    return whole_page(
        f"Logit lens of {short_name(result.model)}",
        render(_HERE, "body.html.j2", data=script_data(data), missing=MISSING_COLOUR),
        style=part(_HERE, "page.css"),
        script=part(_HERE, "page.js"),
    )


def _used(result: LensResult) -> set[int]:
    return {int(token) for token in {*result.top_ids.reshape(-1).tolist(), *result.final_ids.tolist()} if token >= 0}
