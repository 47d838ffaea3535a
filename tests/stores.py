"""Stores of models on the disk, laid out file by file as the programs that own them do.

Ollama: manifest/manifest.go, manifest/layer.go and server/create.go of its repository. Hugging Face: file_download.py
of huggingface_hub. LM Studio: its documentation, "Import models".
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FIDELITY = Path(__file__).parent / "fidelity"
LLAMA = FIDELITY / "llama.gguf"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_IMAGE = "application/vnd.ollama.image."

DETAILS = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_families": ["llama"],
    "model_type": "97.54K",
    "file_type": "F32",
}


class OllamaStore:
    """Ollama's `models` folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (root / "manifests").mkdir(exist_ok=True)

    def blob(self, content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        if not self.blob_path(digest).exists():  # others may read it
            temporary = self.root / "blobs" / f"sha256-{os.getpid()}"
            temporary.write_bytes(content)
            temporary.rename(self.blob_path(digest))
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    def blob_path(self, digest: str) -> Path:
        return self.root / "blobs" / f"sha256-{digest.removeprefix('sha256:')}"

    def layer(self, kind: str, content: bytes | str | Path) -> dict[str, Any]:
        if isinstance(content, Path):
            content = content.read_bytes()
        return self.blob(content.encode() if isinstance(content, str) else content, _IMAGE + kind)

    def manifest(self, *layers: dict[str, Any], config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        config = DETAILS | {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}} | (config or {})
        of_config = self.blob(json.dumps(config).encode(), _CONFIG)
        return {"schemaVersion": 2, "mediaType": _MANIFEST, "config": of_config, "layers": list(layers)} | more

    def path(self, name: str) -> Path:
        """name: host/namespace/model/tag, or model or model:tag for Ollama's own registry."""
        if name.count("/") != 3:
            model, _, tag = name.partition(":")
            name = f"registry.ollama.ai/library/{model}/{tag or 'latest'}"
        return self.root / "manifests" / name

    def put(self, name: str, manifest: Any) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode() + b"\n")
        return path

    def add(self, name: str, model: Path = LLAMA, config: dict[str, Any] | None = None, **layers: Any) -> Path:
        """A model with layers, by their kinds: system="...", params={...}, license=["...", "..."]."""
        made = [self.layer("model", model)]
        for kind, content in layers.items():
            for each in content if kind == "license" else [content]:
                made.append(self.layer(kind, json.dumps(each) if isinstance(each, (dict, list)) else each))
        return self.put(name, self.manifest(*made, config=config))


class HuggingFaceCache:
    """The `hub` folder of huggingface_hub."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")

    def repository(self, name: str) -> Path:
        return self.root / ("models--" + name.replace("/", "--"))

    def add(
        self, repository: str, file: str, content: bytes | Path, commit: str = "a" * 40, revision: str | None = "main"
    ) -> Path:
        """A file as hf_hub_download leaves it; the path in the snapshot."""
        data = content.read_bytes() if isinstance(content, Path) else content
        folder = self.repository(repository)
        etag = hashlib.sha256(data).hexdigest()
        blob, link = folder / "blobs" / etag, folder / "snapshots" / commit / file
        for each in (blob, link):
            each.parent.mkdir(parents=True, exist_ok=True)
        (self.root / ".locks" / folder.name).mkdir(parents=True, exist_ok=True)
        (self.root / ".locks" / folder.name / f"{etag}.lock").write_text("")
        blob.write_bytes(data)
        link.symlink_to(os.path.relpath(blob, link.parent))
        if revision is not None:
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / revision).write_text(commit)
        return link


class LMStudioFolder:
    """LM Studio's `models` folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, publisher: str, model: str, file: str, content: Path = LLAMA) -> Path:
        path = self.root / publisher / model / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read_bytes())
        return path
