"""/v1/chat/completions: OpenAI's, and The Loom's where its keys are asked for.

`return_hidden_states` adds The Loom's keys `text`, `hidden_state` and `metadata`. Where a request does not say, the
server's setting decides (hidden_states.chat_default), which is false: OpenAI's clients would only pay for them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ...capture import Capture
from ...errors import NotGenerativeError
from ...jobs import Captured, Finished, Token
from ...requests import GenerateRequest, Started
from ...states import States
from ..errors import RequestError
from ..http import Json, dumps, gone, read, streamed, unless_gone
from ..parsing import Parser, Piece, tool_names
from ..running import Use, generating
from ..services import Services, services
from ..tokens import Logprob, TokenTexts, logprob
from .answers import SSE, error_event, events, head, sampling, stop_texts, usage, wants_usage
from .prompts import chat_prompt, schema
from .schemas import ChatCompletionBody

Chunk = dict[str, Any]

_ENDPOINT = "/v1/chat/completions"


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await read(request, ChatCompletionBody)
    found = services(request)
    entry, facts, extras = await found.find(body.model)
    asked = found.settings.chat_hidden_states if body.return_hidden_states is None else body.return_hidden_states
    prompt = chat_prompt(body, facts, extras)
    params = found.load_params(entry, facts)
    call = _Call(
        use=Use(_ENDPOINT, entry.name, params, None),
        request=GenerateRequest(
            prompt,
            sampling(body, logprobs=(body.top_logprobs or 0) if body.logprobs else None, json_schema=schema(body)),
            body.max_completion_tokens or body.max_tokens,
            stop_texts(body),
            capture=Capture.layers([], final=True) if asked else None,
        ),
        think=facts.can_think,
        tools=tool_names(prompt.tools) if prompt.tools else None,
        hidden=asked,
        texts=await found.texts(params.path) if body.logprobs else None,
        model=body.model,
    )
    if body.stream:
        chunks = _chunks(found, call, with_usage=wants_usage(body))
        return await streamed(request, events(chunks), SSE, error_event)
    whole = await unless_gone(request, _whole(found, call))
    return gone() if whole is None else Json(whole)


@dataclass(frozen=True)
class _Call:
    use: Use
    request: GenerateRequest
    think: bool
    tools: set[str] | None
    hidden: bool
    texts: TokenTexts | None
    model: str  # as the client wrote it


@dataclass
class _Said:
    """What an event adds to the answer."""

    piece: Piece = field(default_factory=Piece)
    logprobs: list[Logprob] = field(default_factory=list)
    last: Captured | None = None  # rows of the token
    finished: Finished | None = None


async def _said(found: Services, call: _Call) -> AsyncGenerator[_Said, None]:
    parser = Parser(think=call.think, tools=call.tools)
    try:
        async with aclosing(generating(found, call.use, lambda _: call.request)) as run:
            async for event in run:
                if isinstance(event, Started):
                    parser = Parser.after(event.text, think=call.think, tools=call.tools)
                elif isinstance(event, Token):
                    told = None if call.texts is None else logprob(event, call.texts)
                    yield _Said(parser.feed(event.text), [told] if told else [], event.states)
                elif isinstance(event, Finished):
                    yield _Said(parser.finish(), finished=event)
    except NotGenerativeError:
        raise RequestError(400, f"{call.model} only makes embeddings: use /v1/embeddings") from None


async def _whole(found: Services, call: _Call) -> Chunk:
    started = time.perf_counter()
    content, thinking = "", ""
    calls: list[Chunk] = []
    logprobs: list[Logprob] = []
    last: Captured | None = None
    finished: Finished | None = None
    async for said in _said(found, call):
        content += said.piece.content
        thinking += said.piece.thinking
        calls += [_call_of(each, len(calls)) for each in said.piece.tool_calls]
        logprobs += said.logprobs
        last = said.last or last
        finished = said.finished
    assert finished is not None
    message: Chunk = {"role": "assistant", "content": None if calls and not content else content, "refusal": None}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = [{key: value for key, value in each.items() if key != "index"} for each in calls]
    choice: Chunk = {
        "index": 0,
        "message": message,
        "logprobs": {"content": _complete(logprobs), "refusal": None} if call.texts is not None else None,
        "finish_reason": "tool_calls" if calls else finished.reason,
    }
    answer = {**head("chat.completion", "chatcmpl", call.model), "choices": [choice], "usage": usage(finished)}
    return answer | (_for_the_loom(call, content, last, finished, started) if call.hidden else {})


async def _chunks(found: Services, call: _Call, *, with_usage: bool) -> AsyncGenerator[Chunk, None]:
    started = time.perf_counter()
    first = head("chat.completion.chunk", "chatcmpl", call.model)
    n_calls, content = 0, ""
    last: Captured | None = None

    def chunk(delta: Chunk, reason: str | None = None, logprobs: list[Logprob] | None = None) -> Chunk:
        told = {"content": _complete(logprobs), "refusal": None} if logprobs else None
        return {**first, "choices": [{"index": 0, "delta": delta, "logprobs": told, "finish_reason": reason}]}

    begun = False
    async with aclosing(_said(found, call)) as run:
        async for said in run:
            if not begun:  # not before: what is wrong with a request still has a status of its own
                begun = True
                yield chunk({"role": "assistant", "content": ""})
            piece = said.piece
            last = said.last or last
            content += piece.content
            delta: Chunk = {}
            if piece.thinking:
                delta["reasoning_content"] = piece.thinking
            if piece.content:
                delta["content"] = piece.content
            if piece.tool_calls:
                delta["tool_calls"] = [_call_of(each, n_calls + at) for at, each in enumerate(piece.tool_calls)]
                n_calls += len(piece.tool_calls)
            if delta or said.logprobs:
                yield chunk(delta, logprobs=said.logprobs)
            if said.finished:
                end = chunk({}, "tool_calls" if n_calls else said.finished.reason)
                yield end | (_for_the_loom(call, content, last, said.finished, started) if call.hidden else {})
                if with_usage:
                    yield {**first, "choices": [], "usage": usage(said.finished)}


def _call_of(call: dict[str, Any], index: int) -> Chunk:
    function = call["function"]
    return {
        "index": index,
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": function["name"], "arguments": dumps(function["arguments"]).decode()},
    }


def _complete(logprobs: list[Logprob]) -> list[Any]:
    """OpenAI's own types want `top_logprobs` at every token."""
    return [{"top_logprobs": [], **each} for each in logprobs]


def _for_the_loom(call: _Call, text: str, last: Captured | None, finished: Finished, started: float) -> Chunk:
    """What The Loom answers, beside OpenAI's keys."""
    hidden = None
    if isinstance(last, States):
        row = np.atleast_2d(np.ascontiguousarray(last.final, np.float32))  # (1, n_embd)
        if not np.isfinite(row).all():
            raise RequestError(500, "the hidden state has NaN or infinite values, which JSON cannot hold")
        hidden = {"final": row, "shape": list(row.shape), "layer": -1, "dtype": "float32"}
    seconds = finished.generate_seconds
    return {
        "text": text,
        "hidden_state": hidden,
        "metadata": {
            "model": call.model,
            "latency_ms": (time.perf_counter() - started) * 1e3,
            "tokens_per_second": finished.n_generated / seconds if seconds > 0 else 0.0,
        },
    }
