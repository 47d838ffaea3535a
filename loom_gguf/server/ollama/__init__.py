"""Ollama's API as a table of routes."""

from __future__ import annotations

from fastapi import APIRouter

from ..documented import add
from ..http import NDJSON
from . import embedding, generation, listing, managing
from .schemas import (
    ChatBody,
    CopyBody,
    CreateBody,
    DeleteBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    PullBody,
    ShowBody,
)

_ELSEWHERE = (
    ("/api/push", "POST", "pushing models is not supported: nothing leaves this machine"),
    (
        "/api/blobs/{digest}",
        "POST HEAD",
        "uploading files is not supported: put a GGUF file into the server's folder of models (--models-dir)",
    ),
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
    add(routes, "POST", "/api/pull", managing.pull, body=PullBody, answers=lines)
    add(routes, "POST", "/api/create", managing.create_model, body=CreateBody, answers=lines)
    add(routes, "POST", "/api/copy", managing.copy, body=CopyBody)
    add(routes, "DELETE", "/api/delete", managing.delete, body=DeleteBody)
    for path, methods, what in _ELSEWHERE:
        routes.add_api_route(
            path, listing.refuse(what), methods=methods.split(), response_model=None, include_in_schema=False
        )
    return routes
