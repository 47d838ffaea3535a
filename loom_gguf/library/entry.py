"""A model as the library knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ..errors import LoomError
from .names import LATEST, bare, key

_NEVER = datetime.fromtimestamp(0, timezone.utc)

Place = Literal["file", "demo", "own", "folder", "ollama", "huggingface", "lmstudio"]


@dataclass(frozen=True)
class Blob:
    """A file of a store that a manifest names. It was checked that it lies in the store."""

    kind: str  # "model", "projector", "system", ...: the last part of the media type
    digest: str  # sha256, 64 hexadecimal digits in lower case
    size: int  # in bytes
    path: Path


@dataclass(frozen=True)
class Entry:
    """A model that was found. With a `problem` it is known, but cannot be used."""

    name: str  # without ":latest"
    place: Place
    path: Path | None = None  # the GGUF file, of a split model the first part; None where there is none
    parts: tuple[Path, ...] = ()  # of a split model all of them, in order; else the one file
    size: int = 0  # in bytes, of all that belongs to it
    modified: datetime = _NEVER
    digest: str | None = None  # the manifest's sha256; None where only hashing the file would tell
    quantization: str | None = None  # as the manifest or the file's name has it
    details: Mapping[str, Any] = field(default_factory=dict)  # of the config blob: model_family, model_type, ...
    blobs: tuple[Blob, ...] = ()  # texts that a manifest adds, see read_extras()
    projectors: int = 0  # image or audio encoders beside it, which are not used here
    problem: LoomError | None = None  # why it cannot be used, and what to do

    @property
    def tag(self) -> str:
        """The name as lists show it."""
        rest = self.name.partition("/")[2] or self.name  # a host may have a port
        return self.name if ":" in rest else self.name + LATEST

    def usable(self) -> Entry:
        """This entry; raises where it has a problem."""
        if self.problem is not None:
            raise type(self.problem)(str(self.problem))
        return self


@dataclass(frozen=True)
class Extras:
    """What a manifest adds to a GGUF file."""

    system: str = ""
    template: str = ""  # in Go's template language
    params: Mapping[str, Any] = field(default_factory=dict)  # options of Ollama's
    messages: Sequence[Mapping[str, Any]] = ()  # {role, content}, the beginning of every conversation
    licenses: tuple[str, ...] = ()
    jinja: str = ""  # a template in place of the file's own


@dataclass(frozen=True)
class Candidate:
    """A model's name, and how to learn more."""

    name: str  # without ":latest"
    place: Place
    read: Callable[[], Entry]
    aliases: tuple[str, ...] = ()  # more names for it, not shown in lists

    @property
    def key(self) -> str:
        """The same for two names that are the same to a user."""
        return key(self.name)

    @property
    def keys(self) -> frozenset[str]:
        """What a user's name is compared with."""
        return frozenset(key(name) for name in (self.name, *self.aliases))

    def entry(self) -> Entry:
        """What can be known of it; never raises."""
        try:
            return self.read()
        except LoomError as error:
            return Entry(bare(self.name), self.place, problem=error)
        except OSError as error:
            return Entry(bare(self.name), self.place, problem=LoomError(f"{self.name}: {error.strerror or error}"))
