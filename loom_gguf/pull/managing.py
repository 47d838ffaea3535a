"""Names in our own store: a second one for a model, none any more. No other place is ever changed."""

from __future__ import annotations

from ..errors import ModelNotFoundError, NotOwnModelError, StoreError
from ..library import Entry, Library, Name, parse_name
from .own_store import OwnStore, refuse_demo

_OWNERS = {
    "file": "a file that was named by its path",
    "demo": "the model that comes with the package",
    "folder": "a file in the folder of models",
    "ollama": "Ollama's: remove it with `ollama rm`",
    "huggingface": "in the cache of Hugging Face's programs: remove it with `hf cache delete`",
    "lmstudio": "LM Studio's: remove it there",
}


def own_store(library: Library) -> OwnStore:
    """The store that a library's own models lie in. StoreError where it has none."""
    if library.settings.own is None:
        raise StoreError("there is no store of our own here")
    return OwnStore(library.settings.own)


def copy(library: Library, source: str, target: str) -> Name:
    """Give a model of our own store a second name, which takes no space."""
    name = parse_name(target)
    refuse_demo(name)
    entry = own_entry(library, source)
    own_store(library).copy(parse_name(entry.name), name)
    return name


def remove(library: Library, text: str) -> tuple[Entry, int]:
    """Remove a name from our own store, and what only it needed: the model that it was, and the bytes that are free."""
    entry = own_entry(library, text)
    return entry, own_store(library).remove(parse_name(entry.name))


def own_entry(library: Library, text: str) -> Entry:
    """The model of our own store that a name means; it may be damaged.

    ModelNotFoundError where there is none, NotOwnModelError where it is another place's.
    """
    found = library.where(text)
    own = next((entry for entry in found if entry.place == "own"), None)
    if own is not None:
        return own
    if found:
        where = f" ({found[0].path})" if found[0].path else ""
        raise NotOwnModelError(
            f"{text:.200} is {_OWNERS[found[0].place]}{where}. Only models of our own store are changed, those that "
            f"`loom-gguf list` shows with the place own"
        )
    raise ModelNotFoundError(f"model '{text:.200}' not found")
