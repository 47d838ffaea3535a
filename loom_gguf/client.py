"""A client for The Loom's routes of a server, over HTTP or a Unix socket; methods are those of The Loom's own client.

>>> with LoomClient("http://localhost:8080") as client:
...     told = client.generate("demo", "Once upon a time", max_tokens=8, hidden_state_layers=[-1, 0])
...     row = as_array(told["hidden_states"]["-1"])  # float32 (1, n_embd)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypedDict, cast
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from .errors import LoomError, ModelNotFoundError, ServerError, ServerUnreachableError

__all__ = ["LoomClient", "StreamingResult", "StreamingToken", "as_array", "connect"]

Format = Literal["list", "base64"]
Pooling = Literal["last_token", "mean", "first_token"]
Layers = Sequence[int] | Literal["all"]
Json = dict[str, Any]

_NOT_FOUND = 404


class HiddenState(TypedDict):
    """Rows as they are sent; see `as_array`."""

    data: Any  # nested lists of numbers, or base64 of little-endian float32
    shape: list[int]
    dtype: str
    encoding: str


class Generated(TypedDict):
    """What `generate` gives."""

    text: str
    token_count: int
    hidden_states: dict[str, HiddenState] | None  # by index, as Hugging Face counts: [1, n_embd], of the last step
    attention_weights: dict[str, HiddenState] | None
    sequence_hidden_states: dict[str, HiddenState] | None  # [n_steps, n_embd]
    metadata: Json


class Batch(TypedDict):
    """What `generate_batch` gives."""

    results: list[Generated]
    total_tokens: int
    total_time_ms: float
    prompts_processed: int


class Embedded(TypedDict):
    """What `embed` gives."""

    embedding: list[float]
    shape: list[int]
    metadata: Json


class EmbeddedBatch(TypedDict):
    """What `embed_batch` gives."""

    embeddings: list[list[float]]
    shapes: list[list[int]]
    total_time_ms: float
    texts_processed: int


@dataclass
class StreamingToken:
    """A token of a stream."""

    token: str
    token_id: int
    is_finished: bool = False
    finish_reason: str | None = None


@dataclass
class StreamingResult:
    """The end of a stream."""

    text: str
    token_count: int
    token_ids: list[int]
    hidden_states: dict[str, HiddenState] | None = None
    metadata: Json | None = None


def as_array(state: HiddenState | Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The rows of a hidden state, float32 of its `shape`, however they were sent."""
    if state.get("encoding") == "base64":
        flat = np.frombuffer(base64.b64decode(state["data"]), "<f4").astype(np.float32)
    else:
        flat = np.asarray(state["data"], np.float32)
    return flat.reshape(state["shape"])


class LoomClient:
    """Asks a server. Close it, or use it as a context manager; it may be used by several threads.

    Errors: ServerUnreachableError where nobody answers, ModelNotFoundError, and ServerError, with the status, for
    whatever else the server says.
    """

    def __init__(
        self, base_url: str = "http://localhost:8080", timeout: float = 300.0, api_key: str | None = None
    ) -> None:
        """`base_url`: "http://host:port" or "unix:///path.sock". `timeout`: seconds without a byte."""
        self.base_url = base_url
        self.timeout = timeout
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https", "unix") or not (parts.netloc or parts.path):
            raise LoomError(f"{base_url!r:.200} is no address: give http://host:port or unix:///path.sock")
        unix = parts.scheme == "unix"
        self._client = httpx.Client(
            base_url="http://localhost" if unix else base_url,
            transport=httpx.HTTPTransport(uds=parts.netloc + parts.path) if unix else None,
            timeout=timeout,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> LoomClient:
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    # -- the server and its models --------------------------------------------------------------------------------

    def health(self) -> Json:
        """Status, GPUs and settings."""
        return self._ask("GET", "/health")

    def list_models(self) -> Json:
        """What is loaded: `loaded_models`, `max_models`, `auto_unload_minutes`."""
        return self._ask("GET", "/models")

    def list_loaders(self) -> Json:
        """Places that models come from."""
        return self._ask("GET", "/loaders")

    def probe_loader(self, model_id: str) -> Json:
        """Where a model would come from, and whether it can be loaded; it is not."""
        return self._ask("GET", f"/loaders/probe/{_in_path(model_id)}")

    def load_model(
        self,
        model_id: str,
        device: str | None = None,
        dtype: str = "auto",
        loader: str | None = None,
        quantization: str | None = None,
    ) -> Json:
        """Load a model. `device`: cpu, cuda, cuda:N, metal. `quantization`: 4bit, 8bit, or a name such as Q4_K_M."""
        body = {"model": model_id, "device": device, "dtype": dtype, "loader": loader, "quantization": quantization}
        return self._ask("POST", "/models/load", body)

    def unload_model(self, model_id: str) -> Json:
        """Unload a model."""
        return self._ask("DELETE", f"/models/{_in_path(model_id)}")

    # -- text and vectors -----------------------------------------------------------------------------------------

    def generate(
        self,
        model: str,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        return_hidden_states: bool = True,
        hidden_state_layers: Layers | None = None,
        hidden_state_format: Format = "list",
        return_full_sequence: bool = False,
        loader: str | None = None,
        return_attention: bool = False,
    ) -> Generated:
        """Go on from a prompt. `hidden_state_layers`: as Hugging Face counts (0 the embedding, -1 after the last norm);
        None: as the server is set.
        """
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "return_hidden_states": return_hidden_states,
            "hidden_state_layers": _layers(hidden_state_layers),
            "hidden_state_format": hidden_state_format,
            "return_full_sequence": return_full_sequence,
            "return_attention": return_attention,
            "loader": loader,
        }
        return cast(Generated, self._ask("POST", "/generate", body))

    def generate_batch(
        self,
        model: str,
        prompts: Sequence[str],
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        return_hidden_states: bool = False,
        hidden_state_layers: Layers | None = None,
        hidden_state_format: Format = "list",
        loader: str | None = None,
    ) -> Batch:
        """Go on from up to 100 prompts, which are computed together; `results` are in their order."""
        body = {
            "model": model,
            "prompts": list(prompts),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "return_hidden_states": return_hidden_states,
            "hidden_state_layers": _layers(hidden_state_layers),
            "hidden_state_format": hidden_state_format,
            "loader": loader,
        }
        return cast(Batch, self._ask("POST", "/generate/batch", body))

    def generate_stream(
        self,
        model: str,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        return_hidden_states: bool = False,
        hidden_state_layers: Layers | None = None,
        hidden_state_format: Format = "list",
        loader: str | None = None,
    ) -> Iterator[StreamingToken | StreamingResult]:
        """Tokens as they come, and a StreamingResult in the end. Leaving the loop early stops the generation."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "return_hidden_states": return_hidden_states,
            "hidden_state_layers": _layers(hidden_state_layers),
            "hidden_state_format": hidden_state_format,
            "loader": loader,
        }
        try:
            with self._client.stream("POST", "/generate/stream", json=_given(body)) as response:
                if response.is_error:
                    response.read()
                    _refuse(response)
                yield from _events(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def embed(self, model: str, text: str, pooling: Pooling = "last_token", normalize: bool = False) -> Embedded:
        """One vector for a text."""
        body = {"model": model, "text": text, "pooling": pooling, "normalize": normalize}
        return cast(Embedded, self._ask("POST", "/embed", body))

    def embed_batch(
        self, model: str, texts: Sequence[str], pooling: Pooling = "last_token", normalize: bool = False
    ) -> EmbeddedBatch:
        """A vector for each of up to 100 texts."""
        body = {"model": model, "texts": list(texts), "pooling": pooling, "normalize": normalize}
        return cast(EmbeddedBatch, self._ask("POST", "/embed/batch", body))

    def analyze(self, model: str, text: str, pooling: Pooling = "last_token") -> Json:
        """Statistics of a text's vector."""
        return self._ask("POST", "/analyze", {"model": model, "text": text, "pooling": pooling})

    # -- how ------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        try:
            response = self._client.request(method, path, json=None if body is None else _given(body))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            _refuse(response)
        try:
            told = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            told = None
        if not isinstance(told, dict):
            raise ServerError(
                f"{self.base_url}{path} answers with something else than The Loom's API", response.status_code
            )
        return told

    def _unreachable(self, error: httpx.HTTPError) -> LoomError:
        if isinstance(error, httpx.TimeoutException):
            return ServerUnreachableError(
                f"{self.base_url} said nothing for {self.timeout:g} s: give LoomClient a longer timeout"
            )
        return ServerUnreachableError(
            f"cannot reach {self.base_url} ({error or type(error).__name__}): is the server running? Start it with "
            f"`loom-gguf serve --port 8080`"
        )


def connect(base_url: str = "http://localhost:8080", timeout: float = 300.0) -> LoomClient:
    """A client; the same as LoomClient(base_url, timeout)."""
    return LoomClient(base_url, timeout)


def _events(lines: Iterator[str]) -> Iterator[StreamingToken | StreamingResult]:
    """Server-sent events to tokens and the result; ServerError for an error, or an end before the result."""
    kind, data = "", []
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            continue
        if data:
            told = json.loads("\n".join(data))
            if kind == "error":
                raise ServerError(str(told.get("error", told)), None)
            if kind == "token":
                yield StreamingToken(**_known(StreamingToken, told))
            elif kind == "done":
                yield StreamingResult(**_known(StreamingResult, told))
                return
        kind, data = "", []
    raise ServerError("the stream ended before its result: the server stopped, or the model was unloaded", None)


def _known(kind: type[Any], told: Mapping[str, Any]) -> Json:
    """The fields that this version knows of; a newer server may tell more."""
    return {name: told[name] for name in kind.__dataclass_fields__ if name in told}


def _refuse(response: httpx.Response) -> NoReturn:
    try:
        told = response.json()
    except ValueError:
        told = None
    detail = told.get("detail", told) if isinstance(told, dict) else response.text[:500]
    if isinstance(detail, list):  # of fields: {loc, msg}
        detail = "; ".join(f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in detail)
    if response.status_code == _NOT_FOUND and "model" in str(detail):
        raise ModelNotFoundError(str(detail))
    raise ServerError(str(detail) or response.reason_phrase, response.status_code)


def _in_path(model_id: str) -> str:
    return quote(model_id.replace("/", "--"), safe="")


def _layers(layers: Layers | None) -> list[int] | str | None:
    return layers if layers is None or isinstance(layers, str) else [int(index) for index in layers]


def _given(body: Mapping[str, Any]) -> Json:
    return {name: value for name, value in body.items() if value is not None}
