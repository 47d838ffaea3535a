"""/api/generate and /api/chat: one request to one runner, and its events to lines."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from ...errors import NotGenerativeError
from ...jobs import Finished, PromptRows, Token
from ...requests import GenerateRequest, LoadParams, ModelInfo, Prompt, Started
from ..errors import RequestError
from ..http import Json, gone, ndjson, read, unless_gone
from ..models import Entry, file_of, rfc3339
from ..parsing import Parser, Piece, tool_names
from ..running import Loaded, Use, generating
from ..services import Services, services
from ..tokens import Logprob, TokenTexts, logprob
from .hidden import Hidden
from .options import check_generate, keep_alive, load_wishes, max_tokens, parse_options, sampling, stop_texts
from .prompts import chat_prompt, check_think, generate_prompt
from .schemas import ChatBody, GenerateBody, GenerationRequest, Record

Way = Literal["generate", "chat"]
JsonLine = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A request, understood."""

    way: Way
    name: str  # of the model, as the client wrote it
    use: Use
    request: GenerateRequest  # still without a capture: what there is to capture is known when the model is loaded
    hidden: Hidden | None
    think: bool  # look for thoughts in the text
    tools: set[str] | None
    context: bool  # tell all tokens in the end


async def generate(request: Request) -> Response:
    """POST /api/generate."""
    body = await read(request, GenerateBody)
    check_generate(body)
    return await _answer(request, body, "generate", empty=not body.prompt)


async def chat(request: Request) -> Response:
    """POST /api/chat."""
    body = await read(request, ChatBody)
    return await _answer(request, body, "chat", empty=not body.messages)


async def _answer(request: Request, body: GenerationRequest, way: Way, *, empty: bool) -> Response:
    found = services(request)
    seconds = keep_alive(body.keep_alive)
    hidden = Hidden.parse(body.expose_hidden)
    entry, facts, extras = await found.find(body.model)
    check_think(body.model, body.think, facts)
    options = parse_options(body.options, extras.params)
    params = found.load_params(entry, facts, load_wishes(options))
    if empty:
        return Json(await _load_or_unload(found, entry, params, way, body.model, seconds))
    chatting = isinstance(body, ChatBody)
    if isinstance(body, ChatBody):
        prompt: Prompt = chat_prompt(body, facts, extras)
    else:
        prompt = generate_prompt(_as_generate(body), facts, extras)
    raw = isinstance(body, GenerateBody) and bool(body.raw)
    call = Call(
        way=way,
        name=body.model,
        use=Use(f"/api/{way}", entry.name, params, seconds),
        request=GenerateRequest(prompt, sampling(body, options), max_tokens(options), stop_texts(options)),
        hidden=hidden,
        think=body.think is not False and facts.can_think and not raw,
        tools=tool_names(body.tools) if isinstance(body, ChatBody) and body.tools else None,
        context=not chatting and not raw,
    )
    lines = _lines(found, call)
    if body.stream is not False:
        return await ndjson(request, lines)
    whole = await unless_gone(request, _whole(lines, call, found.settings.max_answer))
    return gone() if whole is None else Json(whole)


def _as_generate(body: GenerationRequest) -> GenerateBody:
    assert isinstance(body, GenerateBody)
    return body


async def _load_or_unload(
    found: Services, entry: Entry, params: LoadParams, way: Way, name: str, seconds: float | None
) -> JsonLine:
    """What an empty prompt means."""
    if seconds == 0:
        await found.manager.unload(file_of(entry))
        return _line(way, name, Piece()) | {"done": True, "done_reason": "unload"}
    async with found.manager.use(params, seconds):
        pass
    return _line(way, name, Piece()) | {"done": True, "done_reason": "load"}


async def _lines(found: Services, call: Call) -> AsyncGenerator[JsonLine, None]:
    """The lines of an answer, the last of them with done: true; raises in place of the rest."""
    started = time.perf_counter()
    load_seconds = 0.0
    texts = None if call.request.sampling.logprobs is None else await found.texts(call.use.params.path)
    writer = _Writer(call, texts)
    try:
        async with aclosing(generating(found, call.use, lambda info: _with_capture(call, info))) as events:
            async for event in events:
                if isinstance(event, Loaded):
                    load_seconds = event.seconds
                elif isinstance(event, Finished):
                    for line in writer.finish(event, started, load_seconds):
                        yield line
                else:
                    for line in writer.event(event):
                        yield line
    except NotGenerativeError:
        raise RequestError(400, f'"{call.name}" does not support {call.way}') from None


def _with_capture(call: Call, info: ModelInfo) -> GenerateRequest:
    capture = None if call.hidden is None else call.hidden.capture(info.n_layer)
    if call.hidden is None or capture is None:
        return call.request
    return replace(
        call.request,
        capture=capture,
        prompt_rows=call.hidden.prompt,
        compression=call.hidden.compression,
        scale_block=call.hidden.scale_block,
    )


class _Writer:
    """Events to lines, for one request."""

    def __init__(self, call: Call, texts: TokenTexts | None) -> None:
        self._call = call
        self._texts = texts
        self._parser = Parser(think=call.think, tools=call.tools)
        self._tokens: list[int] = []

    def event(self, event: Started | PromptRows | Token) -> Iterable[JsonLine]:
        """The lines for an event; none where it adds nothing that the client wants."""
        call = self._call
        if isinstance(event, Started):
            self._tokens += event.tokens
            self._parser = Parser.after(event.text, think=call.think, tools=call.tools)
            return []
        if isinstance(event, PromptRows):
            portions = call.hidden.of_prompt(event) if call.hidden else ()
            return (self._line(Piece(), records=portion) for portion in portions)
        self._tokens.append(event.token_id)
        piece = self._parser.feed(event.text)
        records = call.hidden.of_token(event) if call.hidden else []
        told = logprob(event, self._texts) if self._texts else None
        logprobs = [told] if told else []
        return [self._line(piece, records=records, logprobs=logprobs)] if piece or records or logprobs else []

    def finish(self, event: Finished, started: float, load_seconds: float) -> list[JsonLine]:
        """The last lines: text that was held back, and the end."""
        rest = self._parser.finish()
        last = self._line(Piece()) | {"done": True, "done_reason": event.reason}
        if self._call.context:
            last["context"] = self._tokens
        timings = {
            "total_duration": _nanoseconds(time.perf_counter() - started),
            "load_duration": _nanoseconds(load_seconds),
            "prompt_eval_count": event.n_prompt,
            "prompt_eval_duration": _nanoseconds(event.prompt_seconds),
            "eval_count": event.n_generated,
            "eval_duration": _nanoseconds(event.generate_seconds),
        }
        last |= {key: value for key, value in timings.items() if value}
        return [self._line(rest), last] if rest else [last]

    def _line(self, piece: Piece, *, records: Sequence[Record] = (), logprobs: Sequence[Logprob] = ()) -> JsonLine:
        line = _line(self._call.way, self._call.name, piece)
        if logprobs:
            line["logprobs"] = logprobs
        if records:
            line["hidden_states"] = records
        return line


def _line(way: Way, name: str, piece: Piece) -> JsonLine:
    line: JsonLine = {"model": name, "created_at": rfc3339(datetime.now(timezone.utc))}
    if way == "generate":
        line["response"] = piece.content
        if piece.thinking:
            line["thinking"] = piece.thinking
    else:
        line["message"] = message = {"role": "assistant", "content": piece.content}
        if piece.thinking:
            message["thinking"] = piece.thinking
        if piece.tool_calls:
            message["tool_calls"] = list(piece.tool_calls)  # type: ignore[assignment]
    line["done"] = False
    return line


async def _whole(lines: AsyncGenerator[JsonLine, None], call: Call, max_bytes: int) -> JsonLine:
    """All lines in one."""
    pieces: list[Piece] = []
    records: list[Record] = []
    logprobs: list[Logprob] = []
    last: JsonLine = {}
    async with aclosing(lines):
        async for last in lines:
            said = last.get("message") or {"content": last["response"], "thinking": last.get("thinking", "")}
            pieces.append(Piece(said["content"], said.get("thinking", ""), tuple(said.get("tool_calls", ()))))
            records += last.get("hidden_states", ())
            logprobs += last.get("logprobs", ())
            if call.hidden and call.hidden.n_bytes > max_bytes:
                raise RequestError(
                    400,
                    f"more than {max_bytes:,} bytes of hidden states for one answer: ask with stream true, for fewer "
                    f"layers, or with a compression",
                )
    piece = Piece(
        "".join(piece.content for piece in pieces),
        "".join(piece.thinking for piece in pieces),
        tuple(call for piece in pieces for call in piece.tool_calls),
    )
    whole = _line(call.way, call.name, piece) | {
        key: value for key, value in last.items() if key not in ("response", "message")
    }
    if logprobs:
        whole["logprobs"] = logprobs
    if records:
        whole["hidden_states"] = records
    return whole


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)
