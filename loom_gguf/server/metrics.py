"""What Prometheus may ask: counted in the server's own process, from what its models' processes report.

Names are The Loom's. Every app has a registry of its own, so that several may live in one process.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..requests import LoadParams
from .interfaces import ManagerLike

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
Loaded = TypeVar("Loaded")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# One label each for all paths that are no route and all methods that nobody knows: clients must not be able to make
# labels, which stay in memory.
_UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER_METHOD = "other"


class Metrics:
    """All counts of one server. Its methods belong to the event loop."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "loom_requests", "HTTP requests answered", ["endpoint", "method", "status"], registry=registry
        )
        self._latency = Histogram(
            "loom_request_latency_seconds",
            "From a request's arrival to the last byte of its answer",
            ["endpoint", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("loom_tokens_generated", "Tokens generated", ["model"], registry=registry)
        self._generation = Histogram(
            "loom_generation_latency_seconds",
            "From a prompt's last token to the end of its answer",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._embeddings = Counter("loom_embeddings", "Texts embedded", registry=registry)
        self._embedding = Histogram(
            "loom_embedding_latency_seconds", "Embedding the texts of one request", buckets=_SECONDS, registry=registry
        )
        self._loads = Counter("loom_model_loads", "Models loaded", registry=registry)
        self._load = Histogram(
            "loom_model_load_latency_seconds", "Loading a model", buckets=_SECONDS, registry=registry
        )
        self._loaded = Gauge("loom_models_loaded", "Models in memory now", registry=registry)
        self._gpu_used = Gauge(
            "loom_gpu_memory_used_bytes", "Memory of a GPU in use, by anybody", ["device"], registry=registry
        )
        self._gpu_total = Gauge("loom_gpu_memory_total_bytes", "Memory of a GPU", ["device"], registry=registry)

    def timing(self, load: Callable[[LoadParams], Awaitable[Loaded]]) -> Callable[[LoadParams], Awaitable[Loaded]]:
        """The same loader, its successes counted and timed."""

        async def timed(params: LoadParams) -> Loaded:
            began = time.perf_counter()
            loaded = await load(params)
            self._loads.inc()
            self._load.observe(time.perf_counter() - began)
            return loaded

        return timed

    def generated(self, model: str, n_tokens: int, seconds: float) -> None:
        """An answer has ended. `seconds` is 0 where it ended early."""
        if n_tokens:
            self._tokens.labels(model).inc(n_tokens)
        if seconds > 0:
            self._generation.labels(model).observe(seconds)

    def embedded(self, n_texts: int, seconds: float) -> None:
        """A request's texts are embedded."""
        self._embeddings.inc(n_texts)
        self._embedding.observe(seconds)

    def answered(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """The last byte is sent, or the client has gone."""
        self._requests.labels(endpoint, method, str(status)).inc()
        self._latency.labels(endpoint, method).observe(seconds)

    def gpu(self, device: str, used: int, total: int) -> None:
        """A GPU's memory now, in bytes."""
        self._gpu_used.labels(device).set(used)
        self._gpu_total.labels(device).set(total)

    def text(self, manager: ManagerLike) -> bytes:
        """Everything in Prometheus's text form."""
        self._loaded.set(len(manager.loaded()))
        return generate_latest(self._registry)


class Counting:
    """Middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """`app`: what comes behind it."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 499  # as nginx counts a client that went before it had an answer

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("route"), "path", _UNMATCHED)
            method = scope["method"] if scope["method"] in _METHODS else _OTHER_METHOD
            self._metrics.answered(endpoint, method, status, time.perf_counter() - began)
