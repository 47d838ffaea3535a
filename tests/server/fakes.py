"""A runner and a manager without a model: known tokens, known rows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from loom_gguf.errors import NotGenerativeError
from loom_gguf.jobs import Captured, Finished, PromptRows, Token
from loom_gguf.manager import LoadedModel
from loom_gguf.requests import (
    ChatPrompt,
    Embedded,
    EmbedRequest,
    GenerateRequest,
    LoadParams,
    ModelInfo,
    Started,
    TokensPrompt,
)
from loom_gguf.states import NodeValues, Roles, States

N_LAYER, N_EMBD = 3, 8
KEYS = ["embd", "Qcur-0", "l_out-0", "l_out-1", "ids", "l_out-2", "result_norm", "mask"]
TEXTS = ["One", " fox", "", " \u00e9", "."]


def row(key: str, position: int) -> np.ndarray:
    """float32 (n_embd,): what the fake model computes at a position."""
    rng = np.random.default_rng([KEYS.index(key), position])
    return rng.normal(size=N_EMBD).astype(np.float32)


def attention(il: int, position: int) -> np.ndarray:
    """float32 (n_head, position + 1)."""
    weights = np.random.default_rng([100 + il, position]).random((2, position + 1))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def states(request: GenerateRequest, tokens: list[int], start: int, *, single: bool = False) -> Captured:
    capture = request.capture
    assert capture is not None
    layers = range(N_LAYER) if capture.every_layer else capture.layer_indices
    keys = {f"l_out-{il}" for il in layers} | set(capture.patterns)
    keys |= ({"embd"} if capture.embedding else set()) | ({"result_norm"} if capture.final else set())
    values = {}
    if "kq_soft_max-*" in keys:
        for il in range(N_LAYER):
            values[f"kq_soft_max-{il}"] = NodeValues(attention(il, start)[None], 0)
    for key in [key for key in KEYS if key in keys]:
        if key == "mask":
            values[key] = NodeValues(np.arange(6, dtype=np.float32).reshape(2, 3), None)
            continue
        rows = np.stack([row(key, start + r) for r in range(len(tokens))])
        if key == "Qcur-0":
            rows = rows.reshape(len(tokens), 2, 4)
        values[key] = NodeValues((rows * 10).astype(np.int32) if key == "ids" else rows, 0)
    roles = Roles(
        N_LAYER,
        {il: f"l_out-{il}" for il in range(N_LAYER) if f"l_out-{il}" in values},
        "embd" if "embd" in values else None,
        "result_norm" if "result_norm" in values else None,
    )
    made = States(values, roles, tokens, range(start, start + len(tokens)), single=single)
    return made if request.compression is None else made.compress(request.compression, request.scale_block)


@dataclass
class FakeRunner:
    """Says `texts`, whatever it is asked."""

    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    prompt: list[int] = field(default_factory=lambda: [7, 8, 9])
    prompt_text: str | None = None
    pieces: int = 1  # of the prompt's rows
    fails_before: Exception | None = None
    fails_after: int | None = None  # tokens, then `error`
    error: Exception = field(default_factory=lambda: RuntimeError("wires crossed"))
    change: Any = None  # of a token's states
    encoder: bool = False
    hold: Any = None  # an asyncio.Event to wait for before every token
    requests: list[GenerateRequest] = field(default_factory=list)
    embeds: list[EmbedRequest] = field(default_factory=list)
    closed: int = 0

    @property
    def info(self) -> ModelInfo:
        return ModelInfo("llama", N_LAYER, N_EMBD, 100, 512, self.encoder, True, "F32", {}, 0.1)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        if self.fails_before:
            raise self.fails_before
        if self.encoder:
            raise NotGenerativeError("an encoder")
        prompt = list(request.prompt.tokens) if isinstance(request.prompt, TokensPrompt) else self.prompt
        n = len(prompt)
        try:
            text = self.prompt_text if isinstance(request.prompt, ChatPrompt) else None
            yield Started(tuple(prompt), text)
            if request.prompt_rows:
                for part in np.array_split(np.arange(n - 1), self.pieces):
                    yield PromptRows(states(request, [prompt[i] for i in part], int(part[0])))
            said = self.texts[: request.max_tokens]
            for i, text in enumerate(said):
                if self.hold:
                    await self.hold.wait()
                if self.fails_after == i:
                    raise self.error
                read = prompt[-1] if i == 0 else 50 + i - 1
                of = states(request, [read], n - 1 + i, single=True) if request.capture else None
                if self.change and of is not None:
                    of = self.change(of)
                logprob = -0.5 if request.sampling.logprobs is not None else None
                top = tuple((50 + i + k, -0.5 - k) for k in range(request.sampling.logprobs or 0))
                yield Token(50 + i, text, i, n - 1 + i, of, logprob, top, "stop" if i == len(said) - 1 else None)
            yield Finished("stop", n, 0, len(said), 0.0, 0.25, 0.5)
        finally:
            self.closed += 1

    async def embed(self, request: EmbedRequest) -> Embedded:
        self.embeds.append(request)
        if self.fails_before:
            raise self.fails_before
        vector = np.arange(1, N_EMBD + 1, dtype=np.float32)
        return Embedded(vector / np.linalg.norm(vector) if request.normalize else vector, 3)


@dataclass
class FakeManager:
    runner: FakeRunner
    uses: list[tuple[LoadParams, float | None]] = field(default_factory=list)
    unloaded: list[Path] = field(default_factory=list)
    fails: Exception | None = None
    in_use: int = 0
    closed: bool = False
    for_ever: bool = False
    idle_since: datetime | None = None

    @asynccontextmanager
    async def use(self, params: LoadParams, keep_alive: float | None = None) -> AsyncIterator[FakeRunner]:
        if self.fails:
            raise self.fails
        self.uses.append((params, keep_alive))
        self.in_use += 1
        try:
            yield self.runner
        finally:
            self.in_use -= 1

    def loaded(self) -> list[LoadedModel]:
        used = {params.path: params for params, _ in self.uses if params.path not in self.unloaded}
        until = None if self.for_ever else datetime.now(timezone.utc) + timedelta(minutes=5)
        info = self.runner.info
        return [LoadedModel(path, params, info, until, self.in_use, self.idle_since) for path, params in used.items()]

    def params(self, path: Path) -> LoadParams | None:
        return None

    async def unload(self, path: Path) -> bool:
        known = any(model.path == path for model in self.loaded())
        self.unloaded.append(path)
        return known

    async def close(self) -> None:
        self.closed = True
