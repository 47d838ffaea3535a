"""Manifests of Ollama's store: what belongs to a model.

`{schemaVersion: 2, mediaType, config{mediaType, digest, size}, layers[{mediaType, digest, size}]}` in
manifests/<host>/<namespace>/<model>/<tag>; each digest names a file blobs/sha256-<hex>. Everything in here may have
been written by anybody: sizes are bounded before they are read, digests are checked before they become paths.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import ManifestError
from .entry import Blob, Entry, Extras
from .files import MAX_TEXT, inside, read_bounded

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_MAX_SIZE = 2**62  # bytes of a blob, or of a model
_MAX_EXTRAS = 4 * MAX_TEXT  # bytes of all texts of a model
_LIST = "manifest.list"  # in the media type of a manifest that only names other ones
_IMAGE = "application/vnd.ollama.image."
JINJA = "application/vnd.loom-gguf.template.jinja"  # a template of ours; Ollama's own are in Go's language


@dataclass(frozen=True)
class Manifest:
    """A manifest that could be read. Its blobs were not looked for yet."""

    digest: str  # of the file
    size: int  # of all blobs, in bytes
    config: Blob | None
    layers: tuple[Blob, ...]

    def of(self, kind: str) -> tuple[Blob, ...]:
        """The layers of a kind."""
        return tuple(layer for layer in self.layers if layer.kind == kind)


def read_manifest(path: Path, store: Path) -> Manifest:
    """The manifest at `path` in a store. ManifestError where it is not one."""
    data = read_bounded(path)
    found = _json(data, path)
    if not isinstance(found, dict):
        raise ManifestError(f"{path} is no manifest: it must be a JSON object")
    if _LIST in str(found.get("mediaType", "")):
        raise ManifestError(f"{path} is a list of manifests, which is not understood here")
    layers = found.get("layers")
    if layers is None:
        layers = []
    if not isinstance(layers, list):
        raise ManifestError(f'{path} is no manifest: its "layers" must be a list')
    config = found.get("config")
    blobs = tuple(_blob(layer, path, store) for layer in layers)
    # Models that run elsewhere have a config without a digest.
    of_config = _blob(config, path, store) if isinstance(config, dict) and config.get("digest") else None
    size = sum(blob.size for blob in (*blobs, *((of_config,) if of_config else ())))
    if size > _MAX_SIZE:
        raise ManifestError(f"{path}: its layers have {size:,} bytes together, which is not believable")
    return Manifest(hashlib.sha256(data).hexdigest(), size, of_config, blobs)


def read_config(manifest: Manifest, roots: Iterable[str]) -> Mapping[str, Any]:
    """The config blob: model_format, model_family, model_families, model_type, file_type and more."""
    if manifest.config is None:
        return {}
    found = _json(read_text_blob(manifest.config, roots), manifest.config.path)
    if not isinstance(found, dict):
        raise ManifestError(f"{manifest.config.path} is no configuration: it must be a JSON object")
    return found


def read_extras(entry: Entry, roots: Iterable[str]) -> Extras:
    """System prompt, template, parameters, messages and licenses of a model. ManifestError where they are damaged."""
    if sum(blob.size for blob in entry.blobs) > _MAX_EXTRAS:
        raise ManifestError(f"{entry.name}: its texts have more than {_MAX_EXTRAS:,} bytes")
    roots = tuple(roots)
    texts: dict[str, list[bytes]] = {}
    for blob in entry.blobs:
        texts.setdefault(blob.kind, []).append(read_text_blob(blob, roots))

    def text(kind: str) -> str:
        return texts[kind][-1].decode("utf-8", "replace") if kind in texts else ""

    params = _json(texts["params"][-1], entry.name) if "params" in texts else {}
    messages = _json(texts["messages"][-1], entry.name) if "messages" in texts else []
    if not isinstance(params, dict):
        raise ManifestError(f"{entry.name}: its parameters must be a JSON object")
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise ManifestError(f'{entry.name}: its messages must be a list of {{"role", "content"}}')
    licenses = tuple(text.decode("utf-8", "replace") for text in texts.get("license", ()))
    return Extras(text("system"), text("template") or text("prompt"), params, messages, licenses, text(JINJA))


def read_text_blob(blob: Blob, roots: Iterable[str]) -> bytes:
    """A small blob, held against its size and digest."""
    check_blob(blob, roots)
    data = read_bounded(blob.path)
    if hashlib.sha256(data).hexdigest() != blob.digest:
        raise ManifestError(f"{blob.path} is damaged: its content does not have the digest that it is named by")
    return data


def check_blob(blob: Blob, roots: Iterable[str]) -> None:
    """That a blob is there, in the store, and as long as the manifest says."""
    try:
        found = blob.path.stat()
    except (OSError, ValueError):
        raise ManifestError(f"{blob.path} ({blob.kind}) is missing: pull the model again") from None
    if not inside(blob.path, roots):
        raise ManifestError(f"{blob.path} ({blob.kind}) is a link that leads out of the folders of models")
    if not blob.path.is_file():
        raise ManifestError(f"{blob.path} ({blob.kind}) is no file")
    if found.st_size != blob.size:
        raise ManifestError(
            f"{blob.path} ({blob.kind}) has {found.st_size:,} bytes, but its manifest says {blob.size:,}: pull the "
            f"model again"
        )


def _blob(found: Any, path: Path, store: Path) -> Blob:
    if not isinstance(found, dict):
        raise ManifestError(f"{path} is no manifest: each layer must be a JSON object")
    kind, digest, size = found.get("mediaType"), found.get("digest"), found.get("size")
    if not isinstance(kind, str):
        raise ManifestError(f"{path}: a layer has no media type")
    matched = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if matched is None:
        raise ManifestError(f"{path}: {digest!r:.100} is no digest, which is sha256: and 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise ManifestError(f"{path}: a layer's size is {size!r:.100}")
    hexadecimal = matched[1].lower()
    short = kind.removeprefix(_IMAGE) if kind.startswith(_IMAGE) else kind
    return Blob(short, hexadecimal, size, store / "blobs" / f"sha256-{hexadecimal}")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


def _json(data: bytes, where: object) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:  # also where it is nested too deep
        raise ManifestError(f"{where} is no JSON: {error}") from None
