"""Names to model files: what is in the models' folder, what the command line names, and `demo`.

A name is only ever looked up among the names found in the folder; no path is made of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import LoomError, ModelNotFoundError
from ..gguf_file import GGUFFile, read_gguf
from ..library import DEMO, demo_path
from ..support import support
from .tokens import TokenTexts

logger = logging.getLogger(__name__)

LATEST = ":latest"
UNKNOWN_DIGEST = "0" * 64

_MAX_FILES = 10_000
_MAX_DEPTH = 6  # folders below the models' folder
_HASHED_AT_ONCE = 256 * 2**20  # bytes; larger files are hashed in the background
_KEPT_ITEMS = 64  # of metadata's arrays; vocabularies would fill the memory
_PART = re.compile(r"-(\d{5})-of-\d{5}$")


@dataclass(frozen=True)
class Entry:
    """A model that is offered."""

    name: str  # without ":latest"
    path: Path

    @property
    def tag(self) -> str:
        """The name as lists show it."""
        return self.name if ":" in self.name else self.name + LATEST


@dataclass(frozen=True)
class Facts:
    """What a file's header says, without its long arrays."""

    arch: str
    n_params: int
    quantization: str
    metadata: Mapping[str, Any]  # long arrays are None
    hidden_level: str  # see support()
    hidden_sentence: str

    def hparam(self, name: str) -> Any:
        """The metadata value `<arch>.<name>`."""
        return self.metadata.get(f"{self.arch}.{name}")

    @property
    def n_ctx_train(self) -> int | None:
        """The model's own length in tokens, where the file tells it."""
        n = self.hparam("context_length")
        return n if isinstance(n, int) and n > 0 else None

    @property
    def template(self) -> str:
        """The chat template; empty where there is none."""
        text = self.metadata.get("tokenizer.chat_template")
        return text if isinstance(text, str) else ""

    @property
    def can_think(self) -> bool:
        """Whether the template knows of thoughts."""
        return "enable_thinking" in self.template or "<think>" in self.template


class _PerFile:
    """Something that is computed once for a file as it is now: by path, time of change and size."""

    def __init__(self, compute: Callable[[Path], Any], size: int) -> None:
        self._compute = compute
        self._size = size
        self._known: dict[tuple[Path, int, int], Any] = {}
        self._lock = threading.Lock()  # guards _known

    def key(self, path: Path) -> tuple[Path, int, int]:
        try:
            stat = path.stat()
        except OSError:
            raise ModelNotFoundError(f"the file of this model is gone: {path.name}") from None
        return path, stat.st_mtime_ns, stat.st_size

    def known(self, path: Path) -> Any:
        with self._lock:
            return self._known.get(self.key(path))

    def get(self, path: Path) -> Any:
        key = self.key(path)
        with self._lock:
            if key in self._known:
                return self._known[key]
        value = self._compute(path)
        with self._lock:
            while len(self._known) >= self._size:
                del self._known[next(iter(self._known))]
            self._known[key] = value
        return value


class Models:
    """The models that a server offers. Its methods read files: call them in a thread."""

    def __init__(self, folder: Path | None = None, files: Iterable[Path] = ()) -> None:
        """`folder`: whose .gguf files are offered. `files`: others, under their own names."""
        self._folder = folder
        self._files = list(files)
        self._facts = _PerFile(_read_facts, 1000)
        self._tokens = _PerFile(lambda path: TokenTexts(read_gguf(path).metadata), 4)
        self._digests = _PerFile(_sha256, 1000)
        self._hashing: set[Path] = set()
        self._hashing_lock = threading.Lock()  # guards _hashing
        self._one_at_a_time = threading.Lock()  # held while a large file is hashed

    def entries(self) -> list[Entry]:
        """All models, by name."""
        found: dict[str, Entry] = {}
        # Who comes first keeps a name: what the command line names, the demo, then the folder.
        for path in self._files:
            found.setdefault(_name_of(path.name), Entry(_name_of(path.name), path))
        found.setdefault(DEMO, Entry(DEMO, demo_path()))
        if self._folder is not None:
            for name, path in _scan(self._folder):
                found.setdefault(name, Entry(name, path))
        return [found[name] for name in sorted(found)]

    def name(self, path: Path) -> str:
        """The name of a file that was given to the constructor."""
        return _name_of(path.name)

    def find(self, name: str) -> Entry:
        """The model of this name, in whatever case; `x` and `x:latest` are the same. Else ModelNotFoundError."""
        wanted = _bare(name)
        entries = self.entries()
        same = [entry for entry in entries if entry.name == wanted]
        for entry in same or [entry for entry in entries if entry.name.lower() == wanted.lower()]:
            return entry
        raise ModelNotFoundError(f"model '{name:.200}' not found")

    def facts(self, path: Path) -> Facts:
        """What the file's header says."""
        facts: Facts = self._facts.get(path)
        return facts

    def tokens(self, path: Path) -> TokenTexts:
        """Texts of the model's tokens."""
        tokens: TokenTexts = self._tokens.get(path)
        return tokens

    def digest(self, path: Path) -> str:
        """The file's sha256; of a large file all zeros until it is known."""
        known: str | None = self._digests.known(path)
        if known is not None:
            return known
        if path.stat().st_size <= _HASHED_AT_ONCE:
            digest: str = self._digests.get(path)
            return digest
        with self._hashing_lock:
            if path not in self._hashing:
                self._hashing.add(path)
                threading.Thread(target=self._hash, args=(path,), name="loom-digest", daemon=True).start()
        return UNKNOWN_DIGEST

    def _hash(self, path: Path) -> None:
        try:
            with self._one_at_a_time:
                self._digests.get(path)
        except (OSError, LoomError) as error:
            logger.warning("cannot read %s: %s", path, error)
        finally:
            with self._hashing_lock:
                self._hashing.discard(path)


def modified(path: Path) -> str:
    """When the file was changed, as RFC 3339 in UTC."""
    return rfc3339(datetime.fromtimestamp(path.stat().st_mtime, timezone.utc))


def rfc3339(time: datetime) -> str:
    """A time with its zone, as Ollama writes it."""
    return time.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _bare(name: str) -> str:
    return name[: -len(LATEST)] if name.lower().endswith(LATEST) else name


def _name_of(file: str) -> str:
    """A file's name without .gguf, and of the first part of a split model without the part's number."""
    stem = file[: -len(".gguf")] if file.lower().endswith(".gguf") else file
    return _bare(_PART.sub("", stem))


def _scan(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of a folder and those below it. Links that lead out of it are left out."""
    root = folder.resolve()
    n = 0
    for at, folders, files in os.walk(root):
        below = Path(at).relative_to(root)
        folders[:] = (
            sorted(name for name in folders if not name.startswith(".")) if len(below.parts) < _MAX_DEPTH else []
        )
        for file in sorted(files):
            path = Path(at) / file
            part = _PART.search(file[: -len(".gguf")])
            if not file.lower().endswith(".gguf") or file.startswith(".") or (part and int(part[1]) != 1):
                continue
            if not path.is_file() or (path.is_symlink() and not path.resolve().is_relative_to(root)):
                continue
            n += 1
            if n > _MAX_FILES:
                logger.warning("%s has more than %s models: the rest is not offered", folder, f"{_MAX_FILES:,}")
                return
            yield (below / _name_of(file)).as_posix(), path


def _read_facts(path: Path) -> Facts:
    file: GGUFFile = read_gguf(path)
    level, sentence = support(file)
    metadata = {key: None if _is_long(value) else value for key, value in file.metadata.items()}
    return Facts(file.arch, file.n_params, file.quantization, metadata, level, sentence)


def _is_long(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str) and len(value) > _KEPT_ITEMS


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
