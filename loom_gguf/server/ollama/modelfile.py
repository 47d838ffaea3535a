"""A model's own settings as text, in the forms in which /api/show tells them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...library import Extras

_WIDTH = 30  # of a parameter's name


def parameters(params: Mapping[str, Any]) -> str:
    """A line for each value: its name, blanks, and the value as JSON."""
    return "\n".join(f"{name:<{_WIDTH}} {json.dumps(value, ensure_ascii=False)}" for name, value in _pairs(params))


def modelfile(name: str, extras: Extras) -> str:
    """The Modelfile that would make this model of the model `name`."""
    lines = [f"FROM {name}"]
    if extras.jinja or extras.template:
        lines.append(f"TEMPLATE {_quoted(extras.jinja or extras.template)}")
    if extras.system:
        lines.append(f"SYSTEM {_quoted(extras.system)}")
    lines += [f"PARAMETER {key} {_value(value)}" for key, value in _pairs(extras.params)]
    lines += [f"LICENSE {_quoted(text)}" for text in extras.licenses]
    lines += [f"MESSAGE {message['role']} {_quoted(message['content'])}" for message in extras.messages]
    return "\n".join(lines) + "\n"


def _pairs(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        for each in value if isinstance(value, list) else [value]:
            yield name, each


def _value(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """As Modelfiles quote: three quotes around what has quotes or lines in it."""
    if "\n" in text or '"' in text:
        return f'"""{text}"""'
    return f'"{text}"' if text != text.strip() or " " in text or not text else text
