"""OpenAI's API as a table of routes."""

from __future__ import annotations

from fastapi import APIRouter

from ..documented import add
from . import chat, completions, embeddings, models
from .answers import SSE
from .schemas import ChatCompletionBody, CompletionBody, EmbeddingInputBody


def router() -> APIRouter:
    """All routes."""
    routes = APIRouter(tags=["OpenAI"])
    either = f"application/json {SSE}"
    add(routes, "POST", "/v1/chat/completions", chat.chat, body=ChatCompletionBody, answers=either)
    add(routes, "POST", "/v1/completions", completions.completions, body=CompletionBody, answers=either)
    add(routes, "POST", "/v1/embeddings", embeddings.embeddings, body=EmbeddingInputBody)
    add(routes, "GET", "/v1/models", models.listed)
    add(routes, "GET", "/v1/models/{model:path}", models.one)
    return routes
