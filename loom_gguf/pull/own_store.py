"""Our own store, the only place that is written to: manifests, blobs, and who needs which.

<root>/manifests/<host>/<namespace>/<model>/<tag>   a JSON manifest, as Ollama writes it
<root>/blobs/sha256-<hex>                           what manifests name
<root>/split/<hex of the first part>/               a model in several files, under names by which llama.cpp finds them
<root>/partial/                                     what is not whole yet, or not needed by a manifest yet
<root>/lock                                         held while manifests and blobs change

A blob comes into `blobs` only with the manifest that needs it, in one go under the lock, and leaves with the last one.
So a process that dies at any moment leaves no file that looks like a model, and no blob that nobody needs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ManifestError, ModelNotFoundError, StoreError
from ..library.entry import Blob
from ..library.files import inside, real_roots
from ..library.manifest import Manifest, read_manifest
from ..library.names import Name, key, lower
from .locks import is_locked, locked_file
from .space import writing

logger = logging.getLogger(__name__)

_DEMO = "demo"
_FORGOTTEN = 3600.0  # seconds without a change to a folder of unfinished files
_PARTS = 4  # host, namespace, model, tag


class OwnStore:
    """The store at `root`. Holds nothing: any number of them, in any number of processes, may be used at once."""

    def __init__(self, root: Path) -> None:
        """The folder need not be there yet."""
        self.root = root

    @property
    def partial(self) -> Path:
        """The folder of unfinished files; made if it is not there."""
        folder = self.root / "partial"
        with writing(f"making the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def blob(self, digest: str) -> Path:
        """Where the blob of a sha256 in hexadecimal lies."""
        return self.root / "blobs" / f"sha256-{digest}"

    def has(self, digest: str, size: int) -> bool:
        """Whether a whole blob is there."""
        try:
            return self.blob(digest).stat().st_size == size
        except OSError:
            return False

    def manifest(self, name: Name) -> Path | None:
        """The manifest of a name, in whatever case; None where there is none."""
        path = self._cased(name)
        return path if path.is_file() else None

    def read(self, name: Name) -> Manifest:
        """The manifest of a name. ModelNotFoundError or ManifestError where there is none, or a damaged one."""
        path = self.manifest(name)
        if path is None:
            raise ModelNotFoundError(f"model '{name.short:.200}' not found")
        return read_manifest(path, self.root)

    # -- changes ----------------------------------------------------------------------------------------------------

    def commit(self, name: Name, manifest: bytes, staged: Mapping[str, Path]) -> list[str]:
        """Make a model visible: move its files in, then write its manifest in place of one of the same name.

        staged: verified files in `partial` by their sha256. Returns the digests of blobs that the manifest needs and
        that are neither staged nor there: then nothing was changed.
        """
        refuse_demo(name)
        with self.changing():
            temporary = self.partial / f"manifest-{os.getpid()}-{hashlib.sha256(str(name).encode()).hexdigest()[:16]}"
            with writing("the manifest was written"):
                _write(temporary, manifest)
            try:
                needed = read_manifest(temporary, self.root)
                blobs = {blob.digest: blob for blob in _blobs(needed)}
                missing = [
                    digest
                    for digest, blob in blobs.items()
                    if not (digest in staged and staged[digest].exists()) and not self.has(digest, blob.size)
                ]
                if missing:
                    return missing
                path = self._cased(name)
                before = self._digests(path) if path.exists() else frozenset()
                with writing("the model was put into the store"):
                    self.blob("").parent.mkdir(parents=True, exist_ok=True)
                    for digest in blobs:
                        if digest in staged and staged[digest].exists():
                            os.replace(staged[digest], self.blob(digest))
                    parts = [blob.digest for blob in needed.of("model")]
                    if len(parts) > 1:
                        self._link_parts(parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not inside(path.parent, real_roots([self.root])):
                        raise StoreError(f"{path.parent} is a link that leads out of the store: remove it")
                    os.replace(temporary, path)
                    _sync(path.parent)
                self._free(before - blobs.keys())
                return []
            finally:
                temporary.unlink(missing_ok=True)

    def copy(self, source: Name, target: Name) -> None:
        """A second name for a model. ModelNotFoundError where there is no such model in this store."""
        refuse_demo(target)
        with self.changing():
            path = self.manifest(source)
            if path is None:
                raise ModelNotFoundError(f"model '{source.short:.200}' not found")
            read_manifest(path, self.root)  # a damaged one is not multiplied
            to = self._cased(target)
            if to == path:
                return
            before = self._digests(to) if to.exists() else frozenset()
            temporary = self.partial / f"manifest-{os.getpid()}-copy"
            try:
                with writing("the manifest was copied"):
                    _write(temporary, path.read_bytes())
                    to.parent.mkdir(parents=True, exist_ok=True)
                    if not inside(to.parent, real_roots([self.root])):
                        raise StoreError(f"{to.parent} is a link that leads out of the store: remove it")
                    os.replace(temporary, to)
                    _sync(to.parent)
            finally:
                temporary.unlink(missing_ok=True)
            self._free(before)

    def remove(self, name: Name) -> int:
        """Remove a name, and the blobs that no other one needs. Returns their bytes.

        ModelNotFoundError where there is no such model in this store.
        """
        with self.changing():
            path = self.manifest(name)
            if path is None:
                raise ModelNotFoundError(f"model '{name.short:.200}' not found")
            before = self._digests(path)
            with writing("the model was removed"):
                path.unlink()
                for folder in list(path.parents)[: _PARTS - 1]:
                    with suppress(OSError):  # others are in it
                        folder.rmdir()
            return self._free(before)

    def remove_partial(self) -> int:
        """Remove unfinished downloads that nobody goes on with at this moment. Returns their bytes."""
        freed = 0
        with self.changing():
            for path in self.partial.iterdir():
                if path.is_dir() and not path.is_symlink():
                    if time.time() - path.stat().st_mtime > _FORGOTTEN:  # else somebody may be at work in it
                        shutil.rmtree(path, ignore_errors=True)
                elif not is_locked(path):
                    freed += path.lstat().st_size
                    with writing("an unfinished download was removed"):
                        path.unlink(missing_ok=True)
        return freed

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held while manifests and blobs change; short."""
        with writing(f"opening the store {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
        with locked_file(self.root / "lock"):
            yield

    # -- who needs what ---------------------------------------------------------------------------------------------

    def _free(self, digests: frozenset[str]) -> int:
        """Delete those of the blobs that no manifest needs. Held: the lock."""
        freed = 0
        needed = self._needed() if digests else None
        for digest in digests if needed is not None else ():
            if digest in (needed or ()):
                continue
            path = self.blob(digest)
            with writing("blobs that nobody needs were removed"):
                if path.exists():
                    freed += path.stat().st_size
                    path.unlink()
            shutil.rmtree(self.root / "split" / digest, ignore_errors=True)
        return freed

    def _needed(self) -> frozenset[str] | None:
        """Digests of all manifests; None where one cannot be read, which may need anything."""
        needed: set[str] = set()
        for path in self._manifests():
            try:
                needed |= {blob.digest for blob in _blobs(read_manifest(path, self.root))}
            except ManifestError as error:
                logger.warning("no blobs are freed, because it is not known who needs them: %s", error)
                return None
        return frozenset(needed)

    def _manifests(self) -> Iterator[Path]:
        for at, folders, files in os.walk(self.root / "manifests"):
            folders.sort()
            yield from (Path(at) / file for file in sorted(files))

    def _digests(self, path: Path) -> frozenset[str]:
        try:
            return frozenset(blob.digest for blob in _blobs(read_manifest(path, self.root)))
        except ManifestError:
            return frozenset()

    def _cased(self, name: Name) -> Path:
        """Where a name's manifest lies, or is to lie: folders that differ from it in case alone are the same."""
        folder = self.root / "manifests"
        for part in name.path.parts:
            if not (folder / part).exists():
                try:
                    found = sorted(os.listdir(folder))
                except OSError:
                    found = []
                part = next((other for other in found if lower(other) == lower(part)), part)  # noqa: PLW2901
            folder /= part
        return folder

    # -- models in several files --------------------------------------------------------------------------------------

    def _link_parts(self, digests: Sequence[str]) -> None:
        folder = self.root / "split" / digests[0]
        shutil.rmtree(folder, ignore_errors=True)
        link_parts(folder, [self.blob(digest) for digest in digests])


def link_parts(folder: Path, files: Sequence[Path]) -> Path:
    """Files under the names by which llama.cpp finds the parts of a model; the first one."""
    from ..library.ollama_store import part_name

    folder.mkdir(parents=True)
    for at, file in enumerate(files):
        link = folder / part_name(at, len(files))
        try:
            os.link(file, link)
        except OSError:  # a file system without hard links
            link.symlink_to(os.path.relpath(file, folder))
    return folder / part_name(0, len(files))


def refuse_demo(name: Name) -> None:
    """StoreError for the name of the model that comes with the package."""
    if key(name.short) == _DEMO:
        raise StoreError("'demo' is the model that comes with the package: give yours another name")


def _blobs(manifest: Manifest) -> list[Blob]:
    return [*([manifest.config] if manifest.config else []), *manifest.layers]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename lasts only when its folder was written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
