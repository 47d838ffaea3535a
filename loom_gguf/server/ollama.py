"""Ollama's API as a table of routes."""

from __future__ import annotations

from fastapi import APIRouter

from . import embedding, generation, listing

_FILES = "this server offers the .gguf files that it was started with: put a file into its --models-dir instead"
_OPENAI = "this server does not speak OpenAI's API: use /api/generate, /api/chat and /api/embed"

_ELSEWHERE = (
    ("/api/pull", ["POST"], f"pulling models is not supported; {_FILES}"),
    ("/api/push", ["POST"], "pushing models is not supported"),
    ("/api/create", ["POST"], f"creating models is not supported; {_FILES}"),
    ("/api/copy", ["POST"], f"copying models is not supported; {_FILES}"),
    ("/api/delete", ["DELETE"], "deleting models is not supported: this server never changes files"),
    ("/api/blobs/{digest}", ["POST", "HEAD"], f"uploading models is not supported; {_FILES}"),
    ("/v1/{path:path}", ["GET", "POST"], _OPENAI),
)


def router() -> APIRouter:
    """All routes."""
    routes = APIRouter()
    for path, get in (("/", listing.root), ("/api/version", listing.version), ("/api/tags", listing.tags)):
        routes.add_api_route(path, get, methods=["GET", "HEAD"], response_model=None)
    routes.add_api_route("/api/ps", listing.ps, methods=["GET"], response_model=None)
    for path, post in (
        ("/api/generate", generation.generate),
        ("/api/chat", generation.chat),
        ("/api/embed", embedding.embed),
        ("/api/embeddings", embedding.embeddings),
        ("/api/show", listing.show),
    ):
        routes.add_api_route(path, post, methods=["POST"], response_model=None)
    for path, methods, what in _ELSEWHERE:
        routes.add_api_route(path, listing.refuse(what), methods=methods, response_model=None)
    return routes
