"""Ollama's store, and our own, which is laid out like it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import LoomError, ManifestError, ModelNameError, UnsupportedModelError
from .entry import Candidate, Entry, Place
from .files import inside
from .manifest import Manifest, check_blob, read_config, read_manifest
from .names import Name, name_of_parts

logger = logging.getLogger(__name__)

_TEXTS = frozenset({"system", "template", "prompt", "params", "messages", "license"})
_MAX_MANIFESTS = 10_000


def candidates(store: Path, place: Place, roots: Iterable[str]) -> Iterator[Candidate]:
    """The models of a store, in the order of their manifests' paths."""
    roots = tuple(roots)
    manifests = store / "manifests"
    if not inside(manifests, roots):
        if manifests.exists():
            logger.warning("%s leads out of the folders of models: nothing in it is offered", manifests)
        return
    for n, parts in enumerate(_below(manifests, 4)):
        if n >= _MAX_MANIFESTS:
            logger.warning("%s has more than %s models: the rest is not offered", store, f"{_MAX_MANIFESTS:,}")
            return
        try:
            name = name_of_parts(parts)
        except ModelNameError as error:
            logger.debug("not offered: %s", error)
            continue
        path = manifests.joinpath(*parts)
        yield Candidate(name.short, place, partial(read_entry, name, path, store, place, roots))


def read_entry(name: Name, path: Path, store: Path, place: Place, roots: Iterable[str]) -> Entry:
    """The model that a manifest describes. ManifestError where nothing can be known of it."""
    roots = tuple(roots)
    if not inside(path, roots):
        raise ManifestError(f"{path} is a link that leads out of the folders of models, or nowhere")
    manifest = read_manifest(path, store)
    modified = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    models = manifest.of("model")
    config: Mapping[str, Any] = {}
    problem: LoomError | None = None
    try:
        config = read_config(manifest, roots)
        _refuse(name, manifest, config)
        check_blob(models[0], roots)
    except LoomError as error:
        problem = error
    model = models[0].path if len(models) == 1 else None
    quantization = config.get("file_type")
    return Entry(
        name=name.short,
        place=place,
        path=model,
        parts=(model,) if model else (),
        size=manifest.size,
        modified=modified,
        digest=manifest.digest,
        quantization=quantization if isinstance(quantization, str) and quantization not in ("", "unknown") else None,
        details=config,
        blobs=tuple(blob for blob in manifest.layers if blob.kind in _TEXTS),
        projectors=len(manifest.of("projector")),
        problem=problem,
    )


def _refuse(name: Name, manifest: Manifest, config: Mapping[str, Any]) -> None:
    """UnsupportedModelError for what belongs to a model that cannot be run here."""
    models = manifest.of("model")
    form = config.get("model_format")
    if config.get("remote_host") or config.get("remote_model"):
        raise UnsupportedModelError(f"{name.short} runs on other machines, at {config.get('remote_host')!r:.100}")
    if manifest.of("tensor") or (isinstance(form, str) and form not in ("", "gguf")):
        raise UnsupportedModelError(
            f"{name.short} is stored as {form or 'safetensors'!s:.40}, but llama.cpp reads GGUF: pull a GGUF of it, "
            f"e.g. hf.co/ORG/REPO:Q4_K_M"
        )
    if manifest.of("adapter"):
        raise UnsupportedModelError(
            f"{name.short} has a LoRA adapter, which is not applied here: without it the answers would be another "
            f"model's. Use its base model, or merge the adapter with llama.cpp's llama-export-lora and create a model "
            f"of the result"
        )
    if not models:
        raise UnsupportedModelError(f"{name.short} has no GGUF file: its manifest names no model layer")
    if len(models) > 1:
        raise UnsupportedModelError(
            f"{name.short} has {len(models)} model layers, of which only one can be run: pull a GGUF in one file"
        )


def _below(folder: Path, depth: int) -> Iterator[tuple[str, ...]]:
    """Relative paths of what lies `depth` levels down; links to folders are not followed."""
    try:
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: item.name)
    except OSError as error:
        logger.debug("%s cannot be listed: %s", folder, error.strerror)
        return
    for item in items:
        if depth == 1:
            if not item.is_dir(follow_symlinks=False):
                yield (item.name,)
        elif item.is_dir(follow_symlinks=False):
            for rest in _below(folder / item.name, depth - 1):
                yield (item.name, *rest)
