"""Ollama's store, and our own, which is laid out like it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import LoomError, ManifestError, ModelNameError, UnsupportedModelError
from .entry import Candidate, Entry, Place
from .files import inside
from .loose import PREFERRED
from .manifest import JINJA, Manifest, check_blob, read_config, read_manifest
from .names import HUGGING_FACE, TAG, Name, lower, name_of_parts

logger = logging.getLogger(__name__)

_TEXTS = frozenset({"system", "template", "prompt", "params", "messages", "license", JINJA})
_MAX_MANIFESTS = 10_000


def candidates(store: Path, place: Place, roots: Iterable[str]) -> Iterator[Candidate]:
    """The models of a store, in the order of their manifests' paths."""
    roots = tuple(roots)
    manifests = store / "manifests"
    if not inside(manifests, roots):
        if manifests.exists():
            logger.warning("%s leads out of the folders of models: nothing in it is offered", manifests)
        return
    all_parts = list(islice(_below(manifests, 4), _MAX_MANIFESTS + 1))
    usual = _usual(all_parts) if place == "own" else {}
    for n, parts in enumerate(all_parts):
        if n >= _MAX_MANIFESTS:
            logger.warning("%s has more than %s models: the rest is not offered", store, f"{_MAX_MANIFESTS:,}")
            return
        try:
            name = name_of_parts(parts)
        except ModelNameError as error:
            logger.debug("not offered: %s", error)
            continue
        path = manifests.joinpath(*parts)
        aliases = (f"{name.host}/{name.namespace}/{name.model}",) if usual.get(parts[:3]) == parts[3] else ()
        yield Candidate(name.short, place, partial(read_entry, name, path, store, place, roots), aliases)


def _usual(found: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Of each repository of Hugging Face the tag that a name without one means, by the other parts of its name."""
    tags: dict[tuple[str, ...], list[str]] = {}
    for parts in found:
        if lower(parts[0]) == HUGGING_FACE:
            tags.setdefault(parts[:3], []).append(parts[3])
    return {
        parts: next((tag for tag in PREFERRED if tag in there), there[0])
        for parts, there in tags.items()
        if TAG not in map(lower, there)
    }


def part_name(at: int, n_parts: int) -> str:
    """The name by which llama.cpp finds part `at`, from 0, of a model in our own store."""
    return f"model-{at + 1:05}-of-{n_parts:05}.gguf"


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
        check_runnable(name, manifest, config, split=place == "own")
        for model in models:
            check_blob(model, roots)
    except LoomError as error:
        problem = error
    parts = tuple(model.path for model in models)
    if len(parts) > 1:
        # Blobs have no names by which llama.cpp could find them: our own store has links with such names.
        folder = store / "split" / models[0].digest
        parts = tuple(folder / part_name(at, len(models)) for at in range(len(models))) if place == "own" else ()
        if problem is None and not all(part.is_file() and inside(part, roots) for part in parts):
            problem = ManifestError(f"{folder} lacks a part of {name.short}: pull the model again")
    quantization = config.get("file_type")
    return Entry(
        name=name.short,
        place=place,
        path=parts[0] if parts else None,
        parts=parts,
        size=manifest.size,
        modified=modified,
        digest=manifest.digest,
        quantization=quantization if isinstance(quantization, str) and quantization not in ("", "unknown") else None,
        details=config,
        blobs=tuple(blob for blob in manifest.layers if blob.kind in _TEXTS),
        projectors=len(manifest.of("projector")),
        problem=problem,
    )


def check_runnable(name: Name, manifest: Manifest, config: Mapping[str, Any], *, split: bool) -> None:
    """UnsupportedModelError for what belongs to a model that cannot be run here.

    split: several model layers are the parts of one model.
    """
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
    if len(models) > 1 and not split:
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
