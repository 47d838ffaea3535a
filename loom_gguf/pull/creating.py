"""A model of our own that is another one with a system prompt, parameters, a template or messages of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat import check_template
from ..errors import ChatTemplateError, StoreError
from ..gguf_file import read_model
from ..library import Entry, Extras, Name, parse_name
from ..library.manifest import JINJA
from .checks import check_whole
from .own_store import OwnStore, refuse_demo
from .progress import Progress, Watcher
from .space import check_space, writing
from .written import Layer, config_of, manifest_of, stage

_BLOCK = 2**20
# Files of these places are never written again once they are whole, so two stores may share one.
_LINKED = ("ollama", "huggingface")
_GO = re.compile(r"\{\{-?\s*(?:[.$]|(?:if|else|end|range|with|define|template|block|slice|len|and|or|not)\b)")


@dataclass(frozen=True)
class Changes:
    """What is to be different from the base; None: as it is there."""

    system: str | None = None
    template: str | None = None  # Jinja
    params: Mapping[str, Any] | None = None  # options; those that are not named stay
    messages: Sequence[Mapping[str, str]] | None = None
    licenses: Sequence[str] | None = None


def create(store: OwnStore, text: str, base: Entry, extras: Extras, changes: Changes, watcher: Watcher) -> Name:
    """Put a model into the store; its name there. Blocks.

    A base in the same store shares its file. Else the file is linked or copied, and its checksum computed.
    Raises what is wrong with the name, the base or the template, NoSpaceError or StoreError.
    """
    name = parse_name(text)
    refuse_demo(name)
    check_changes(changes)
    base.usable()
    staged: dict[str, Path] = {}
    with writing("a model was created"), tempfile.TemporaryDirectory(dir=store.partial) as folder:
        if base.place == "own":
            layers = [Layer(b.kind, b.digest, b.size) for b in store.read(parse_name(base.name)).of("model")]
            assert base.path is not None
            header = read_model(base.path)
        else:
            layers = [_bring(store, part, base, Path(folder), staged, watcher) for part in base.parts]
            paths = [staged.get(layer.digest) or store.blob(layer.digest) for layer in layers]
            header = check_whole(store, base.name, paths)
        for kind, data in _texts(extras, changes):
            digest, path = stage(Path(folder), data)
            staged[digest] = path
            layers.append(Layer(kind, digest, len(data)))
            watcher.report(Progress(f"creating new layer sha256:{digest}"))
        config = config_of(header, layers)
        digest, path = stage(Path(folder), config)
        staged[digest] = path
        watcher.report(Progress("writing manifest"))
        if store.commit(name, manifest_of(config, layers), staged):
            raise StoreError(f"{base.name} was removed while a model was made of it: pull it again")
    watcher.report(Progress("success"))
    return name


def check_changes(changes: Changes) -> None:
    """ChatTemplateError for a template that is none."""
    template = changes.template
    if not template:
        return
    if _GO.search(template) and "{%" not in template:
        raise ChatTemplateError(
            "the template is in Go's template language, as Ollama's are: this server renders Jinja templates, as GGUF "
            "files carry them. Leave it out to use the one that the file carries"
        )
    check_template(template)


def _texts(extras: Extras, changes: Changes) -> list[tuple[str, bytes]]:
    """Layers beside the weights: what changed, and what the base had."""
    params = {**extras.params, **(changes.params or {})}
    system = extras.system if changes.system is None else changes.system
    messages = extras.messages if changes.messages is None else changes.messages
    licenses = extras.licenses if changes.licenses is None else changes.licenses
    jinja = extras.jinja if changes.template is None else changes.template
    go = extras.template if changes.template is None else ""
    found = [("template", go), (JINJA, jinja), ("system", system)]
    made = [(kind, text.encode()) for kind, text in found if text]
    made += [("license", text.encode()) for text in licenses]
    if params:
        made.append(("params", json.dumps(params).encode()))
    if messages:
        made.append(("messages", json.dumps(list(messages)).encode()))
    return made


def _bring(
    store: OwnStore, source: Path, base: Entry, folder: Path, staged: dict[str, Path], watcher: Watcher
) -> Layer:
    """A file of another place into ours, with its checksum."""
    size = source.stat().st_size
    to = folder / f"copy-{len(staged)}"
    linked = base.place in _LINKED and _link(source, to)
    if not linked:
        check_space(store.root, size, f"a copy of {base.name}")
    digest = hashlib.sha256()
    done = 0
    with source.open("rb") as read, open(os.devnull if linked else to, "wb") as write:
        while block := read.read(_BLOCK):
            watcher.check()
            digest.update(block)
            write.write(block)
            done += len(block)
            watcher.report(Progress(f"{'reading' if linked else 'copying'} {base.name}", None, size, done))
        write.flush()
        if not linked:
            os.fsync(write.fileno())
    hexadecimal = digest.hexdigest()
    if not store.has(hexadecimal, done):
        staged[hexadecimal] = to
    return Layer("model", hexadecimal, done)


def _link(source: Path, to: Path) -> bool:
    try:
        os.link(os.path.realpath(source), to)
    except OSError:  # another file system, or somebody else's file
        return False
    return True
