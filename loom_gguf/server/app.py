"""The application: routes, guards and errors put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import LoomError
from ..settings import ServerSettings
from . import ollama
from .errors import RequestError, dialect_of, told
from .guards import Guards
from .http import Json, error_response
from .interfaces import ManagerLike
from .metrics import Counting, Metrics
from .models import Models
from .services import Services


def create_app(
    models: Models, manager: ManagerLike, settings: ServerSettings, metrics: Metrics | None = None
) -> FastAPI:
    """The application. It closes the manager when it shuts down. `metrics`: where loads are counted already."""
    metrics = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await manager.close()

    # Bodies are read by the routes themselves, for Ollama's kind of errors, so FastAPI's own pages would say nothing.
    app = FastAPI(title="loom_gguf", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.services = Services(models, manager, settings, metrics)
    app.include_router(ollama.router())
    for kind in (LoomError, RequestError, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Guards, settings=settings)
    app.add_middleware(Counting, metrics=metrics)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    return error_response(error, request.url.path)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path:.100}"
    text = f"{where}: {HTTPStatus(error.status_code).phrase.lower()}"
    status, body = told(RequestError(error.status_code, text), dialect_of(request.url.path))
    return Json(body, status, headers=dict(error.headers or {}))
