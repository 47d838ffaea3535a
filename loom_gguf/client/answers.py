"""What a client is told: types, and rows as arrays."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ..errors import StatesError

Json = dict[str, Any]


class HiddenState(TypedDict):
    """Numbers of one layer as they are sent; see `as_array`."""

    data: Any  # a flat list of numbers, a list for each row of a sequence, or base64 of little-endian float32
    shape: list[int]
    dtype: str
    encoding: str | None  # "base64", or None


class Generated(TypedDict):
    """What `generate` gives."""

    text: str
    token_count: int
    hidden_states: dict[str, HiddenState] | None  # by index, as Hugging Face counts: [1, n_embd], of the last step
    attention_weights: dict[str, HiddenState] | None  # by block: [1, n_head, 1, n_past], of the last step
    sequence_hidden_states: dict[str, HiddenState] | None  # [n_steps, n_embd]
    metadata: Json


class Batch(TypedDict):
    """What `generate_batch` gives."""

    results: list[Generated]
    total_tokens: int
    total_time_ms: float
    prompts_processed: int


class Embedded(TypedDict):
    """What `embed` gives."""

    embedding: list[float]
    shape: list[int]
    metadata: Json


class EmbeddedBatch(TypedDict):
    """What `embed_batch` gives."""

    embeddings: list[list[float]]
    shapes: list[list[int]]
    total_time_ms: float
    texts_processed: int


@dataclass
class StreamingToken:
    """A token of a stream."""

    token: str  # its text; empty where that is held back, half a character for example
    token_id: int
    is_finished: bool = False
    finish_reason: str | None = None  # of the last one: "stop" or "length"


@dataclass
class StreamingResult:
    """The end of a stream."""

    text: str
    token_count: int
    token_ids: list[int]
    hidden_states: dict[str, HiddenState] | None = None
    metadata: Json | None = None
    attention_weights: dict[str, HiddenState] | None = None
    sequence_hidden_states: dict[str, HiddenState] | None = None


def as_array(state: HiddenState | Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The numbers of a hidden state, float32 of its `shape`, however they were sent.

    StatesError where they are something else than numbers of that shape.
    """
    try:
        if state.get("encoding") == "base64":
            flat = np.frombuffer(base64.b64decode(state["data"], validate=True), "<f4").astype(np.float32)
        else:
            flat = np.asarray(state["data"], np.float32)
        return flat.reshape(state["shape"])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise StatesError(f"this is no hidden state as a server sends it: {error!r:.200}") from None
