"""/generate/batch: several prompts that are computed together."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from ..http import Json, gone, read, unless_gone
from ..running import Use, at_once, holding, in_order
from ..services import Services, services
from .generation import Answer, use_of
from .hidden import Budget
from .schemas import BatchBody, GeneratedBatch


async def generate(request: Request) -> Response:
    """POST /generate/batch."""
    body = await read(request, BatchBody)
    found = services(request)
    use = await use_of(request, found, body)
    whole = await unless_gone(request, _whole(found, use, body))
    return gone() if whole is None else Json(whole)


async def _whole(found: Services, use: Use, body: BatchBody) -> GeneratedBatch:
    budget = Budget(found.settings.max_answer)
    answers = [Answer(found, use, body, prompt, budget) for prompt in body.prompts]
    async with holding(found, use):
        began = time.perf_counter()
        results = await in_order([answer.complete for answer in answers], at_once(found.settings), "prompts")
        seconds = time.perf_counter() - began
    return {
        "results": results,
        "total_tokens": sum(each["token_count"] for each in results),
        "total_time_ms": seconds * 1e3,
        "prompts_processed": len(results),
    }
