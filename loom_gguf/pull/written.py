"""Manifests that we write: of what they name, in the form in which Ollama writes its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..gguf_file import GGUFFile

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_IMAGE = "application/vnd.ollama.image."
_SUFFIXES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


@dataclass(frozen=True)
class Layer:
    """What a manifest says of a blob."""

    kind: str  # "model", "system", ..., or a whole media type
    digest: str  # sha256 in hexadecimal
    size: int  # in bytes

    def json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        media_type = self.kind if "/" in self.kind else _IMAGE + self.kind
        return {"mediaType": media_type, "digest": f"sha256:{self.digest}", "size": self.size}


def text_layer(kind: str, data: bytes) -> Layer:
    """A layer of this content."""
    return Layer(kind, hashlib.sha256(data).hexdigest(), len(data))


def config_of(file: GGUFFile, layers: Iterable[Layer]) -> bytes:
    """The configuration of a model, by its file's header."""
    n = file.n_params
    config = {
        "model_format": "gguf",
        "model_family": file.arch,
        "model_families": [file.arch],
        "model_type": next((f"{n / unit:.2f}{suffix}" for unit, suffix in _SUFFIXES if n >= unit), str(n)),
        "file_type": file.quantization,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]},
    }
    return json.dumps(config).encode()


def manifest_of(config: bytes, layers: Iterable[Layer]) -> bytes:
    """The manifest."""
    found = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": text_layer(_CONFIG, config).json(),
        "layers": [layer.json() for layer in layers],
    }
    return json.dumps(found).encode()


def stage(folder: Path, data: bytes) -> tuple[str, Path]:
    """A small file in `folder`, ready to become a blob: its sha256 and where it lies."""
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"sha256-{digest}"
    path.write_bytes(data)
    return digest, path
