"""The models that a server offers, and what their files say; asked of the library, which finds them.

A name is only ever looked up among the names that the library found; no path is made of it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import LoomError, ModelNotFoundError
from ..gguf_file import GGUFFile, read_gguf, read_model
from ..library import Entry, Extras, Library, LibrarySettings
from ..support import support
from .tokens import TokenTexts

__all__ = ["UNKNOWN_DIGEST", "Entry", "Facts", "Models", "rfc3339"]

logger = logging.getLogger(__name__)

UNKNOWN_DIGEST = "0" * 64

_HASHED_AT_ONCE = 256 * 2**20  # bytes; larger files are hashed in the background
_MAX_SAID = 1000  # problems that are remembered
_KEPT_ITEMS = 64  # of metadata's arrays; vocabularies would fill the memory


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

    def with_template(self, template: str) -> Facts:
        """As if the file carried this chat template."""
        return replace(self, metadata={**self.metadata, "tokenizer.chat_template": template})

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

    def __init__(
        self, folder: Path | None = None, files: Iterable[Path] = (), *, library: Library | None = None
    ) -> None:
        """`library`: where the models come from; else those of `folder` and `files`, and the demo."""
        self._library = library or Library(LibrarySettings(folder=folder), files)
        self._said: set[str] = set()  # in the log, once
        self._facts = _PerFile(_read_facts, 1000)
        self._tokens = _PerFile(lambda path: TokenTexts(read_gguf(path).metadata), 4)
        self._digests = _PerFile(_sha256, 1000)
        self._hashing: set[Path] = set()
        self._hashing_lock = threading.Lock()  # guards _hashing
        self._one_at_a_time = threading.Lock()  # held while a large file is hashed

    @property
    def library(self) -> Library:
        """Where the models come from."""
        return self._library

    def entries(self) -> list[Entry]:
        """All models that can be used, by name."""
        usable = []
        for entry in self._library.offered():
            if entry.problem is None:
                usable.append(entry)
            elif (said := str(entry.problem)) not in self._said:
                if len(self._said) < _MAX_SAID:
                    self._said.add(said)
                logger.warning("not offered: %.500s", said)
        return usable

    def find(self, name: str) -> Entry:
        """The model of this name, in whatever case; `x` and `x:latest` are the same. Else ModelNotFoundError."""
        return self._library.find(name)

    def extras(self, entry: Entry) -> Extras:
        """What a store's manifest adds to the file."""
        return self._library.extras(entry)

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


def file_of(entry: Entry) -> Path:
    """The entry's GGUF file."""
    if entry.path is None:
        raise ModelNotFoundError(f"model '{entry.name:.200}' has no file")
    return entry.path


def rfc3339(time: datetime) -> str:
    """A time with its zone, as Ollama writes it."""
    return time.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _read_facts(path: Path) -> Facts:
    file: GGUFFile = read_model(path)
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
