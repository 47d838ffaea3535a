"""The lens as one HTML file: everything is in it, and it asks nothing of the network."""

from __future__ import annotations

import html
import json
from importlib import resources

from ..plots import visible
from .result import LensResult


def page(result: LensResult) -> str:
    """The text of the page."""
    template = (resources.files("loom_gguf.lens") / "page.html").read_text(encoding="utf-8")
    data = result.to_dict()
    # What a person is shown; ids without a text are shown as such.
    data["shown"] = {str(token): visible(result.text(int(token))) for token in _used(result)}
    data["read"] = [visible(result.read(t)) for t in range(result.n_tokens)]
    del data["vocabulary"], data["texts"]
    # Inside a script element only "<" could end it; lone surrogates of broken UTF-8 are escaped by ascii anyway.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    title = html.escape(f"Logit lens of {visible(result.model)}")
    return template.replace("@TITLE@", title).replace("@DATA@", text)


def _used(result: LensResult) -> set[int]:
    return {int(token) for token in {*result.top_ids.reshape(-1).tolist(), *result.final_ids.tolist()} if token >= 0}
