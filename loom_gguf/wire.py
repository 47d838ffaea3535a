"""What a model's process and its parent say to each other: pickles of these classes, over one pipe."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from .errors import LoomError
from .jobs import Event
from .requests import Embedded, EmbedRequest, GenerateRequest, ModelInfo, Started

# What may be on its way to one request's reader: so many events, and no further one beyond so many bytes. (The rows
# of a prompt's piece in all layers of a large model are hundreds of megabytes.) The child counts what it has sent, the
# parent tells what was taken, every half a window at the latest.
WINDOW_EVENTS = 16
WINDOW_BYTES = 64 * 2**20

Answer = Started | Event | Embedded


@dataclass(frozen=True)
class Submit:
    """To the child: begin a request. The parent gives each one a number."""

    number: int
    request: GenerateRequest | EmbedRequest


@dataclass(frozen=True)
class Taken:
    """To the child: the request's reader has taken so many more events."""

    number: int
    n: int


@dataclass(frozen=True)
class Cancel:
    """To the child: nobody wants this request any more."""

    number: int


@dataclass(frozen=True)
class Leave:
    """To the child: end."""


@dataclass(frozen=True)
class Ready:
    """To the parent: the model is loaded."""

    info: ModelInfo


@dataclass(frozen=True)
class Refused:
    """To the parent: the model cannot be loaded."""

    error: LoomError


@dataclass(frozen=True)
class Said:
    """To the parent: an event of a request. The last one is Finished, Failed or Embedded."""

    number: int
    event: Answer


@dataclass(frozen=True)
class Logged:
    """To the parent: a line for its log."""

    name: str
    level: int
    text: str


def pack(message: object) -> bytes:
    """A message's bytes."""
    return pickle.dumps(message, protocol=5)


def unpack(data: bytes) -> Any:
    """The message again; only ever of our own other process."""
    return pickle.loads(data)
