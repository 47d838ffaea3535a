"""The Loom's API as a table of routes."""

from __future__ import annotations

from fastapi import APIRouter

from ..documented import add
from . import batch, embedding, generation, health, loaders, models, streaming
from .schemas import BatchBody, EmbedBatchBody, LoadBody, LoomEmbedBody, LoomGenerateBody, StreamBody


def router() -> APIRouter:
    """All routes."""
    routes = APIRouter(tags=["The Loom"])
    add(routes, "GET HEAD", "/health", health.health)
    add(routes, "GET", "/metrics", health.metrics, answers="text/plain")
    add(routes, "GET", "/models", models.listed)
    add(routes, "POST", "/models/load", models.load, body=LoadBody)
    add(routes, "DELETE", "/models/{model_id:path}", models.unload)
    add(routes, "GET", "/loaders", loaders.listed)
    add(routes, "GET", "/loaders/probe/{model_id:path}", loaders.probe)
    add(routes, "POST", "/generate", generation.generate, body=LoomGenerateBody)
    add(routes, "POST", "/v1/generate", generation.generate, body=LoomGenerateBody)
    add(routes, "POST", "/generate/stream", streaming.stream, body=StreamBody, answers=streaming.EVENT_STREAM)
    add(routes, "POST", "/generate/batch", batch.generate, body=BatchBody)
    add(routes, "POST", "/embed", embedding.embed, body=LoomEmbedBody)
    add(routes, "POST", "/embed/batch", embedding.embed_batch, body=EmbedBatchBody)
    add(routes, "POST", "/analyze", embedding.analyze, body=LoomEmbedBody)
    return routes
