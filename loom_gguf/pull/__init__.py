"""Models from elsewhere into our own store: `loom-gguf pull`, /api/pull.

A name says where: `hf.co/org/repo[:QUANTIZATION]` is a repository of Hugging Face, everything else is a model of
Ollama's registry, or of the registry whose host it begins with. What comes lies in the store's `partial` folder until
all of it is there and has the checksums that were announced; then it becomes visible in one go. Whatever ends a pull,
the next one goes on from where it was.

Files of Hugging Face get a manifest of ours, as `hf.co/org/repo:QUANTIZATION`; huggingface_hub's own cache is not
written to.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from ..errors import LoomError, ModelLoadError, ModelNameError, ModelNotFoundError
from ..library.names import Name, lower, parse_name
from . import hugging_face, ollama_registry
from .checks import check_whole, look
from .download import Look, RemoteFile, fetch, partial_path
from .own_store import OwnStore, refuse_demo
from .plan import Environ, Plan, of_hugging_face
from .progress import Progress, Report, Watcher, nobody
from .space import check_space, writing
from .transport import Patience, Session
from .written import Layer, config_of, manifest_of, stage

__all__ = ["OwnStore", "Patience", "Progress", "Report", "Watcher", "nobody", "pull", "pull_name"]

_ROUNDS = 3  # a blob may be removed by somebody else between its check and the end


def pull_name(text: str) -> Name:
    """The name of something that can be pulled. ModelNameError or StoreError for anything else."""
    name = parse_name(text)
    refuse_demo(name)
    if lower(text).startswith(("http://", "https://")) and text.count("/") < 4:
        raise ModelNameError(f"{text!r:.200}: after the scheme comes host/namespace/model[:tag]")
    return name


def pull(
    text: str,
    store: OwnStore,
    watcher: Watcher | None = None,
    *,
    insecure: bool = False,
    patience: Patience | None = None,
    environ: Environ | None = None,
) -> Name:
    """Fetch a model; the name that it has in the store.

    insecure: allow plain http to hosts that are not this machine, and unknown certificates.
    Raises PullError, ModelNotFoundError, ModelNameError, ModelLoadError, NoSpaceError or StoreError. Blocks.
    """
    name = pull_name(text)
    watcher = watcher or nobody()
    environ = os.environ if environ is None else environ
    trusted = frozenset({hugging_face.origin_of(environ)})
    session = Session(watcher, patience or Patience(), insecure=insecure, trusted=trusted)
    try:
        watcher.report(Progress("pulling manifest"))
        if of_hugging_face(name):
            plan = hugging_face.look_up(session, name, environ)
        else:
            explicit = lower(text).startswith(("http://", "https://"))
            plan = ollama_registry.look_up(store, session, name, explicit=explicit)
        for last in (False,) * (_ROUNDS - 1) + (True,):
            if _bring(store, session, plan, watcher, last=last):
                break
        watcher.report(Progress("success"))
        return plan.name
    finally:
        session.close()


def _bring(store: OwnStore, session: Session, plan: Plan, watcher: Watcher, *, last: bool) -> bool:
    """Fetch all and make it visible; False where somebody removed a blob meanwhile."""
    files = (*plan.models, *plan.others)
    check_space(store.root, sum(_missing(store, file) for file in files), plan.name.short)
    staged: dict[str, Path] = {}
    models = []
    for file in plan.models:
        at = partial(look, plan.name.short) if file is plan.models[0] else None
        models.append(_one(store, session, file, staged, at))
    for file in plan.others:
        _one(store, session, file, staged, None)
    watcher.report(Progress("verifying sha256 digest"))  # each was, while it came
    paths = [staged[digest] if digest in staged else store.blob(digest) for digest in models]
    try:
        header = check_whole(store, plan.name.short, paths)
    except ModelLoadError:
        for path in staged.values():
            path.unlink(missing_ok=True)  # what the server has is no model; another try would bring the same
        raise
    except ModelNotFoundError:
        if last or all(path.exists() for path in paths):
            raise
        return False
    manifest = plan.manifest
    if manifest is None:
        layers = [Layer("model", digest, file.size) for digest, file in zip(models, plan.models, strict=True)]
        config = config_of(header, layers)
        with writing("the configuration was written"):
            digest, path = stage(store.partial, config)
        staged[digest] = path
        manifest = manifest_of(config, layers)
    watcher.check()
    watcher.report(Progress("writing manifest"))
    missing = store.commit(plan.name, manifest, staged)
    if missing and last:
        raise LoomError(f"{plan.name.short}: its blobs are removed as fast as they come; who does that? Pull again")
    return not missing


def _missing(store: OwnStore, file: RemoteFile) -> int:
    """Bytes of a file that are still to come."""
    if file.checksum.kind == "sha256" and store.has(file.checksum.hex, file.size):
        return 0
    try:
        return max(file.size - partial_path(store, file).stat().st_size, 0)
    except OSError:
        return file.size


def _one(store: OwnStore, session: Session, file: RemoteFile, staged: dict[str, Path], at: Look | None) -> str:
    if file.checksum.kind == "sha256" and store.has(file.checksum.hex, file.size):
        session.watcher.report(file.progress(file.size))
        return file.checksum.hex
    session.watcher.report(file.progress(0))
    digest = fetch(store, session, file, at)
    path = partial_path(store, file)
    if path.exists():
        staged[digest] = path
    return digest
