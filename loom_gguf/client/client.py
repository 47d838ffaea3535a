"""The client itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

import httpx
import orjson

from ..errors import AddressError, PromptError, ServerUnreachableError, SettingsError
from .answers import Batch, Embedded, EmbeddedBatch, Generated, Json, StreamingResult, StreamingToken
from .reading import answer, check_stream, events, unreachable

Format = Literal["list", "base64"]
Pooling = Literal["last_token", "mean", "first_token"]
Layers = Sequence[int] | Literal["all"]

_UNIX = "unix://"
_NUMPY = orjson.OPT_SERIALIZE_NUMPY  # for max_tokens=np.int64(8)
# As many requests at a time as there are threads: the queue is the server's.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


class LoomClient:
    """Asks a server. Close it, or use it as a context manager; it may be used by several threads.

    Errors: ServerUnreachableError where nobody answers or the connection breaks, ModelNotFoundError, PromptError for
    what cannot be sent, and ServerError, with the status, for whatever else the server says.
    """

    def __init__(
        self, base_url: str = "http://localhost:8080", timeout: float | None = 300.0, api_key: str | None = None
    ) -> None:
        """`base_url`: "http://host:port" or "unix:///path.sock". `timeout`: seconds without a byte; None: no limit.

        AddressError where `base_url` is neither. The server is asked only by the methods.
        """
        self.base_url = base_url
        self.timeout = timeout
        _check(base_url, api_key)
        unix = base_url.startswith(_UNIX)
        transport = httpx.HTTPTransport(uds=base_url.removeprefix(_UNIX), limits=_LIMITS) if unix else None
        try:
            self._client = httpx.Client(
                base_url="http://localhost" if unix else base_url,
                transport=transport,
                limits=_LIMITS,
                timeout=timeout,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            )
        except httpx.InvalidURL as error:
            raise _no_address(base_url, str(error)) from None

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
        return_full_sequence: bool = False,
        return_attention: bool = False,
    ) -> Batch:
        """Go on from up to 100 prompts, which are computed together; `results` are in their order."""
        body = {
            "model": model,
            "prompts": _texts("prompts", prompts),
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
        return_full_sequence: bool = False,
        return_attention: bool = False,
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
            "return_full_sequence": return_full_sequence,
            "return_attention": return_attention,
            "loader": loader,
        }
        self._check_open()
        try:
            with self._client.stream("POST", "/generate/stream", **_sent(body)) as response:
                check_stream(response)
                yield from events(response.iter_bytes())
        except httpx.HTTPError as error:
            raise unreachable(self.base_url, self.timeout, error) from None

    def embed(self, model: str, text: str, pooling: Pooling = "last_token", normalize: bool = False) -> Embedded:
        """One vector for a text."""
        body = {"model": model, "text": text, "pooling": pooling, "normalize": normalize}
        return cast(Embedded, self._ask("POST", "/embed", body))

    def embed_batch(
        self, model: str, texts: Sequence[str], pooling: Pooling = "last_token", normalize: bool = False
    ) -> EmbeddedBatch:
        """A vector for each of up to 100 texts."""
        body = {"model": model, "texts": _texts("texts", texts), "pooling": pooling, "normalize": normalize}
        return cast(EmbeddedBatch, self._ask("POST", "/embed/batch", body))

    def analyze(self, model: str, text: str, pooling: Pooling = "last_token", normalize: bool = False) -> Json:
        """Statistics of a text's vector."""
        body = {"model": model, "text": text, "pooling": pooling, "normalize": normalize}
        return self._ask("POST", "/analyze", body)

    # -- how ------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        self._check_open()
        try:
            response = self._client.request(method, path, **({} if body is None else _sent(body)))
        except httpx.HTTPError as error:
            raise unreachable(self.base_url, self.timeout, error) from None
        return answer(response)

    def _check_open(self) -> None:
        if self._client.is_closed:
            raise ServerUnreachableError("this client was closed: make another one")


def connect(
    base_url: str = "http://localhost:8080", timeout: float | None = 300.0, api_key: str | None = None
) -> LoomClient:
    """A client; the same as LoomClient(base_url, timeout, api_key)."""
    return LoomClient(base_url, timeout, api_key)


def _check(base_url: str, api_key: str | None) -> None:
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise SettingsError("api_key: a key that is sent in a header can have printable ASCII characters only")
    if base_url.startswith(_UNIX):
        if not base_url.removeprefix(_UNIX) or "\0" in base_url:
            raise _no_address(base_url)
        return
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 0) >= 0
    except ValueError as error:
        raise _no_address(base_url, str(error)) from None
    if not good or parts.query or parts.fragment or any(each.isspace() for each in base_url):
        raise _no_address(base_url)


def _no_address(base_url: str, why: str = "") -> AddressError:
    reason = f" ({why:.100})" if why else ""
    return AddressError(f"{base_url!r:.200} is no address{reason}: give http://host:port or unix:///path.sock")


def _sent(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as httpx takes it; what is None is left out."""
    try:
        data = orjson.dumps({key: value for key, value in body.items() if value is not None}, option=_NUMPY)
    except orjson.JSONEncodeError as error:
        raise PromptError(f"a request must be texts and numbers that JSON can hold: {error}") from None
    return {"content": data, "headers": {"Content-Type": "application/json"}}


def _in_path(model_id: str) -> str:
    # The server takes `--` for `/` too, but a model may have that in its own name.
    return quote(model_id, safe="/")


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise PromptError(f"{name} must be a list of texts; for a single one there is the method without _batch")
    return list(texts)


def _layers(layers: Layers | None) -> list[int] | str | None:
    return layers if layers is None or isinstance(layers, str) else [int(index) for index in layers]
