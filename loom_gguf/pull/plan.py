"""What there is to be fetched for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..library.names import HUGGING_FACE, Name, lower
from .download import RemoteFile

_HUGGING_FACE_HOSTS = (HUGGING_FACE, "huggingface.co", "www.huggingface.co")


@dataclass(frozen=True)
class Plan:
    """A model on a server."""

    name: Name  # under which it is put into the store
    models: tuple[RemoteFile, ...]  # its GGUF file, or the parts of it
    others: tuple[RemoteFile, ...] = ()  # small files that its manifest names
    manifest: bytes | None = None  # None: it is to be written


def of_hugging_face(name: Name) -> bool:
    """Whether a name means a repository of Hugging Face."""
    return lower(name.host) in _HUGGING_FACE_HOSTS


Environ = Mapping[str, str]
