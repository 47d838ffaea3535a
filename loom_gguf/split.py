"""Models in several files, as llama.cpp's gguf-split cuts them: NAME-00001-of-00003.gguf and so on.

llama.cpp finds the other parts by the first one's name. Each part's header has `split.no`, `split.count` and
`split.tensors.count`; only the first has the model's metadata.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import MissingPartError

PART = re.compile(r"-(\d{5})-of-(\d{5})$")  # of a file's name without .gguf
_SUFFIX = ".gguf"
_SHOWN = 5  # of the missing parts


@dataclass(frozen=True)
class Files:
    """The files of one model."""

    path: Path  # the file, or the first part, which may be missing
    parts: tuple[Path, ...]  # in order, those that are there
    missing: tuple[int, ...]  # numbers of parts from 1; not more than a few
    n_parts: int

    @property
    def stem(self) -> str:
        """The file's name without .gguf, and without the part's number."""
        return PART.sub("", without_suffix(self.path.name))

    def check(self) -> None:
        """MissingPartError where a part is not there."""
        if self.missing:
            numbers = ", ".join(map(str, self.missing)) + ("..." if len(self.missing) == _SHOWN else "")
            raise MissingPartError(
                f"{self.path} is one of {self.n_parts:,} parts, of which these are missing: {numbers}. Put all of "
                f"them into one folder"
            )


def without_suffix(file: str) -> str:
    """A file's name without ".gguf"."""
    return file[: -len(_SUFFIX)] if file.lower().endswith(_SUFFIX) else file


def models_of(paths: Iterable[Path]) -> list[Files]:
    """Files to models: parts of one model belong together."""
    single: list[Files] = []
    split: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for path in paths:
        stem = without_suffix(path.name)
        part = PART.search(stem)
        if part is None or not 1 <= int(part[1]) <= int(part[2]):
            single.append(Files(path, (path,), (), 1))
        else:
            split.setdefault((path.parent, stem[: part.start()], part[2]), {})[int(part[1])] = path
    for (folder, stem, count), parts in split.items():
        n_parts = int(count)
        missing: list[int] = []
        for number in range(1, n_parts + 1):
            if number not in parts:
                missing.append(number)
                if len(missing) == _SHOWN:
                    break
        first = parts.get(1, folder / f"{stem}-00001-of-{count}{_SUFFIX}")
        there = tuple(parts[number] for number in sorted(parts))
        single.append(Files(first, there, tuple(missing), n_parts))
    return sorted(single, key=lambda files: str(files.path))


def files_of(path: Path) -> Files:
    """All files of the model that the file `path` is, or is a part of."""
    part = PART.search(without_suffix(path.name))
    if part is None:
        return Files(path, (path,), (), 1)
    try:
        with os.scandir(path.parent) as found:
            names = [item.name for item in found]
    except OSError:
        names = [path.name]
    stem = without_suffix(path.name)[: part.start()]
    others = [
        path.parent / name
        for name in names
        if name.startswith(stem) and (m := PART.search(without_suffix(name))) and m[2] == part[2]
    ]
    same = [files for files in models_of([*others, path]) if path in files.parts]
    return same[0] if same else Files(path, (path,), (), 1)
