"""/loaders: where models can come from, and what becomes of one without loading it."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...errors import ModelLoadError
from ..http import Json
from ..models import file_of
from ..services import services
from .names import entry_of
from .places import PLACES


async def listed(request: Request) -> Response:
    """GET /loaders."""
    return Json(
        {
            "loaders": {place: {"name": place, "type": what} for place, what in PLACES.items()},
            "fallback_order": list(PLACES),
        }
    )


async def probe(request: Request) -> Response:
    """GET /loaders/probe/{model_id}: told from the file's header."""
    found = services(request)
    entry = await asyncio.to_thread(entry_of, found.models, request.path_params["model_id"])
    place = entry.place
    can_load = dict.fromkeys(PLACES, False)
    answer: dict[str, Any] = {"model_id": entry.name, "configured_loader": None, "detected_loader": place}
    try:
        facts = await asyncio.to_thread(found.models.facts, file_of(entry))
    except ModelLoadError as error:
        return Json(answer | {"can_load": can_load, "selected_loader": None, "problem": str(error)})
    can_load[place] = facts.hidden_level != "refused"
    answer |= {"can_load": can_load, "selected_loader": place if can_load[place] else None}
    # Beyond The Loom: what the header tells.
    answer |= {
        "architecture": facts.arch,
        "quantization": facts.quantization,
        "parameters": facts.n_params,
        "context_length": facts.n_ctx_train,
        "hidden_states": {"level": facts.hidden_level, "how": facts.hidden_sentence},
    }
    return Json(answer)
