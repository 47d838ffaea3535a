"""LoomClient against a real server with a runner that has no model, over HTTP and over a Unix socket."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import N_EMBD, N_LAYER, FakeManager, FakeRunner, attention, row
from serving import serving, until

from loom_gguf import errors
from loom_gguf.client import LoomClient, StreamingResult, StreamingToken, as_array, connect
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

Connect = Callable[..., LoomClient]


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as short:  # pytest's own folders may be too long for a socket
        yield Path(short, "s")


@pytest.fixture(params=["http", "unix"])
def address(request: pytest.FixtureRequest, manager: FakeManager, folder: Path, socket_path: Path) -> Iterator[str]:
    settings = ServerSettings(precision="exact", parallel=1)  # as attention weights need it
    where = socket_path if request.param == "unix" else None
    with serving(Services(Models(folder), manager, settings), where) as address:
        yield address
    assert manager.in_use == 0


@pytest.fixture
def client(address: str) -> Iterator[LoomClient]:
    with LoomClient(address, timeout=60) as client:
        yield client


# -- what each method gives ---------------------------------------------------------------------------------------


def test_the_server_and_its_models(client: LoomClient) -> None:
    health = client.health()
    assert set(health) == {"status", "model_loaded", "gpu_info", "config"}
    assert health["model_loaded"] is None
    assert client.list_models() == {"loaded_models": [], "max_models": 3, "auto_unload_minutes": 5}
    assert set(client.list_loaders()) == {"loaders", "fallback_order"}
    facts = {"model_id", "device", "dtype", "hidden_size", "num_layers", "loader_type", "quantization"}
    loaded = client.load_model("plain", device="cpu")
    assert set(loaded) == facts | {"load_time_seconds"}
    assert (loaded["model_id"], loaded["device"], loaded["hidden_size"]) == ("plain", "cpu", N_EMBD)
    (listed,) = client.list_models()["loaded_models"]
    assert set(listed) == facts | {"idle_seconds", "auto_unload_in"}
    assert client.unload_model("plain") == {"status": "unloaded", "model_id": "plain"}


@pytest.mark.parametrize("name", ["Deep/Er.Q4_0", "a--b/c d", "a/b", "a--b", "50%#?"])
def test_names_in_paths(client: LoomClient, folder: Path, manager: FakeManager, name: str) -> None:
    data = (folder / "plain.gguf").read_bytes()
    for other in ("a--b/c d", "a/b", "a--b", "50%#?"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / f"{other}.gguf").write_bytes(data)
    told = client.probe_loader(name)
    assert (told["model_id"], told["selected_loader"]) == (name, "folder")
    client.load_model(name)
    assert client.unload_model(name) == {"status": "unloaded", "model_id": name}
    assert manager.unloaded == [folder / f"{name}.gguf"]


def test_loading_as_it_was_asked_for(client: LoomClient, manager: FakeManager) -> None:
    told = client.load_model("plain", device="cpu", dtype="float32", loader="transformers", quantization="none")
    assert told["quantization"] == "none"
    with pytest.raises(errors.ServerError, match="gptq") as raised:
        client.load_model("plain", quantization="gptq")
    assert raised.value.status == 400
    assert [params.device for params, _ in manager.uses] == ["cpu"]


@pytest.mark.parametrize("form", ["list", "base64"])
def test_generate(client: LoomClient, form: Any) -> None:
    told = client.generate(
        "plain",
        "hi",
        max_tokens=np.int64(3),  # type: ignore[arg-type]
        hidden_state_layers=np.array([0, -1]),  # type: ignore[arg-type]
        hidden_state_format=form,
        return_full_sequence=True,
        return_attention=True,
        loader="auto",
    )
    assert set(told) == {
        *("text", "token_count", "hidden_states", "attention_weights", "sequence_hidden_states", "metadata")
    }
    assert (told["text"], told["token_count"], told["metadata"]["input_tokens"]) == ("One fox", 3, 3)
    for key, node in (("0", "embd"), ("-1", "result_norm")):
        last = as_array((told["hidden_states"] or {})[key])
        assert (last.dtype, last.shape) == (np.float32, (1, N_EMBD))
        assert np.array_equal(last[0], row(node, 4))
        steps = as_array((told["sequence_hidden_states"] or {})[key])
        assert np.array_equal(steps, np.stack([row(node, position) for position in (2, 3, 4)]))
    weights = as_array((told["attention_weights"] or {})["1"])
    assert weights.shape == (1, 2, 1, 5)
    assert np.array_equal(weights[0, :, 0], attention(1, 4))


def test_generate_says_what_it_was_told(client: LoomClient, runner: FakeRunner) -> None:
    told = client.generate("plain", "hi", 4, 0.0, 0.5, False)
    assert told["hidden_states"] is None
    (request,) = runner.requests
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p) == (4, 0.0, 0.5)
    assert request.capture is None
    defaults = client.generate("plain", "hi")
    assert list(defaults["hidden_states"] or {}) == ["-1"]
    every = client.generate("plain", "hi", hidden_state_layers="all")
    assert list(every["hidden_states"] or {}) == [str(index) for index in range(-N_LAYER, 0)]


def test_generate_batch(client: LoomClient) -> None:
    told = client.generate_batch("plain", ("a", "b", "c"), max_tokens=2, temperature=0.0)
    assert set(told) == {"results", "total_tokens", "total_time_ms", "prompts_processed"}
    assert (told["total_tokens"], told["prompts_processed"]) == (6, 3)
    assert [each["text"] for each in told["results"]] == ["One fox"] * 3
    assert told["results"][0]["hidden_states"] is None
    told = client.generate_batch("plain", ["a"], return_hidden_states=True, hidden_state_format="base64")
    assert np.array_equal(as_array((told["results"][0]["hidden_states"] or {})["-1"])[0], row("result_norm", 6))


def test_embeddings(client: LoomClient, runner: FakeRunner) -> None:
    told = client.embed("plain", "x")
    assert set(told) == {"embedding", "shape", "metadata"}
    assert told["embedding"] == list(range(1, N_EMBD + 1))
    told = client.embed("plain", "x", pooling="mean", normalize=True)
    assert np.linalg.norm(told["embedding"]) == pytest.approx(1, rel=1e-6)
    assert [(each.pooling, each.normalize) for each in runner.embeds] == [("last_token", False), ("mean", True)]
    batch = client.embed_batch("plain", ["x", "y"], pooling="first_token")
    assert set(batch) == {"embeddings", "shapes", "total_time_ms", "texts_processed"}
    assert (len(batch["embeddings"]), batch["texts_processed"]) == (2, 2)
    analysis = client.analyze("plain", "x")
    assert {"shape", "layer", "mean", "std", "l2_norm", "sparsity", "metadata"} <= set(analysis)
    assert analysis["mean"] == pytest.approx((N_EMBD + 1) / 2)
    assert client.analyze("plain", "x", "mean", True)["l2_norm"] == pytest.approx(1, rel=1e-6)


# -- streams ------------------------------------------------------------------------------------------------------


def test_a_stream(client: LoomClient) -> None:
    *tokens, result = client.generate_stream(
        "plain", "hi", return_hidden_states=True, return_full_sequence=True, return_attention=True
    )
    assert tokens == [
        StreamingToken("One", 50),
        StreamingToken(" fox", 51),
        StreamingToken("", 52),
        StreamingToken(" é", 53),
        StreamingToken(".", 54, True, "stop"),
    ]
    assert isinstance(result, StreamingResult)
    assert (result.text, result.token_count, result.token_ids) == ("One fox é.", 5, [50, 51, 52, 53, 54])
    assert np.array_equal(as_array((result.hidden_states or {})["-1"])[0], row("result_norm", 6))
    assert as_array((result.sequence_hidden_states or {})["-1"]).shape == (5, N_EMBD)
    assert sorted(result.attention_weights or {}) == [str(il) for il in range(N_LAYER)]
    assert (result.metadata or {})["finish_reason"] == "stop"


def test_texts_that_look_like_the_ends_of_lines(client: LoomClient, runner: FakeRunner) -> None:
    runner.texts = ["a\n\nevent: done\ndata: {}\n\n", "\r\n\u2028b\u2029", "\x85\x0b\x0c\x1c\x1e", "é" * 70_000]
    *tokens, result = client.generate_stream("plain", "hi")
    assert [token.token for token in tokens if isinstance(token, StreamingToken)] == runner.texts
    assert isinstance(result, StreamingResult)
    assert result.text == "".join(runner.texts)


def test_an_error_in_mid_stream(client: LoomClient, runner: FakeRunner) -> None:
    runner.fails_after, runner.error = 2, errors.RunnerDiedError("it died")
    stream = client.generate_stream("plain", "hi")
    assert [next(stream), next(stream)] == [StreamingToken("One", 50), StreamingToken(" fox", 51)]
    with pytest.raises(errors.ServerError, match="it died") as raised:
        next(stream)
    assert raised.value.status is None
    assert list(stream) == []
    runner.fails_after = None
    assert client.generate("plain", "hi")["text"] == "One fox é."


def test_an_error_before_a_stream(client: LoomClient, runner: FakeRunner) -> None:
    runner.fails_before = errors.PromptTooLongError("5 of 4")
    stream = client.generate_stream("plain", "hi")
    with pytest.raises(errors.ServerError, match="5 of 4") as raised:
        next(stream)
    assert raised.value.status == 400
    with pytest.raises(errors.ModelNotFoundError, match="'nosuch' not found"):
        next(client.generate_stream("nosuch", "hi"))


class Waiting(FakeRunner):
    """Says two tokens, and then nothing more."""

    async def generate(self, request: Any) -> Any:
        async with aclosing(super().generate(request)) as told:
            n = 0
            async for event in told:
                yield event
                if (n := n + 1) == 3:
                    await asyncio.Event().wait()


def test_who_leaves_a_stream_frees_the_runner(client: LoomClient, manager: FakeManager) -> None:
    manager.runner = runner = Waiting()
    for token in client.generate_stream("plain", "hi"):
        assert token == StreamingToken("One", 50)
        break
    until(lambda: runner.closed == 1 and not manager.in_use)
    stream = client.generate_stream("plain", "hi")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    until(lambda: runner.closed == 2 and not manager.in_use)


def test_closing_the_client_frees_the_runner(address: str, manager: FakeManager) -> None:
    manager.runner = runner = Waiting()
    client = LoomClient(address)
    stream = client.generate_stream("plain", "hi")
    next(stream)
    client.close()
    until(lambda: runner.closed == 1 and not manager.in_use)
    with pytest.raises(errors.ServerUnreachableError):
        list(stream)
    with pytest.raises(errors.ServerUnreachableError, match="closed"):
        client.health()
    with pytest.raises(errors.ServerUnreachableError, match="closed"):
        next(client.generate_stream("plain", "hi"))


# -- errors -------------------------------------------------------------------------------------------------------


def test_refusals(client: LoomClient, runner: FakeRunner) -> None:
    with pytest.raises(errors.ModelNotFoundError, match="'nosuch' not found"):
        client.generate("nosuch", "hi")
    with pytest.raises(errors.ModelNotFoundError):
        client.probe_loader("nosuch")
    with pytest.raises(errors.ServerError, match="not loaded: plain") as raised:
        client.unload_model("plain")
    assert raised.value.status == 404
    with pytest.raises(errors.ServerError, match=r"^max_tokens: .*greater than.*; temperature: ") as raised:
        client.generate("plain", "hi", max_tokens=0, temperature=9)
    assert raised.value.status == 422
    with pytest.raises(errors.ServerError, match=r"temperature: .*number"):
        client.generate("plain", "hi", temperature=float("nan"))
    runner.fails_before = errors.EngineBusyError("64 wait")
    with pytest.raises(errors.ServerError, match="server busy") as raised:
        client.generate("plain", "hi")
    assert raised.value.status == 503
    runner.fails_before = RuntimeError("wires crossed")
    with pytest.raises(errors.ServerError, match="internal server error") as raised:
        client.embed("plain", "hi")
    assert raised.value.status == 500


def test_what_cannot_be_sent(client: LoomClient) -> None:
    with pytest.raises(errors.PromptError, match="JSON"):
        client.generate("plain", "\ud800")
    with pytest.raises(errors.PromptError, match="JSON"):
        next(client.generate_stream("plain", b"bytes"))  # type: ignore[arg-type]
    with pytest.raises(errors.PromptError, match="list of texts"):
        client.generate_batch("plain", "one text")
    with pytest.raises(errors.PromptError, match="list of texts"):
        client.embed_batch("plain", "one text")


def test_a_key(manager: FakeManager, folder: Path) -> None:
    with serving(Services(Models(folder), manager, ServerSettings(api_key="secret"))) as address:
        for key in (None, "wrong"):
            with LoomClient(address, api_key=key) as client:
                for ask in (client.health, lambda client=client: next(client.generate_stream("plain", "hi"))):
                    with pytest.raises(errors.ServerError, match="unauthorized") as raised:
                        ask()
                    assert raised.value.status == 401
        with connect(address, api_key="secret") as client:
            assert client.health()["status"]
            assert len(list(client.generate_stream("plain", "hi"))) == 6
    for key in ("naïve", "a\nb"):
        with pytest.raises(errors.SettingsError, match="ASCII"):
            LoomClient(address, api_key=key)


def test_patience_ends(address: str, manager: FakeManager) -> None:
    manager.runner = runner = Waiting()
    with LoomClient(address, timeout=0.5) as client:
        with pytest.raises(errors.ServerUnreachableError, match=r"said nothing for 0\.5 s"):
            client.generate("plain", "hi")
        stream = client.generate_stream("plain", "hi")
        assert [next(stream), next(stream)] == [StreamingToken("One", 50), StreamingToken(" fox", 51)]
        with pytest.raises(errors.ServerUnreachableError, match=r"said nothing for 0\.5 s"):
            next(stream)
        until(lambda: runner.closed == 2 and not manager.in_use)
        assert client.health()["model_loaded"]
    with LoomClient(address, timeout=None) as client:
        assert client.health()


# httpcore does not close a Unix socket that could not be connected; it is freed with the error, here in the end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_is_there(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    for where in (f"http://127.0.0.1:{port}", f"unix://{tmp_path}/nosuch", f"unix:///tmp/{'x' * 200}"):
        with LoomClient(where) as client:
            with pytest.raises(errors.ServerUnreachableError, match=r"loom-gguf serve") as raised:
                client.health()
            assert where in str(raised.value)
            with pytest.raises(errors.ServerUnreachableError):
                next(client.generate_stream("plain", "hi"))
    del raised
    gc.collect()


@pytest.mark.parametrize(
    "address",
    [
        *("", "localhost:8080", "ftp://a", "http://", "http:///path", "http://a:99999", "http://a:b", "http://[::1"),
        *("unix://", "unix://\0", "/tmp/s", "http://a b", "http://a?b=c", "http://\u2028"),
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(errors.AddressError, match=r"give http://host:port or unix:///path\.sock"):
        LoomClient(address)


def test_paths_of_addresses(manager: FakeManager, folder: Path, socket_path: Path) -> None:
    odd = socket_path.with_name("a?b#c %41")
    with serving(Services(Models(folder), manager, ServerSettings()), odd) as address, connect(address) as client:
        assert client.health()["status"]
    with serving(Services(Models(folder), manager, ServerSettings())) as address, LoomClient(f"{address}/") as client:
        assert client.health()["status"]


# -- other servers ------------------------------------------------------------------------------------------------


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that answers everything so, and hangs up."""
    import socket
    import threading

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        while len(body) < int(line.split(b":")[1]):
                            body += connection.recv(65536)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "http://{}:{}".format(*listening.getsockname())
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status: str, kind: str, body: bytes, *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http("200 OK", "text/html", b"<h1>It works!</h1>"), 200),
        (http("200 OK", "application/json", b"[1, 2]"), 200),
        (http("200 OK", "application/json", b'{"cut'), 200),
        (http("302 Found", "application/json", b"{}", "Location: /login"), 302),
        (http("404 Not Found", "text/html", b"<h1>no model here</h1>"), 404),
        (http("404 Not Found", "application/json", b'{"error": "model"}'), 404),
        (http("422 Unprocessable Entity", "application/json", b'{"detail": {}}'), 422),
        (http("502 Bad Gateway", "text/html", b"\xff\xfe"), 502),
    ],
)
def test_another_server(answer: bytes, status: int) -> None:
    with saying(answer) as address, LoomClient(address) as client:
        for ask in (client.health, lambda: next(client.generate_stream("plain", "hi"))):
            with pytest.raises(errors.ServerError, match="not as The Loom's API answers") as raised:
                ask()
            assert raised.value.status == status
            assert address in str(raised.value)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", http("200 OK", "application/json", b"", "Content-Length: 9")]
)
def test_what_is_no_http(answer: bytes) -> None:
    with saying(answer) as address, LoomClient(address) as client:
        with pytest.raises(errors.ServerUnreachableError, match="broke"):
            client.health()
        with pytest.raises(errors.LoomError):
            next(client.generate_stream("plain", "hi"))


TOKEN = b'event: token\ndata: {"token": "a", "token_id": 1, "more": 1}\n\n'


def test_line_ends_of_unicode_are_no_line_ends() -> None:
    """Our server escapes them; JSON need not."""
    token = 'event: token\r\ndata: {"token": "a\u2028b\x85c",\r\ndata:"token_id": 1}\r\n\r\n'.encode()
    done = b'event: done\ndata: {"text": "a", "token_count": 1, "token_ids": [1]}\n\nevent: error\ndata: {}\n\n'
    with saying(http("200 OK", "text/event-stream", token + done)) as address, LoomClient(address) as client:
        assert list(client.generate_stream("plain", "hi")) == [
            StreamingToken("a\u2028b\x85c", 1),
            StreamingResult("a", 1, [1]),
        ]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "ended before its result"),
        (b"event: done\ndata: {}\n", "ended before its result"),  # the event is not over
        (b"event: error\ndata: {}\n\n", "{}"),
        (b"event: error\ndata: oh\n\n", "None"),
        (b"event: done\ndata: {}\n\n", "not as The Loom's API has it"),
        (b"event: done\ndata: [1]\n\n", "not as The Loom's API has it"),
        (b"event: token\ndata: {oh\n\n", "not as The Loom's API has it"),
    ],
)
def test_a_stream_that_breaks(body: bytes, text: str) -> None:
    answer = http("200 OK", "text/event-stream; charset=utf-8", b": hello\r\n\r\n" + TOKEN + body)
    with saying(answer) as address, LoomClient(address) as client:
        stream = client.generate_stream("plain", "hi")
        assert next(stream) == StreamingToken("a", 1)
        with pytest.raises(errors.ServerError, match=text) as raised:
            next(stream)
        assert raised.value.status is None


def test_a_connection_that_breaks_in_mid_stream() -> None:
    answer = http("200 OK", "text/event-stream", TOKEN, "Content-Length: 100000")
    with saying(answer) as address, LoomClient(address) as client:
        stream = client.generate_stream("plain", "hi")
        assert next(stream) == StreamingToken("a", 1)
        with pytest.raises(errors.ServerUnreachableError, match="broke"):
            next(stream)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"data": [1, 2], "shape": [3]},
        {"data": "!", "shape": [1], "encoding": "base64"},
        {"data": "AAA=", "shape": [1], "encoding": "base64"},
        {"data": ["x"], "shape": [1]},
        {"data": [[1], [1, 2]], "shape": [3]},
    ],
)
def test_what_is_no_hidden_state(state: dict[str, Any]) -> None:
    with pytest.raises(errors.StatesError, match="no hidden state"):
        as_array(state)


# -- threads ------------------------------------------------------------------------------------------------------


class Together(FakeRunner):
    """Says nothing before all have asked."""

    n: int = 0

    async def generate(self, request: Any) -> Any:
        async with aclosing(super().generate(request)) as told:
            async for event in told:
                while len(self.requests) < self.n:
                    await asyncio.sleep(0.01)
                yield event


def test_many_threads_share_a_client(client: LoomClient, manager: FakeManager) -> None:
    """More at once than httpx lets through unasked, which are 100."""
    manager.runner = runner = Together()
    runner.n = n = 104

    def ask(i: int) -> str:
        if i % 2:
            return client.generate("plain", "hi")["text"]
        return "".join(part.token for part in client.generate_stream("plain", "hi") if isinstance(part, StreamingToken))

    with ThreadPoolExecutor(n) as pool:
        assert set(pool.map(ask, range(n))) == {"One fox é."}
