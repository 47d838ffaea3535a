"""Texts of single tokens, from a file's vocabulary alone, and log-probabilities, which name tokens by number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ..jobs import Token

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # SentencePiece's
_NORMAL, _BYTE_TYPE = 1, 6  # of tokenizer.ggml.token_type


def _byte_of_character() -> dict[str, int]:
    """Byte-level vocabularies write each byte as a printable character: those that are none, from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in shown)
    return table | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_of_character()


class TokenTexts:
    """The vocabulary of one model."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """`metadata`: of the whole file, with the vocabulary's arrays."""
        self._tokens = metadata.get("tokenizer.ggml.tokens", [])
        self._types = metadata.get("tokenizer.ggml.token_type")
        self._byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"

    def __call__(self, token_id: int) -> bytes:
        """The bytes of a token; of a special token its name."""
        if not 0 <= token_id < len(self._tokens):
            return b""
        text: str = self._tokens[token_id]
        kind = _NORMAL if self._types is None else int(self._types[token_id])
        if kind == _BYTE_TYPE and (byte := _BYTE.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        if kind == _NORMAL and self._byte_level and all(c in _BYTES for c in text):
            return bytes(_BYTES[c] for c in text)
        if kind == _NORMAL and not self._byte_level:
            text = text.replace(_SPACE, " ")
        return text.encode("utf-8", "surrogateescape")


class Logprob(TypedDict):
    """A token and its log-probability."""

    token: str  # its text
    logprob: float  # natural logarithm
    bytes: list[int]  # of the text: a token may be a part of a character
    top_logprobs: NotRequired[list[Any]]  # the most probable tokens, best first


def logprob(token: Token, texts: TokenTexts) -> Logprob | None:
    """What is told of a token; None where nobody asked for log-probabilities."""
    if token.logprob is None:
        return None
    told = _logprob(token.token_id, token.logprob, texts)
    if token.top_logprobs:
        told["top_logprobs"] = [_logprob(*pair, texts) for pair in token.top_logprobs]
    return told


def _logprob(token_id: int, value: float, texts: TokenTexts) -> Logprob:
    piece = texts(token_id)
    # Minus infinity cannot be JSON; no float64 is smaller than this.
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": max(value, -1.7976931348623157e308),
        "bytes": list(piece),
    }
