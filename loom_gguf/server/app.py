"""The application: routes, guards and errors put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .. import __version__
from ..errors import LoomError
from . import loom, ollama, openai
from .documented import document
from .errors import RequestError, dialect_of, told
from .guards import Guards
from .http import Json, error_response, gone
from .metrics import Counting
from .services import Services


def create_app(services: Services) -> FastAPI:
    """The application. It closes the manager when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        services.pulls.close()
        await services.manager.close()

    app = FastAPI(
        title="loom_gguf",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # made by documented.py
        redirect_slashes=False,
    )
    app.state.services = services
    for api in (ollama, openai, loom):
        app.include_router(api.router())
    app.add_api_route("/openapi.json", _openapi, methods=["GET"], include_in_schema=False, response_model=None)
    for kind in (LoomError, RequestError):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_middleware(Guards, settings=services.settings)
    app.add_middleware(Counting, metrics=services.metrics)
    return app


async def _openapi(request: Request) -> Response:
    """GET /openapi.json: all routes, for programs that make clients of it."""
    return Json(document(request.app))


async def _on_error(request: Request, error: Exception) -> Response:
    return error_response(error, request.url.path)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    response = error_response(error, request.url.path)
    # Starlette raises it again, for which uvicorn closes the connection: without a word the client would use it again.
    response.headers["Connection"] = "close"
    return response


async def _on_gone(_: Request, __: Exception) -> Response:
    """For a client that went while it sent its request: no fault of anybody's."""
    return gone()


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path:.100}"
    text = f"{where}: {HTTPStatus(error.status_code).phrase.lower()}"
    status, body = told(RequestError(error.status_code, text), dialect_of(request.url.path))
    return Json(body, status, headers=dict(error.headers or {}))
