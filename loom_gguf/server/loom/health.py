"""/health and /metrics: what an operator asks."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...devices import DEVICES, DeviceMemory
from ..http import Json
from ..metrics import CONTENT_TYPE
from ..services import services
from .loading import gpu_name
from .models import entries_by_path, name_of

_GB = 2**30


async def health(request: Request) -> Response:
    """GET /health."""
    found = services(request)
    loaded = found.manager.loaded()
    entries = await entries_by_path(found)
    gpus = await asyncio.to_thread(DEVICES.gpus)
    layers = found.settings.default_layers
    return Json(
        {
            "status": "healthy",
            "model_loaded": name_of(loaded[0].path, entries.get(loaded[0].path)) if loaded else None,
            "gpu_info": _gpu_info(gpus, found.settings.device),
            "config": {
                "max_loaded_models": found.settings.max_models,
                "default_layers": "all" if layers is None else list(layers),
            },
        }
    )


def _gpu_info(gpus: list[DeviceMemory], device: str) -> dict[str, Any]:
    default = device if gpus else "cpu"
    return {
        "has_gpu": bool(gpus),
        "default_device": gpu_name(gpus[0]) if gpus and device == "auto" else default,
        "allowed_devices": list(range(len(gpus))),
        "memory_fraction": 1.0,  # llama.cpp takes what a model needs
        "gpus": [
            {
                "index": index,
                "name": gpu.description,
                "total_memory_gb": round(gpu.total / _GB, 2),
                "free_memory_gb": round(gpu.free / _GB, 2),
                "used_memory_gb": round((gpu.total - gpu.free) / _GB, 2),
            }
            for index, gpu in enumerate(gpus)
        ],
    }


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    found = services(request)
    for gpu in await asyncio.to_thread(DEVICES.gpus):
        found.metrics.gpu(gpu_name(gpu), gpu.total - gpu.free, gpu.total)
    return Response(found.metrics.text(found.manager), headers={"Content-Type": CONTENT_TYPE})
