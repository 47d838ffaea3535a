"""All places together: which models there are, and which one a name means."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path

from ..errors import ModelNotFoundError
from ..split import files_of
from . import hugging_face, lm_studio, ollama_store
from .entry import Candidate, Entry, Extras, Place
from .files import real_roots, regular
from .loose import file_entry, folder_candidates, path_entry
from .manifest import read_extras
from .names import bare, keys
from .settings import LibrarySettings

logger = logging.getLogger(__name__)

DEMO = "demo"


def demo_path() -> Path:
    """The model that comes with the package."""
    return Path(str(resources.files("loom_gguf") / "data" / "demo.gguf"))


class Library:
    """The models on this machine. It holds nothing but settings: each answer is read from the disk anew."""

    def __init__(
        self, settings: LibrarySettings | None = None, files: Iterable[Path] = (), *, allow_paths: bool = False
    ) -> None:
        """Without `settings` there are only `files` and the demo.

        files: models that are offered under their files' names, before all others.
        allow_paths: whether find() also takes paths of .gguf files.
        """
        self.settings = settings or LibrarySettings()
        self.allow_paths = allow_paths
        self._files = tuple(files)
        self._roots = real_roots(self.settings.all)

    def entries(self) -> list[Entry]:
        """All models of all places, in the places' order; also those that cannot be used, with their problem."""
        return [candidate.entry() for candidate in self._candidates()]

    def offered(self) -> list[Entry]:
        """One model for each name, by name: the one that find() gives."""
        found: dict[str, Candidate] = {}
        taken: dict[str, Place] = {}
        for candidate in self._candidates():
            # Within one place names may differ in case alone; who writes them so finds each.
            if taken.setdefault(candidate.key, candidate.place) == candidate.place:
                found.setdefault(candidate.name, candidate)
        return [candidate.entry() for candidate in sorted(found.values(), key=lambda candidate: candidate.name)]

    def where(self, name: str) -> list[Entry]:
        """All models that a name may mean; the first is the one that find() gives."""
        return [candidate.entry() for candidate in self._of_name(name)]

    def find(self, name: str) -> Entry:
        """The model of this name, in whatever case; `x` and `x:latest` are the same.

        Raises ModelNotFoundError, or the entry's problem where it cannot be used.
        """
        candidate = next(self._of_name(name), None)
        if candidate is not None:
            return candidate.entry().usable()
        if looks_like_path(name):
            if not self.allow_paths:
                raise ModelNotFoundError(
                    f"model '{name:.100}' not found: files are opened by their paths only where that was allowed "
                    f"with --allow-paths"
                )
            return self._path(name).usable()
        raise ModelNotFoundError(f"model '{name:.200}' not found")

    def extras(self, entry: Entry) -> Extras:
        """System prompt, parameters and more that a manifest adds; ManifestError where they are damaged."""
        return read_extras(entry, self._roots)

    def _path(self, name: str) -> Entry:
        try:
            path = Path(os.path.abspath(Path(name).expanduser()))
        except RuntimeError:  # ~somebody who is not there
            path = Path(name)
        if not regular(path):
            raise ModelNotFoundError(f"model '{name:.200}' not found: there is no such file")
        return path_entry(path)

    def _of_name(self, name: str) -> Iterator[Candidate]:
        wanted = keys(name)
        if not wanted:
            return
        for place in self._by_place():
            same = [candidate for candidate in place if candidate.keys & wanted]
            # File systems tell cases apart, so both may be there.
            yield from sorted(same, key=lambda candidate: candidate.name != bare(name))

    def _candidates(self) -> Iterator[Candidate]:
        for place in self._by_place():
            yield from place

    def _by_place(self) -> Iterator[Iterable[Candidate]]:
        """In the order of the package's docstring; each place is looked into when it is its turn."""
        settings, roots = self.settings, self._roots
        yield self._of_files()
        yield (Candidate(DEMO, "demo", partial(file_entry, DEMO, files_of(demo_path()), "demo")),)
        if settings.own is not None:
            yield ollama_store.candidates(settings.own, "own", roots)
        if settings.folder is not None:
            yield folder_candidates(settings.folder, "folder", roots)
        for store in settings.ollama:
            yield ollama_store.candidates(store, "ollama", roots)
        if settings.hugging_face is not None:
            yield hugging_face.candidates(settings.hugging_face, roots)
        for folder in settings.lm_studio:
            yield lm_studio.candidates(folder, roots)

    def _of_files(self) -> Sequence[Candidate]:
        found = []
        for path in self._files:
            files = files_of(path)
            name = bare(files.stem)
            found.append(Candidate(name, "file", partial(file_entry, name, files, "file"), (path.name,)))
        return found


def looks_like_path(text: str) -> bool:
    """Whether somebody who writes this means a file."""
    return text.startswith(("/", "./", "../", "~")) or text.lower().endswith(".gguf") or "\\" in text
