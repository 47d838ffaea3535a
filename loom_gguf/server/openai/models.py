"""/v1/models."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...errors import LoomError
from ..http import Json
from ..models import Entry, Models, file_of
from ..services import services

logger = logging.getLogger(__name__)


async def listed(request: Request) -> Response:
    """GET /v1/models."""
    models = services(request).models
    return Json({"object": "list", "data": await asyncio.to_thread(_all, models)})


async def one(request: Request) -> Response:
    """GET /v1/models/{model}."""
    found = services(request)
    return Json(await asyncio.to_thread(_one, found.models, request.path_params["model"]))


def _all(models: Models) -> list[dict[str, Any]]:
    """Those whose files can be read, as /api/tags has it."""
    return [_described(entry) for entry in models.entries() if _readable(models, entry)]


def _readable(models: Models, entry: Entry) -> bool:
    try:
        models.facts(file_of(entry))
    except (LoomError, OSError) as error:
        logger.warning("not listed: %s", error)
        return False
    return True


def _one(models: Models, name: str) -> dict[str, Any]:
    return _described(models.find(name))


def _described(entry: Entry) -> dict[str, Any]:
    created = int(entry.modified.timestamp())
    return {"id": entry.tag, "object": "model", "created": created, "owned_by": "loom_gguf"}
