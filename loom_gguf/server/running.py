"""One request to one model: the model loaded, the work done, logged and counted. All APIs go this way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..errors import NotGenerativeError
from ..jobs import Finished, PromptRows, Token
from ..requests import Embedded, EmbedRequest, GenerateRequest, LoadParams, ModelInfo, Started
from ..settings import ServerSettings
from .errors import BodyError, RequestError, describe
from .services import Services, Summary

Result = TypeVar("Result")


@dataclass(frozen=True)
class Use:
    """Which model, and for what."""

    endpoint: str  # the route's path, for the log
    name: str  # of the model, as the library has it: for the log and the metrics, where clients may make no names
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


async def embedding(
    found: Services, use: Use, requests: Sequence[EmbedRequest], name: str | None = None
) -> tuple[list[Embedded], float]:
    """Vectors in the requests' order, and the seconds that it took to get the model. `name`: as in in_order()."""
    summary = Summary(use.name, use.endpoint)
    try:
        async with found.manager.use(use.params, use.keep_alive) as runner:
            load_seconds = time.perf_counter() - summary.started
            works = [partial(runner.embed, request) for request in requests]
            embedded = await in_order(works, at_once(found.settings), name)
        summary.n_prompt = sum(each.n_prompt for each in embedded)
        summary.outcome = "done"
        found.metrics.embedded(len(embedded), time.perf_counter() - summary.started - load_seconds)
        return embedded, load_seconds
    except Exception as error:
        summary.outcome = f"error {describe(error).text}"
        raise
    finally:
        summary.write()


@asynccontextmanager
async def holding(found: Services, use: Use) -> AsyncIterator[None]:
    """The model stays loaded between several requests of one client. What they do is logged with each of them."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(found.manager.use(use.params, use.keep_alive))
        except Exception as error:
            Summary(use.name, use.endpoint, outcome=f"error {describe(error).text}").write()
            raise
        yield


def at_once(settings: ServerSettings) -> int:
    """How many of one client's requests run at a time: what the model computes at once. The queue is others' too."""
    return min(settings.parallel, settings.queue)


async def in_order(
    works: Sequence[Callable[[], Awaitable[Result]]], at_once: int, name: str | None = None
) -> list[Result]:
    """The results of all, in their order; the first error ends all of them.

    `name`: what the client calls the list, so that an error can say which item it is of.
    """
    done: dict[int, Result] = {}
    left = iter(enumerate(works))

    async def work() -> None:
        for at, each in left:
            try:
                done[at] = await each()
            except BodyError:  # of all of them
                raise
            except Exception as error:
                raise error if name is None else _of_item(error, f"{name}[{at}]") from None

    tasks = [asyncio.create_task(work()) for _ in range(min(at_once, len(works)))]
    try:
        await asyncio.gather(*tasks)
    finally:  # after an error or a cancellation nobody goes on
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [done[at] for at in range(len(works))]


def _of_item(error: Exception, item: str) -> RequestError:
    problem = describe(error)
    text = problem.text if problem.detail is None else f"{problem.text}: {problem.detail}"
    return RequestError(problem.status, f"{item}: {text}")
