"""/v1/completions: prompts without a template, one or several."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...errors import NotGenerativeError
from ...jobs import Finished, Token
from ...requests import GenerateRequest, Prompt, Started, TextPrompt
from ..errors import RequestError
from ..http import Json, gone, read, streamed, unless_gone
from ..running import Use, at_once, generating, in_order
from ..services import Services, services
from ..tokens import Logprob, TokenTexts, logprob
from .answers import SSE, error_event, events, head, sampling, stop_texts, usage, wants_usage
from .prompts import prompts
from .schemas import CompletionBody

Chunk = dict[str, Any]

_ENDPOINT = "/v1/completions"
_DEFAULT_TOKENS = 16  # OpenAI's


async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    body = await read(request, CompletionBody)
    if body.suffix:
        raise RequestError(400, "suffix is not supported: this server only goes on from a prompt")
    if body.best_of not in (None, 1):
        raise RequestError(400, "best_of must be 1")
    if body.echo and body.logprobs is not None:
        raise RequestError(400, "echo with logprobs is not supported: log-probabilities are told of generated tokens")
    found = services(request)
    entry, facts, _ = await found.find(body.model)
    params = found.load_params(entry, facts)
    call = _Call(
        use=Use(_ENDPOINT, entry.name, params, None),
        model=body.model,
        requests=[
            GenerateRequest(
                prompt,
                sampling(body, logprobs=body.logprobs),
                _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
                stop_texts(body),
            )
            for prompt in prompts(body.prompt)
        ],
        echo=bool(body.echo),
        texts=await found.texts(params.path) if body.echo or body.logprobs is not None else None,
    )
    if body.stream:
        chunks = _chunks(found, call, with_usage=wants_usage(body))
        return await streamed(request, events(chunks), SSE, error_event)
    whole = await unless_gone(request, _whole(found, call))
    return gone() if whole is None else Json(whole)


@dataclass(frozen=True)
class _Call:
    use: Use
    model: str  # as the client wrote it
    requests: list[GenerateRequest]
    echo: bool
    texts: TokenTexts | None


@dataclass
class _Said:
    text: str
    logprob: Logprob | None = None
    finished: Finished | None = None


async def _said(found: Services, call: _Call, request: GenerateRequest) -> AsyncGenerator[_Said, None]:
    try:
        async with aclosing(generating(found, call.use, lambda _: request)) as run:
            async for event in run:
                if isinstance(event, Started) and call.echo:
                    yield _Said(_echo(request.prompt, event, call.texts))
                elif isinstance(event, Token):
                    yield _Said(event.text, logprob(event, call.texts) if call.texts else None)
                elif isinstance(event, Finished):
                    yield _Said("", finished=event)
    except NotGenerativeError:
        raise RequestError(400, f"{call.model} only makes embeddings: use /v1/embeddings") from None


def _echo(prompt: Prompt, started: Started, texts: TokenTexts | None) -> str:
    if isinstance(prompt, TextPrompt):
        return prompt.text
    assert texts is not None
    return b"".join(texts(token) for token in started.tokens).decode("utf-8", "replace")


async def _whole(found: Services, call: _Call) -> Chunk:
    async def one(request: GenerateRequest) -> list[_Said]:
        return [said async for said in _said(found, call, request)]

    # No more at once than the model computes at once: the queue is other clients' too.
    done = await in_order([partial(one, request) for request in call.requests], at_once(found.settings))
    choices, ended = [], []
    for index, said in enumerate(done):
        finished = said[-1].finished
        assert finished is not None
        ended.append(finished)
        told = [each.logprob for each in said if each.logprob]
        choices.append({
            "index": index,
            "text": "".join(each.text for each in said),
            "logprobs": _logprobs(told, 0) if told else None,
            "finish_reason": finished.reason,
        })  # fmt: skip
    return {**head("text_completion", "cmpl", call.model), "choices": choices, "usage": usage(*ended)}


async def _chunks(found: Services, call: _Call, *, with_usage: bool) -> AsyncGenerator[Chunk, None]:
    first = head("text_completion", "cmpl", call.model)
    ended: list[Finished] = []
    for index, request in enumerate(call.requests):  # one after the other: a stream has one reader
        offset = 0
        async with aclosing(_said(found, call, request)) as run:
            async for said in run:
                if said.finished:
                    ended.append(said.finished)
                told = None if said.logprob is None else _logprobs([said.logprob], offset)
                offset += len(said.text)
                if said.text or told or said.finished:
                    reason = said.finished.reason if said.finished else None
                    choice = {"index": index, "text": said.text, "logprobs": told, "finish_reason": reason}
                    yield {**first, "choices": [choice]}
    if with_usage:
        yield {**first, "choices": [], "usage": usage(*ended)}


def _logprobs(told: list[Logprob], offset: int) -> Chunk:
    """The old form: one list for each thing. `offset`: in characters, of the first token."""
    offsets = []
    for each in told:
        offsets.append(offset)
        offset += len(each["token"])
    return {
        "tokens": [each["token"] for each in told],
        "token_logprobs": [each["logprob"] for each in told],
        "top_logprobs": [{top["token"]: top["logprob"] for top in each.get("top_logprobs", [])} for each in told],
        "text_offset": offsets,
    }
