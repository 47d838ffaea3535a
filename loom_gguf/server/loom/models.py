"""/models: which are loaded, load one, let one go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...devices import DEVICES, DeviceMemory
from ...errors import ModelNotFoundError
from ...requests import LoadParams, ModelInfo
from ..errors import RequestError
from ..http import Json, gone, read, unless_gone
from ..models import Entry, file_of
from ..services import Services, services
from .loading import check_dtype, device_of, device_wishes, dtype_of, quantization_of
from .names import entry_of, pick
from .schemas import LoadBody, LoadedModelFacts


async def listed(request: Request) -> Response:
    """GET /models."""
    found = services(request)
    loaded = found.manager.loaded()
    entries = await entries_by_path(found)
    gpus = await asyncio.to_thread(DEVICES.gpus)
    models = []
    for model in loaded:
        idle = 0.0 if model.idle_since is None else (model.now - model.idle_since).total_seconds()
        left = None if model.expires_at is None else (model.expires_at - model.now).total_seconds()
        models.append(
            {
                **_facts(entries.get(model.path), model.params, model.info, gpus),
                "idle_seconds": round(max(idle, 0.0), 1),
                "auto_unload_in": None if left is None else round(max(left, 0.0), 1),
            }
        )
    return Json(
        {
            "loaded_models": models,
            "max_models": found.settings.max_models,
            "auto_unload_minutes": max(found.settings.keep_alive, 0) / 60,  # 0: never
        }
    )


async def entries_by_path(found: Services) -> dict[Path, Entry]:
    """All models by their files."""
    return {file_of(entry): entry for entry in await asyncio.to_thread(found.models.entries)}


def name_of(path: Path, entry: Entry | None) -> str:
    """A loaded model's name. None: its file was deleted."""
    return path.stem if entry is None else entry.name


def _facts(entry: Entry | None, params: LoadParams, info: ModelInfo, gpus: list[DeviceMemory]) -> LoadedModelFacts:
    return {
        "model_id": name_of(params.path, entry),
        "device": device_of(params, gpus),
        "dtype": dtype_of(info.quantization),
        "hidden_size": info.n_embd,
        "num_layers": info.n_layer,
        "loader_type": "file" if entry is None else entry.place,
        "quantization": quantization_of(info.quantization),
    }


async def load(request: Request) -> Response:
    """POST /models/load: the model then stays as long as the server lets any model stay."""
    body = await read(request, LoadBody)
    answer = await unless_gone(request, _loaded(services(request), body))
    return gone() if answer is None else Json(answer)


async def _loaded(found: Services, body: LoadBody) -> dict[str, Any]:
    entry = await asyncio.to_thread(pick, found.models, body.model, body.quantization)
    facts = await asyncio.to_thread(found.models.facts, file_of(entry))
    check_dtype(body.dtype, facts.quantization)
    gpus = await asyncio.to_thread(DEVICES.gpus)
    params = found.load_params(entry, facts, device_wishes(body.device, gpus))
    async with found.manager.use(params, found.settings.keep_alive) as runner:
        info = runner.info
    return {**_facts(entry, params, info, gpus), "load_time_seconds": info.load_seconds}


async def unload(request: Request) -> Response:
    """DELETE /models/{model_id}: at once, or as soon as the requests under way are done."""
    found = services(request)
    name = request.path_params["model_id"]
    try:
        entry = await asyncio.to_thread(entry_of, found.models, name)
    except ModelNotFoundError:
        raise _not_loaded(name) from None
    if not await found.manager.unload(file_of(entry)):
        raise _not_loaded(entry.name)
    return Json({"status": "unloaded", "model_id": entry.name})


def _not_loaded(name: str) -> RequestError:
    return RequestError(404, f"model not loaded: {name:.200}")
