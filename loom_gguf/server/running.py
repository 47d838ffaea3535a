"""One request to one model: the model loaded, the work done, logged and counted. All APIs go this way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..errors import NotGenerativeError
from ..jobs import Finished, PromptRows, Token
from ..requests import Embedded, EmbedRequest, GenerateRequest, LoadParams, ModelInfo, Started
from .errors import describe
from .services import Services, Summary

Result = TypeVar("Result")


@dataclass(frozen=True)
class Use:
    """Which model, and for what."""

    endpoint: str  # the route's path, for the log
    name: str  # of the model, as the client wrote it
    params: LoadParams
    keep_alive: float | None  # seconds; None: as before


@dataclass(frozen=True)
class Loaded:
    """The first event of all: there is a process that has the model."""

    info: ModelInfo
    seconds: float  # that it took to get it; next to nothing where it was loaded before


Event = Loaded | Started | PromptRows | Token | Finished


async def generating(
    found: Services, use: Use, make: Callable[[ModelInfo], GenerateRequest]
) -> AsyncGenerator[Event, None]:
    """The events of a request; raises in place of the rest. Whoever leaves early calls aclose().

    `make`: the request, now that the model is loaded and it is known what there is to capture.
    """
    summary = Summary(use.name, use.endpoint)
    try:
        async with found.manager.use(use.params, use.keep_alive) as runner:
            seconds = time.perf_counter() - summary.started
            yield Loaded(runner.info, seconds)
            async with aclosing(runner.generate(make(runner.info))) as events:
                async for event in events:
                    _note(summary, event)
                    yield event
    except NotGenerativeError:
        summary.outcome = "refused"
        raise
    except Exception as error:
        summary.outcome = f"error {describe(error).text}"
        raise
    finally:
        found.metrics.generated(use.name, summary.n_generated, summary.generate_seconds)
        summary.write()


def _note(summary: Summary, event: Event) -> None:
    """For the log; counted on the way, because a client may go before the end."""
    if isinstance(event, Started):
        summary.n_prompt = len(event.tokens)
    elif isinstance(event, Token):
        summary.n_generated += 1
        summary.captured_bytes += 0 if event.states is None else event.states.nbytes
    elif isinstance(event, PromptRows):
        summary.captured_bytes += event.states.nbytes
    elif isinstance(event, Finished):
        summary.generate_seconds = event.generate_seconds
        summary.outcome = "done"  # before the client has all of it, and goes


async def embedding(found: Services, use: Use, requests: Sequence[EmbedRequest]) -> tuple[list[Embedded], float]:
    """Vectors in the requests' order, and the seconds that it took to get the model."""
    summary = Summary(use.name, use.endpoint)
    try:
        async with found.manager.use(use.params, use.keep_alive) as runner:
            load_seconds = time.perf_counter() - summary.started
            # No more at once than the model computes at once: the queue is other clients' too.
            embedded = await in_order([partial(runner.embed, request) for request in requests], found.settings.parallel)
        summary.n_prompt = sum(each.n_prompt for each in embedded)
        summary.outcome = "done"
        found.metrics.embedded(len(embedded), time.perf_counter() - summary.started - load_seconds)
        return embedded, load_seconds
    except Exception as error:
        summary.outcome = f"error {describe(error).text}"
        raise
    finally:
        summary.write()


async def in_order(work: Sequence[Callable[[], Awaitable[Result]]], at_once: int) -> list[Result]:
    """The results of all, in their order; so many at once. The first error cancels the others."""
    done: dict[int, Result] = {}
    left = iter(enumerate(work))

    async def some() -> None:
        for at, each in left:
            done[at] = await each()

    tasks = [asyncio.create_task(some()) for _ in range(min(at_once, len(work)))]
    try:
        await asyncio.gather(*tasks)
    finally:  # after an error or a cancellation nobody goes on
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [done[at] for at in range(len(work))]
