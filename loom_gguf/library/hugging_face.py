"""The cache of huggingface_hub.

models--<org>--<repo>/refs/<revision> holds a commit; snapshots/<commit>/<file> are links to blobs/<etag>, which lie
in the same folder. Only what was downloaded is there, so files of one repository may lie in several snapshots.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ManifestError
from ..split import models_of
from .entry import Candidate
from .files import gguf_files, read_bounded
from .loose import repository_candidates
from .names import HUGGING_FACE

logger = logging.getLogger(__name__)

_PREFIX = "models--"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[A-Za-z0-9._-]{1,100}")
_MAX_REPOSITORIES = 10_000
_MAX_SNAPSHOTS = 100  # of a repository
_MAX_DEPTH = 3  # folders of a repository


def candidates(cache: Path, roots: Iterable[str]) -> Iterator[Candidate]:
    """The .gguf files of all repositories, as `hf.co/org/repo:QUANTIZATION`."""
    roots = tuple(roots)
    real = Path(os.path.realpath(cache))
    for folder in _folders(real)[:_MAX_REPOSITORIES]:
        parts = folder.name[len(_PREFIX) :].split("--")
        if not folder.name.startswith(_PREFIX) or len(parts) != 2 or not all(map(_REPOSITORY.fullmatch, parts)):
            continue
        name = "/".join(parts)
        seen: set[str] = set()
        for snapshot in _snapshots(folder):
            new = []
            for files in models_of(gguf_files(snapshot, roots, _MAX_DEPTH)):
                file = files.path.relative_to(snapshot).as_posix()
                if file not in seen:
                    seen.add(file)
                    new.append(files)
            yield from repository_candidates(f"{HUGGING_FACE}/{name}", snapshot, new, "huggingface")


def _snapshots(repository: Path) -> list[Path]:
    """The snapshot of `main`, then the others, the newest first."""
    main = ""
    try:
        main = read_bounded(repository / "refs" / "main", 1000).decode("ascii", "replace").strip()
    except ManifestError as error:
        logger.debug("no revision main: %s", error)
    found = [folder for folder in _folders(repository / "snapshots") if _COMMIT.fullmatch(folder.name)]
    found.sort(key=lambda folder: (folder.name != main, -_changed(folder), folder.name))
    return found[:_MAX_SNAPSHOTS]


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # just deleted
        return 0.0


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return sorted(folder / item.name for item in found if item.is_dir(follow_symlinks=False))
    except OSError:
        return []
