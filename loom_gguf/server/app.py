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
from .errors import RequestError
from .guards import Guards
from .http import Json, error_response
from .interfaces import ManagerLike
from .models import Models
from .services import Services


def create_app(models: Models, manager: ManagerLike, settings: ServerSettings) -> FastAPI:
    """The application. It closes the manager when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await manager.close()

    # Bodies are read by the routes themselves, for Ollama's kind of errors, so FastAPI's own pages would say nothing.
    app = FastAPI(title="loom_gguf", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.services = Services(models, manager, settings)
    app.include_router(ollama.router())
    for kind in (LoomError, RequestError):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Guards, settings=settings)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    response = error_response(error)
    # Starlette raises it again, for which uvicorn closes the connection: without a word the client would use it again.
    response.headers["Connection"] = "close"
    return response


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path:.100}"
    text = f"{where}: {HTTPStatus(error.status_code).phrase.lower()}"
    return Json({"error": text}, error.status_code, headers=dict(error.headers or {}))
