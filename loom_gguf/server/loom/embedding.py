"""/embed, /embed/batch and /analyze: vectors of texts, and what can be said of one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from ...requests import Embedded, EmbedRequest, TextPrompt
from ..http import Json, gone, read, unless_gone
from ..running import Use, embedding
from ..services import services
from ..vectors import checked
from .schemas import EmbedBatchBody, EmbeddingMetadata, EmbeddingRequest, LoomEmbedBody

_ZERO = 1e-6  # values below count as zero in `sparsity`


async def embed(request: Request) -> Response:
    """POST /embed."""
    body = await read(request, LoomEmbedBody)
    done = await _embedded(request, body, [body.text], None)
    if done is None:
        return gone()
    (embedded,), seconds = done
    vector = checked(embedded.vector)
    return Json({"embedding": vector, "shape": list(vector.shape), "metadata": _metadata(body, embedded, seconds)})


async def embed_batch(request: Request) -> Response:
    """POST /embed/batch."""
    body = await read(request, EmbedBatchBody)
    done = await _embedded(request, body, body.texts, "texts")
    if done is None:
        return gone()
    embedded, seconds = done
    vectors = [checked(each.vector) for each in embedded]
    answer = {
        "embeddings": vectors,
        "shapes": [list(vector.shape) for vector in vectors],
        "total_time_ms": seconds * 1e3,
        "texts_processed": len(vectors),
    }
    return Json(answer)


async def analyze(request: Request) -> Response:
    """POST /analyze."""
    body = await read(request, LoomEmbedBody)
    done = await _embedded(request, body, [body.text], None)
    if done is None:
        return gone()
    (embedded,), seconds = done
    metadata = _metadata(body, embedded, seconds)
    # The Loom writes the metadata's keys beside the others, and documents them as `metadata`.
    return Json(metadata | _analysis(checked(embedded.vector)) | {"metadata": metadata})


async def _embedded(
    request: Request, body: EmbeddingRequest, texts: Sequence[str], name: str | None
) -> tuple[list[Embedded], float] | None:
    """Vectors, and seconds without loading; None where the client has gone."""
    found = services(request)
    entry, facts, _ = await found.find(body.model)
    use = Use(request.url.path, entry.name, found.load_params(entry, facts), None)
    make = [EmbedRequest(TextPrompt(text), body.pooling, body.normalize) for text in texts]
    began = time.perf_counter()
    done = await unless_gone(request, embedding(found, use, make, name))
    if done is None:
        return None
    return done[0], time.perf_counter() - began - done[1]


def _metadata(body: EmbeddingRequest, embedded: Embedded, seconds: float) -> EmbeddingMetadata:
    return {
        "pooling": body.pooling,
        "inference_time_ms": seconds * 1e3,
        "input_tokens": embedded.n_prompt,
        "model_id": body.model,
    }


def _analysis(vector: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Of a vector (n_embd,); computed in float64."""
    values = vector.astype(np.float64)
    quartiles = np.percentile(values, (25, 50, 75))
    return {
        "shape": list(vector.shape),
        "layer": -1,
        "dtype": "float32",
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "l2_norm": float(np.linalg.norm(values)),
        "sparsity": float((np.abs(values) < _ZERO).mean()),
        **{f"percentile_{p}": float(value) for p, value in zip((25, 50, 75), quartiles, strict=True)},
        "embedding_shape": list(vector.shape),
    }
