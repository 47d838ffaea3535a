"""/api/pull, /api/create, /api/copy and /api/delete: changes of our own store, and of nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...library import Library, parse_name
from ...pull import OwnStore, Progress, pull_name
from ...pull.creating import Changes, check_changes, create
from ...pull.managing import copy as copy_model
from ...pull.managing import own_store
from ...pull.managing import remove as remove_model
from ...pull.own_store import refuse_demo
from ...pull.shared import following
from ..errors import RequestError
from ..http import Json, gone, ndjson, read, unless_gone
from ..services import services
from .options import parse_options
from .schemas import CopyBody, CreateBody, DeleteBody, PullBody

JsonLine = dict[str, Any]

_ELSEWHERE = {
    "files": "making a model of files is not supported: put the GGUF file into the folder of models, or name one with "
    "`from`",
    "adapters": "LoRA adapters are not supported: merge them into the model with llama.cpp's llama-export-lora",
    "quantize": "quantizing while a model is created is not supported: use `loom-gguf quantize IN OUT TYPE`",
}


async def pull(request: Request) -> Response:
    """POST /api/pull."""
    library = _with_store(request, "pulling")
    body = await read(request, PullBody)
    pull_name(body.model)
    if body.username or body.password:
        raise RequestError(400, "user names and passwords are not supported: only public models are pulled")
    found = services(request).pulls.follow(body.model, own_store(library), insecure=bool(body.insecure))
    return await _answer(request, _lines(found), stream=body.stream is not False)


async def create_model(request: Request) -> Response:
    """POST /api/create."""
    library = _with_store(request, "creating")
    body = await read(request, CreateBody)
    for field, text in _ELSEWHERE.items():
        if getattr(body, field):
            raise RequestError(501, text)
    if body.modelfile:
        raise RequestError(400, "modelfile is not understood: send its parts as from, system, parameters and so on")
    if not body.from_:
        raise RequestError(400, "from is required: the name of the model that this one is made of")
    refuse_demo(parse_name(body.model))
    parse_options(body.parameters)
    licenses = [body.license] if isinstance(body.license, str) else body.license
    messages = None if body.messages is None else [_message(message) for message in body.messages]
    changes = Changes(body.system, body.template, body.parameters, messages, licenses)
    check_changes(changes)
    base, _, extras = await services(request).find(body.from_)
    store: OwnStore = own_store(library)
    lines = following(lambda watcher: create(store, body.model, base, extras, changes, watcher))
    return await _answer(request, _lines(lines), stream=body.stream is not False)


async def copy(request: Request) -> Response:
    """POST /api/copy."""
    library = _with_store(request, "copying")
    body = await read(request, CopyBody)
    await asyncio.to_thread(copy_model, library, body.source, body.destination)
    return Response()


async def delete(request: Request) -> Response:
    """DELETE /api/delete."""
    library = _with_store(request, "deleting")
    body = await read(request, DeleteBody)
    entry, _ = await asyncio.to_thread(remove_model, library, body.model)
    if entry.path is not None and not entry.path.exists():
        await services(request).manager.unload(entry.path)
    return Response()


def _with_store(request: Request, what: str) -> Library:
    library = services(request).models.library
    if library.settings.own is None:
        raise RequestError(400, f"{what} models is not supported: this server has no store of its own")
    return library


def _message(message: dict[str, Any]) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise RequestError(400, "messages: each has a role (system, user or assistant) and a content, a text")
    return {"role": role, "content": content}


async def _answer(request: Request, lines: AsyncGenerator[JsonLine, None], *, stream: bool) -> Response:
    if stream:
        return await ndjson(request, lines)
    last = await unless_gone(request, _last(lines))
    return gone() if last is None else Json(last)


async def _last(lines: AsyncGenerator[JsonLine, None]) -> JsonLine:
    last: JsonLine = {}
    async with aclosing(lines):
        async for line in lines:
            last = line
    return last


async def _lines(found: AsyncGenerator[Progress, None]) -> AsyncGenerator[JsonLine, None]:
    async with aclosing(found):
        async for progress in found:
            yield progress.line()
