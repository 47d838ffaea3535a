"""What there is: the server itself, its models, and those that are loaded. And what is not there, in words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ...cli.output import count_text
from ...errors import LoomError
from ...gguf_file import read_model
from ...library.loose import path_entry
from ..errors import RequestError
from ..http import Json, read
from ..models import UNKNOWN_DIGEST, Entry, Facts, Models, file_of, rfc3339
from ..services import services
from .modelfile import modelfile, parameters
from .schemas import ShowBody

logger = logging.getLogger(__name__)

OLLAMA_VERSION = "0.12.0"  # of the API that is followed; clients compare it
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)  # clients want a time, also of what stays
_SUFFIXES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


async def root(request: Request) -> Response:
    """GET /: that somebody is here."""
    return PlainTextResponse("loom_gguf is running (Ollama's API)")


async def version(request: Request) -> Response:
    """GET /api/version."""
    from ... import __version__

    return Json({"version": OLLAMA_VERSION, "loom_gguf": __version__})


async def tags(request: Request) -> Response:
    """GET /api/tags."""
    models = services(request).models
    return Json({"models": await asyncio.to_thread(_tags, models)})


def _tags(models: Models) -> list[dict[str, Any]]:
    return _listed(models, [(entry, {}) for entry in models.entries()])


async def ps(request: Request) -> Response:
    """GET /api/ps."""
    found = services(request)
    loaded = [(model, found.remembered(model.path)) for model in found.manager.loaded()]

    def describe() -> list[dict[str, Any]]:
        entries: dict[Path | None, Entry] = {}
        for entry in found.models.entries():
            entries.setdefault(entry.path, entry)
        listed = []
        for model, before in loaded:
            more = {
                "expires_at": rfc3339(model.expires_at or _NEVER),
                "size_vram": 0,  # what llama.cpp put on a GPU is not known here
                "context_length": model.info.n_ctx,
            }
            if model.path not in entries and before is not None and not model.path.exists():
                # It was deleted, which changes nothing for who has it loaded.
                listed.append(_told(*before, before[0].digest or UNKNOWN_DIGEST) | more)
            else:
                listed += _listed(found.models, [(entries.get(model.path) or path_entry(model.path), more)])
        return listed

    return Json({"models": await asyncio.to_thread(describe)})


def _listed(models: Models, entries: list[tuple[Entry, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Those whose files can be read."""
    listed = []
    for entry, more in entries:
        try:
            listed.append(_described(entry, models) | more)
        except (LoomError, OSError) as error:
            logger.warning("not listed: %s", error)
    return listed


def _described(entry: Entry, models: Models) -> dict[str, Any]:
    path = file_of(entry)
    return _told(entry, models.facts(path), entry.digest or models.digest(path))


def _told(entry: Entry, facts: Facts, digest: str) -> dict[str, Any]:
    return {
        "name": entry.tag,
        "model": entry.tag,
        "modified_at": rfc3339(entry.modified),
        "size": entry.size,
        "digest": digest,
        "details": _details(entry, facts),
        "place": entry.place,
        "hidden_states": {"level": facts.hidden_level, "how": facts.hidden_sentence},
    }


def _details(entry: Entry, facts: Facts) -> dict[str, Any]:
    """What a manifest says; where it says nothing, what the file's header does."""
    said = entry.details
    families = said.get("model_families")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": _text(said.get("model_family")) or facts.arch,
        "families": families if _texts(families) else [_text(said.get("model_family")) or facts.arch],
        "parameter_size": _text(said.get("model_type")) or _parameters(facts.n_params),
        "quantization_level": (entry.quantization if said else None) or facts.quantization,
    }


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _parameters(n: int) -> str:
    """ "8.0B", as Ollama shows it."""
    return next((f"{n / unit:.1f}{suffix}" for unit, suffix in _SUFFIXES if n >= unit), str(n))


async def show(request: Request) -> Response:
    """POST /api/show."""
    body = await read(request, ShowBody)
    entry, facts, extras = await services(request).find(body.model)
    path = file_of(entry)
    answer = {
        "license": "\n".join(extras.licenses) or _text(facts.metadata.get("general.license")),
        "modelfile": f"# {path.name}, {count_text(facts.n_params)} parameters\n{modelfile(entry.tag, extras)}",
        "parameters": parameters(extras.params),
        "template": facts.template or extras.template,
        "system": extras.system,
        "details": _details(entry, facts),
        "messages": [{"role": message["role"], "content": message["content"]} for message in extras.messages],
        "model_info": {key: _plain(value) for key, value in facts.metadata.items()}
        | {"general.parameter_count": facts.n_params},
        "capabilities": _capabilities(facts),
        "modified_at": rfc3339(entry.modified),
        "place": entry.place,
        "hidden_states": {"level": facts.hidden_level, "how": facts.hidden_sentence},
    }
    if body.verbose:
        answer |= await asyncio.to_thread(_verbose, path)
    return Json(answer)


def _verbose(path: Path) -> dict[str, Any]:
    file = read_model(path)
    return {
        "model_info": {key: _plain(value) for key, value in file.metadata.items()}
        | {"general.parameter_count": file.n_params},
        "tensors": [
            {"name": tensor.name, "type": tensor.type.upper(), "shape": list(reversed(tensor.shape))}  # ggml's order
            for tensor in file.tensors
        ],
    }


def _capabilities(facts: Facts) -> list[str]:
    if facts.hidden_level == "prompt":
        return ["embedding"]
    tools = "tools" in facts.template or "tokenizer.chat_template.tool_use" in facts.metadata
    return ["completion", *(["tools"] if tools else []), *(["thinking"] if facts.can_think else [])]


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def refuse(what: str) -> Callable[[Request], Awaitable[Response]]:
    """A route of Ollama's that is not here, with a word on what to do instead."""

    async def refused(request: Request) -> Response:
        raise RequestError(501, what)

    return refused
