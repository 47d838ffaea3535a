"""What a model from a store adds to every conversation with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..library import Extras

Message = dict[str, Any]


def beginning(extras: Extras) -> list[Message]:
    """The messages with which each conversation with a model begins."""
    return [{"role": message["role"], "content": message["content"]} for message in extras.messages]


def with_own(messages: Sequence[Message], extras: Extras) -> list[Message]:
    """A conversation with the model's own first messages, and its system prompt where it has none itself."""
    whole = beginning(extras) + list(messages)
    if extras.system and messages[0]["role"] != "system":
        whole.insert(0, {"role": "system", "content": extras.system})
    return whole
