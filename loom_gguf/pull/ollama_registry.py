"""Ollama's registry, and others that speak its protocol: GET /v2/<name>/manifests/<tag> and /v2/<name>/blobs/<digest>.

A manifest is JSON as `library.manifest` reads it. Blobs are redirected to where they lie. Public models need no
token; a registry that asks for one (WWW-Authenticate: Bearer) is asked for the one that it gives to anybody.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import httpx

from ..errors import (
    AccessDeniedError,
    DownloadError,
    ManifestError,
    ModelNotFoundError,
    RegistryError,
    UnsupportedModelError,
)
from ..library.entry import Blob
from ..library.files import real_roots
from ..library.manifest import Manifest, read_config, read_manifest
from ..library.names import Name
from ..library.ollama_store import check_runnable
from .download import Checksum, RemoteFile, fetch, partial_path
from .own_store import OwnStore
from .plan import Plan
from .space import writing
from .transport import Session, is_loopback

_ACCEPT = {"accept": "application/vnd.docker.distribution.manifest.v2+json"}
_KINDS = {"model": "the weights", "template": "the template", "params": "the parameters", "license": "the license"}


def look_up(store: OwnStore, session: Session, name: Name, *, explicit: bool) -> Plan:
    """What belongs to a model. Refuses what cannot be run here, before anything large is fetched.

    explicit: whether the user wrote http:// or https://.
    """
    try:
        base, data = _manifest(session, name, explicit=explicit)
    except ModelNotFoundError:
        raise ModelNotFoundError(
            f"{name.host} has no model {name.short!r:.200}: check its name and tag, e.g. at {name.host}"
        ) from None
    except AccessDeniedError as error:
        raise AccessDeniedError(
            f"{error}. Only models that need no login are fetched: log in with `ollama` and pull it there, or take a "
            f"public one"
        ) from None
    manifest = _understood(store, name, data)
    check_runnable(name, manifest, {}, split=False)
    if manifest.of("projector"):
        raise UnsupportedModelError(
            f"{name.short} comes with an encoder of images or audio (a projector), which is not run here: pull a "
            f"model of text alone, or the GGUF without it: hf.co/ORG/REPO:QUANTIZATION"
        )

    def remote(blob: Blob) -> RemoteFile:
        what = f"{_KINDS.get(blob.kind, 'a part')} of {name.short}"
        return RemoteFile(f"{base}/blobs/sha256:{blob.digest}", blob.size, Checksum("sha256", blob.digest), what)

    if manifest.config is not None:
        _check_config(store, session, name, manifest, remote(manifest.config))
    unique = {blob.digest: blob for blob in manifest.layers}
    if manifest.config is not None:
        unique[manifest.config.digest] = manifest.config
    models = [blob for blob in unique.values() if blob.kind == "model"]
    others = [blob for blob in unique.values() if blob.kind != "model"]
    return Plan(name, tuple(map(remote, models)), tuple(map(remote, others)), data)


def _manifest(session: Session, name: Name, *, explicit: bool) -> tuple[str, bytes]:
    """Where the model is, and its manifest."""
    scheme = name.scheme if explicit or not is_loopback(_host(name)) else "http"

    def ask(scheme: str, tries: int | None = None) -> tuple[str, bytes]:
        base = f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}"
        return base, session.text(f"{base}/manifests/{name.tag}", _ACCEPT, f"the manifest of {name.short}", tries)

    try:
        httpx.URL(f"{scheme}://{name.host}/")
    except httpx.InvalidURL:
        raise RegistryError(f"{name.host!r:.100} is no host: a name begins with host:port/ or without one") from None
    if session.insecure and not explicit and scheme == "https":
        try:
            return ask("https", tries=1)
        except DownloadError:  # a registry in one's own network mostly has no certificate at all
            return ask("http")
    return ask(scheme)


def _host(name: Name) -> str:
    host, colon, port = name.host.rpartition(":")
    return host if colon and port.isdigit() else name.host


def _understood(store: OwnStore, name: Name, data: bytes) -> Manifest:
    with writing("a manifest was read"), tempfile.TemporaryDirectory(dir=store.partial) as folder:
        path = Path(folder) / "manifest"
        path.write_bytes(data)
        try:
            return read_manifest(path, store.root)
        except ManifestError as error:
            said = str(error).replace(str(path), "its manifest")
            raise RegistryError(f"{name.host} sent no manifest for {name.short}: {said}") from None


def _check_config(store: OwnStore, session: Session, name: Name, manifest: Manifest, file: RemoteFile) -> None:
    """Refuse by what the configuration says; it is small, and comes first."""
    config = manifest.config
    assert config is not None
    if config.size > 2**20:
        raise RegistryError(f"{name.short}: a configuration of {config.size:,} bytes is not believable")
    if store.has(config.digest, config.size):
        found = read_config(manifest, real_roots([store.root]))
    else:
        fetch(store, session, file)
        path = partial_path(store, file)
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # put into the store by another process meanwhile
            data = store.blob(config.digest).read_bytes()
        found = _parsed(data, name)
    check_runnable(name, manifest, found, split=False)


def _parsed(data: bytes, name: Name) -> dict[str, object]:
    import orjson

    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise RegistryError(f"{name.short}: its configuration ({hashlib.sha256(data).hexdigest()[:12]}) is no JSON")
    return found
