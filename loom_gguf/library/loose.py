"""Models that lie as loose .gguf files in folders: their names, and what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from ..errors import LoomError, ModelNotFoundError
from ..split import Files, files_of, models_of
from .entry import Candidate, Entry, Place
from .files import gguf_files, reason
from .names import bare

_MAX_DEPTH = 6  # folders below the place's own
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")  # of a repository, where a name does not say
# The last piece of a file's name: "Q4_K_M", "IQ2_XXS", "UD-Q4_K_XL", "bf16", "MXFP4_MOE", "TQ1_0".
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD[-_])?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))$", re.I
)


def folder_candidates(folder: Path, place: Place, roots: Iterable[str]) -> Iterator[Candidate]:
    """The .gguf files in a folder and below it, named by their paths in it."""
    real = Path(os.path.realpath(folder))
    for files in models_of(gguf_files(real, roots, _MAX_DEPTH)):
        below = files.path.relative_to(real).parent
        name = bare((below / files.stem).as_posix())
        yield Candidate(name, place, partial(file_entry, name, files, place))


def repository_candidates(prefix: str, folder: Path, found: Iterable[Files], place: Place) -> Iterator[Candidate]:
    """The .gguf files of a repository: `prefix:QUANTIZATION`, and `prefix` for the one that people mostly take."""
    models = [files for files in found if not is_projector(files.stem)]
    by_tag: dict[str, Files] = {}
    for files in models:
        by_tag.setdefault(quantization(files.stem) or files.stem, files)
    tags = {files.path: tag for tag, files in by_tag.items()}
    usual = next((tag for tag in PREFERRED if tag in by_tag), next(iter(by_tag), None))
    for files in models:
        tag = tags.get(files.path)
        file = files.path.relative_to(folder).as_posix()
        name = f"{prefix}:{tag or file}"
        aliases = [
            f"{prefix}:{file}",
            f"{prefix}/{file}",
            f"{prefix}/{file[: -len('.gguf')]}",
            files.stem,
            files.path.name,
        ]
        if tag is not None and tag == usual:
            aliases.append(prefix)
        yield Candidate(name, place, partial(file_entry, name, files, place), tuple(aliases))


def path_entry(path: Path, place: Place = "file") -> Entry:
    """The model in a file that was named by its path. ModelNotFoundError where it is not there."""
    files = files_of(path)
    return file_entry(bare(files.stem), files, place)


def file_entry(name: str, files: Files, place: Place) -> Entry:
    """The model of these files."""
    problem: LoomError | None = None
    try:
        files.check()
        found = [part.stat() for part in files.parts]
    except LoomError as error:
        problem, found = error, []
    except OSError as error:
        raise ModelNotFoundError(f"{files.path} cannot be read: {reason(error)}") from None
    changed = max((stat.st_mtime for stat in found), default=0.0)
    return Entry(
        name=name,
        place=place,
        path=files.path,
        parts=files.parts,
        size=sum(stat.st_size for stat in found),
        modified=datetime.fromtimestamp(changed, timezone.utc),
        quantization=quantization(files.stem),
        problem=problem,
    )


_WHOLE = {"F32", "F16", "BF16"}  # not quantized


def agreed_quantization(said: str | None, header: str | None) -> str | None:
    """What a name or manifest says, which knows mixtures (Q4_K_M), unless the header contradicts it."""
    if said is None or header is None:
        return said or header
    return said if (said in _WHOLE) == (header in _WHOLE) else header


def quantization(stem: str) -> str | None:
    """What a file's name says of its quantization, in capitals: "Q4_K_M"."""
    found = _QUANTIZATION.search(stem)
    return found[1].upper().replace("FP16", "F16").replace("FP32", "F32") if found else None


def is_projector(stem: str) -> bool:
    """Whether a file is what llama.cpp calls an mmproj: an image encoder beside a model."""
    return re.search(r"(^|[-._])mmproj([-._]|$)", stem, re.I) is not None
