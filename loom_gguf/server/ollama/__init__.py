"""Ollama's API as a table of routes."""

from __future__ import annotations

from fastapi import APIRouter

from ..documented import add
from ..http import NDJSON
from . import embedding, generation, listing
from .schemas import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, ShowBody

_FILES = "this server offers the .gguf files that it was started with: put a file into its --models-dir instead"

_ELSEWHERE = (
    ("/api/pull", "POST", f"pulling models is not supported; {_FILES}"),
    ("/api/push", "POST", "pushing models is not supported"),
    ("/api/create", "POST", f"creating models is not supported; {_FILES}"),
    ("/api/copy", "POST", f"copying models is not supported; {_FILES}"),
    ("/api/delete", "DELETE", "deleting models is not supported: this server never changes files"),
    ("/api/blobs/{digest}", "POST HEAD", f"uploading models is not supported; {_FILES}"),
)


def router() -> APIRouter:
    """All routes."""
    routes = APIRouter(tags=["Ollama"])
    add(routes, "GET HEAD", "/", listing.root, answers="text/plain")
    add(routes, "GET HEAD", "/api/version", listing.version)
    add(routes, "GET HEAD", "/api/tags", listing.tags)
    add(routes, "GET", "/api/ps", listing.ps)
    lines = f"{NDJSON} application/json"
    add(routes, "POST", "/api/generate", generation.generate, body=GenerateBody, answers=lines)
    add(routes, "POST", "/api/chat", generation.chat, body=ChatBody, answers=lines)
    add(routes, "POST", "/api/embed", embedding.embed, body=EmbedBody)
    add(routes, "POST", "/api/embeddings", embedding.embeddings, body=EmbeddingsBody)
    add(routes, "POST", "/api/show", listing.show, body=ShowBody)
    for path, methods, what in _ELSEWHERE:
        routes.add_api_route(
            path, listing.refuse(what), methods=methods.split(), response_model=None, include_in_schema=False
        )
    return routes
