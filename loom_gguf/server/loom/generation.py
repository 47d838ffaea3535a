"""/generate: one prompt, one answer; and what all ways to generate have in common."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from starlette.requests import Request
from starlette.responses import Response

from ...errors import CaptureUnsupportedError, UnknownNodeError
from ...jobs import Finished, Token
from ...requests import GenerateRequest, LoadParams, ModelInfo, Started, TextPrompt
from ...sampling import Sampling
from ...states import States
from ..errors import RequestError
from ..http import Json, gone, read, unless_gone
from ..running import Event, Loaded, Use, generating
from ..services import Services, services
from .hidden import Budget, Hidden
from .schemas import Generated, GenerationMetadata, GenerationRequest, LoomGenerateBody

_TOP_K = 50  # transformers' own default, which The Loom leaves as it is


async def generate(request: Request) -> Response:
    """POST /generate and /v1/generate."""
    body = await read(request, LoomGenerateBody)
    found = services(request)
    use = await use_of(request, found, body)
    answer = Answer(found, use, body, body.prompt, Budget(found.settings.max_answer))
    whole = await unless_gone(request, answer.complete())
    return gone() if whole is None else Json(whole)


async def use_of(request: Request, found: Services, body: GenerationRequest) -> Use:
    """The model that a request names, loaded as the server is set."""
    entry, facts, _ = await found.find(body.model)
    return Use(request.url.path, entry.name, found.load_params(entry, facts), None)


class Answer:
    """What comes of one prompt."""

    def __init__(self, found: Services, use: Use, body: GenerationRequest, prompt: str, budget: Budget) -> None:
        """`budget`: shared by all prompts of a request."""
        self._found = found
        self._use = use
        self._body = body
        self._prompt = prompt
        self._hidden = Hidden(body, found.settings.default_layers, budget)
        self._texts: list[str] = []
        self.token_ids: list[int] = []
        self._n_prompt = 0
        self._began = 0.0
        self._seconds = 0.0
        self._reason = ""

    async def complete(self) -> Generated:
        """All of it."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.whole()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events of the request, noted here already."""
        with _naming_flags(self._body, self._use.params):
            async with aclosing(generating(self._found, self._use, self._request)) as events:
                async for event in events:
                    self._note(event)
                    yield event

    def _request(self, info: ModelInfo) -> GenerateRequest:
        body = self._body
        return GenerateRequest(
            TextPrompt(self._prompt),
            Sampling(temperature=body.temperature, top_k=_TOP_K, top_p=body.top_p, seed=None),
            body.max_tokens,
            capture=self._hidden.capture(info.n_layer),
        )

    def _note(self, event: Event) -> None:
        if isinstance(event, Loaded):
            self._began = time.perf_counter()
        elif isinstance(event, Started):
            self._n_prompt = len(event.tokens)
        elif isinstance(event, Token):
            self._texts.append(event.text)
            self.token_ids.append(event.token_id)
            if isinstance(event.states, States):
                self._hidden.take(event.states)
        elif isinstance(event, Finished):
            self._seconds = time.perf_counter() - self._began
            self._reason = event.reason

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    @property
    def metadata(self) -> GenerationMetadata:
        """When it is done: how it went."""
        n = len(self.token_ids)
        return {
            "inference_time_ms": self._seconds * 1e3,
            "tokens_generated": n,
            "tokens_per_second": n / self._seconds if self._seconds > 0 else 0.0,
            "input_tokens": self._n_prompt,
            "temperature": self._body.temperature,
            "model_id": self._body.model,
            "full_sequence": self._body.return_full_sequence,
            "finish_reason": self._reason,
        }

    def whole(self) -> Generated:
        """When it is done: everything."""
        return {
            "text": self.text,
            "token_count": len(self.token_ids),
            **self._hidden.answer(),  # type: ignore[typeddict-item]
            "metadata": self.metadata,
        }


@contextmanager
def _naming_flags(body: GenerationRequest, params: LoadParams) -> Iterator[None]:
    """Attention weights need a server that was started for them: the error says how."""
    try:
        yield
    except (CaptureUnsupportedError, UnknownNodeError) as error:
        if not body.return_attention:
            raise
        if params.precision == "exact" and params.n_parallel == 1:
            if isinstance(error, UnknownNodeError):
                raise RequestError(400, "return_attention: this model computes no attention weights") from None
            raise
        raise RequestError(
            400,
            f"return_attention needs a server that was started with `serve --parallel 1 --precision exact` ({error})",
        ) from None
