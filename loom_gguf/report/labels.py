"""Names and tokens as short labels that can be seen whole."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

LABEL_LENGTH = 16
_NAME_LENGTH = 60


def visible(text: str, *, space: str = "␣", has_glyph: Callable[[str], bool] = lambda char: True) -> str:
    """A token's text as a short label: spaces, line ends and what has no glyph are made visible."""
    marks = {" ": space, "\n": "↵", "\t": "⇥"}
    chars = [marks.get(char) or (char if _printable(char) and has_glyph(char) else ascii(char)[1:-1]) for char in text]
    label, shown = "", 0
    for char in chars:
        if len(label) + len(char) > LABEL_LENGTH - (shown + 1 < len(chars)):
            return label + "…"
        label, shown = label + char, shown + 1
    return label


def token_labels(
    tokens: Sequence[int], texts: Sequence[str] | None, *, space: str = "␣",
    has_glyph: Callable[[str], bool] = lambda char: True,
) -> list[str]:  # fmt: skip
    """One label per token; its id where it has no text."""
    names = [""] * len(tokens) if texts is None else texts
    return [
        visible(text, space=space, has_glyph=has_glyph) or str(token) for text, token in zip(names, tokens, strict=True)
    ]


def printable(text: str) -> str:
    """Text from a file, in one line, without characters that would steer a terminal or cannot be drawn."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def short_name(name: str) -> str:
    """A source's name as a label: the end of a long path."""
    shown = printable(name)
    return shown if len(shown) <= _NAME_LENGTH else "…" + shown[1 - _NAME_LENGTH :]


def state_name(label: str) -> str:
    """`layer 3` for the label "3"; "embedding" and "final" as they are."""
    return f"layer {label}" if label.isdigit() else label


def _printable(char: str) -> bool:
    # Not str.isprintable alone: a mark that combines would sit on the label's neighbour.
    return char.isprintable() and not (unicodedata.combining(char) or unicodedata.category(char) == "Me")
