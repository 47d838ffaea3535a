"""What goes wrong while real models answer over HTTP: whom it hits, what they are told, and that the rest goes on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ollama
import pytest
from conftest import FIDELITY
from mutations import mutations
from oracle import open_model
from serving import Real, real_server, until

from loom_gguf import Model
from loom_gguf.runner import Runner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")

# So much that the sequence soon waits where nobody reads: of llama's 512 tokens 20 MB.
MUCH = {"nodes": ["*_norm-*", "*ffn*", "*cur-*", "*_out-*"], "layers": []}
DIED = "the process of the model llama.gguf ended"


@pytest.fixture
def real() -> Iterator[Real]:
    with real_server(FIDELITY, parallel=4, ctx=512) as real:
        yield real


def asking(model: str = "llama", **fields: Any) -> dict[str, Any]:
    """A prompt to be continued until the context is full."""
    options = {"temperature": 0, "num_thread": 1}
    return {"model": model, "prompt": "A fox", "raw": True, "options": options} | fields


def few(model: str = "llama", **fields: Any) -> dict[str, Any]:
    """Three tokens."""
    return asking(model, options={"temperature": 0, "num_thread": 1, "num_predict": 3}, **fields)


def endless(model: str = "llama", **fields: Any) -> dict[str, Any]:
    return asking(model, expose_hidden=MUCH, **fields)


def runner_of(real: Real, name: str = "llama") -> Runner:
    return real.of(name)[-1]


# -- a model's process is killed -----------------------------------------------------------------------------------


def test_killed_while_it_loads(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Runner._start_process

    def kill_at_once(self: Runner) -> Any:
        connection = begin(self)
        os.kill(self.pid, signal.SIGKILL)
        return connection

    real.post("/api/generate", few("demo"))
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(Runner, "_start_process", kill_at_once)
        bodies = [few(), few(stream=False), few(prompt=""), few()]
        answers = [pool.submit(real.post, "/api/generate", body) for body in bodies]
        for answer in answers:
            status, (told,) = answer.result()
            assert status == 500
            assert told["error"].startswith(DIED + " while it loaded (SIGKILL")
        assert real.post("/api/generate", few("demo"))[0] == 200
    assert real.post("/api/generate", few())[0] == 200
    assert [len(real.of(name)) for name in ("llama", "demo")] == [1, 1]


def test_killed_while_it_reads_a_prompt(real: Real) -> None:
    options = {"num_batch": 4, "num_thread": 1, "num_predict": 3}
    long = asking(prompt="x" * 500, expose_hidden=MUCH | {"prompt": True}, options=options)
    with real.stream("/api/generate", long) as stream:
        assert next(stream)["hidden_states"][0]["phase"] == "prompt"
        os.kill(runner_of(real).pid, signal.SIGKILL)
        rest = list(stream)
    assert all(record["phase"] == "prompt" for line in rest[:-1] for record in line["hidden_states"])
    assert [list(line) for line in rest if "error" in line] == [["error"]]
    assert rest[-1]["error"].startswith(DIED + " (SIGKILL")
    assert sum(record["shape"][1] for line in rest[:-1] for record in line["hidden_states"]) < 500 * 60
    status, lines = real.post("/api/generate", long)
    assert (status, lines[-1]["done"]) == (200, True)


def test_killed_in_mid_stream(real: Real) -> None:
    """Each of its clients gets one error, before the first byte with a status, after it as a line; nobody else does."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))
        bystander = stack.enter_context(real.stream("/api/generate", endless("demo")))
        seen = [next(bystander)]
        streams = [stack.enter_context(real.stream("/api/generate", endless())) for _ in range(3)]
        for stream in streams:
            assert [next(stream)["done"] for _ in range(3)] == [False] * 3
        victim = runner_of(real)
        os.kill(victim.pid, signal.SIGSTOP)
        before = victim.n_requests
        late = [
            pool.submit(real.post, "/api/generate", few()),
            pool.submit(real.post, "/api/generate", few(stream=False)),
            pool.submit(real.post, "/api/generate", few()),
            pool.submit(real.post, "/api/embed", {"model": "llama", "input": "x", "options": {"num_thread": 1}}),
        ]
        until(lambda: victim.n_requests == before + 4)
        os.kill(victim.pid, signal.SIGKILL)
        for stream in streams:
            *rest, last = stream
            assert list(last) == ["error"]
            assert last["error"].startswith(DIED + " (SIGKILL")
            assert all(line["done"] is False for line in rest)
            assert [r["token_index"] for line in rest for r in line["hidden_states"] if r["node"] == "l_out-0"] == [
                *range(3, 3 + len(rest))
            ]
        for answer in late:
            status, (told,) = answer.result()
            assert (status, told["error"].startswith(DIED)) == (500, True)
        assert real.post("/api/generate", few())[0] == 200
        assert runner_of(real).pid != victim.pid
        seen += bystander
    assert seen[-1]["done"] is True
    with Model("demo", n_ctx=512, precision="exact", n_threads=1) as model:
        expected = list(model.generate("A fox", max_tokens=1000))
    assert "".join(line["response"] for line in seen) == "".join(step.text for step in expected)
    assert len(real.of("demo")) == 1
    with ollama.Client(real.address) as client:
        assert {model.name for model in client.ps().models} == {"llama:latest", "demo:latest"}


def test_ollamas_client_is_told_of_a_death_in_mid_stream(real: Real) -> None:
    with ollama.Client(real.address) as client:
        # generate() itself has no field for expose_hidden, without which the answer could be over before the kill.
        parts = client._request(ollama.GenerateResponse, "POST", "/api/generate", json=endless(), stream=True)
        assert next(parts).done is False
        os.kill(runner_of(real).pid, signal.SIGKILL)
        with pytest.raises(ollama.ResponseError, match="next request loads it again"):
            list(parts)
        assert client.generate("llama", "A fox", raw=True, options={"num_predict": 2}).done


# -- clients that leave, clients that do not read ------------------------------------------------------------------


def test_who_leaves_frees_the_sequence() -> None:
    """There is one sequence, and nobody reads the answer that has it: only its end lets the next one on."""
    with real_server(FIDELITY, parallel=1, ctx=512) as real:
        for body in (endless(), endless(stream=False), endless(prompt="x" * 300)):
            with closing(Raw(real, body)) as leaves:
                until(lambda: real.runners and runner_of(real).n_requests == 1)
                if body.get("stream", True):
                    assert leaves.read(1) == b"H"
            status, lines = real.post("/api/generate", few())
            assert (status, lines[-1]["eval_count"]) == (200, 3)
        until(lambda: runner_of(real).n_requests == 0)
        assert len(real.runners) == 1


def test_who_leaves_the_queue_makes_room_in_it() -> None:
    busy = "server busy, please try again.  maximum pending requests exceeded"
    with real_server(FIDELITY, parallel=1, queue=1, ctx=512) as real, ThreadPoolExecutor(1) as pool:
        with real.stream("/api/generate", endless()) as working:
            next(working)
            for _ in range(3):
                with closing(Raw(real, few())):
                    until(lambda: runner_of(real).n_requests == 2)
                    refuses(real, busy)
                until(lambda: runner_of(real).n_requests == 1)
            waits_on = pool.submit(real.post, "/api/generate", few())
            until(lambda: runner_of(real).n_requests == 2)
            refuses(real, busy)
        status, lines = waits_on.result()
        assert (status, lines[-1]["eval_count"]) == (200, 3)


def refuses(real: Real, text: str) -> None:
    """Every way to ask is told of a full queue, with the status of Ollama's."""
    for path, body in (
        ("/api/generate", few()),
        ("/api/generate", few(stream=False)),
        ("/api/embed", {"model": "llama", "input": "x", "options": {"num_thread": 1}}),
    ):
        status, (told,) = real.post(path, body)
        assert (status, told["error"]) == (503, text)
    with ollama.Client(real.address) as client, pytest.raises(ollama.ResponseError) as caught:
        client.generate("llama", "x", options={"num_thread": 1})
    assert (caught.value.status_code, caught.value.error) == (503, text)


class Raw:
    """A client that reads nothing of itself, with the smallest buffer that the system allows."""

    def __init__(self, real: Real, body: dict[str, Any]) -> None:
        import json

        host, _, port = real.address.removeprefix("http://").partition(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(60)
        self.socket.connect((host, int(port)))
        data = json.dumps(body).encode()
        head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + data)

    def read(self, n: int) -> bytes:
        return self.socket.recv(n)

    def close(self) -> None:
        self.socket.close()


def resident(pid: int | str = "self") -> int:
    """Bytes of a process that are in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_who_does_not_read_costs_no_memory_and_nobody_time() -> None:
    """scripts/soak_stalled_reader.py does it for as long as one likes."""
    n_stalled, asked = 8, endless()
    with real_server(FIDELITY, parallel=n_stalled + 1, ctx=512) as real, ExitStack() as stack:
        with real.stream("/api/generate", asked) as whole:  # also warms up
            n_bytes = sum(len(str(line)) for line in whole)
        pid = runner_of(real).pid
        before = resident(), resident(pid)
        stalled = [stack.enter_context(closing(Raw(real, asked))) for _ in range(n_stalled)]
        assert all(raw.read(12) == b"HTTP/1.1 200" for raw in stalled)
        grown = 0
        for _ in range(6):
            options = {"num_predict": 80, "num_thread": 1, "temperature": 0}
            status, lines = real.post("/api/generate", asking(options=options))
            assert (status, lines[-1]["eval_count"]) == (200, 80)
            grown = max(grown, resident() - before[0], resident(pid) - before[1])
        assert runner_of(real).n_requests == n_stalled
        # What they have not read, 170 MB of JSON or 70 MB of float32, is nowhere.
        assert grown < n_stalled * n_bytes / 7
        stack.close()
        until(lambda: runner_of(real).n_requests == 0)


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_deleted_file(tmp_path: Path) -> None:
    shutil.copy(FIDELITY / "llama.gguf", tmp_path / "mine.gguf")
    with real_server(tmp_path, parallel=2, ctx=512) as real, ollama.Client(real.address) as client:
        with real.stream("/api/generate", endless("mine")) as stream:
            next(stream)
            (tmp_path / "mine.gguf").unlink()
            # It is loaded: everything goes on.
            assert real.post("/api/generate", few("mine"))[0] == 200
            assert "mine:latest" not in {model.model for model in client.list().models}
            (loaded,) = client.ps().models
            assert (loaded.model, loaded.context_length) == ("mine:latest", 512)
            assert loaded.details is not None
            assert loaded.details.family == "llama"
            *_, last = stream
            assert last["done_reason"] == "length"
        assert client.generate("mine", "", keep_alive=0).done_reason == "unload"
        assert not runner_of(real, "mine").alive
        for body in (few("mine"), few("mine", stream=False)):
            assert real.post("/api/generate", body) == (404, [{"error": "model 'mine' not found"}])
        assert real.post("/api/generate", few("demo"))[0] == 200


def test_a_file_that_is_deleted_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(FIDELITY / "llama.gguf", tmp_path / "mine.gguf")
    start = Runner.start

    async def too_late(params: Any) -> Runner:
        params.path.unlink()
        return await start(params)

    monkeypatch.setattr(Runner, "start", too_late)
    with real_server(tmp_path) as real:
        status, (told,) = real.post("/api/generate", few("mine"))
        assert status == 404
        assert "mine.gguf" in told["error"]


def test_damaged_files(tmp_path: Path) -> None:
    """They are not in the list, or fail in words when they are asked for; the server and whole models go on."""
    whole = (FIDELITY / "llama.gguf").read_bytes()
    damaged = {
        "empty": b"",
        "magic": whole[:4],
        "header": whole[:100],
        "half-header": whole[:3000],
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "zeros": bytes(5000),
        "zip": b"PK\x03\x04" + whole[4:],
        "version": whole[:4] + b"\xff" * 4 + whole[8:],
        "counts": whole[:8] + b"\xff" * 16 + whole[24:],
    }
    for kind in ("random_bytes", "odd_value", "odd_string"):
        damaged |= {f"{kind}-{n}": data for n, (data, _) in mutations(whole, kind, 0, 3)}
    for name, data in damaged.items():
        (tmp_path / f"{name}.gguf").write_bytes(data)
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "whole.gguf").write_bytes(whole)
    with real_server(tmp_path, max_models=2) as real, ollama.Client(real.address) as client:
        listed = {model.model for model in client.list().models}
        assert {"whole:latest", "demo:latest"} <= listed
        assert not listed & {f"{name}:latest" for name in ("empty", "magic", "header", "zip", "zeros", "folder")}
        with open_model("llama", n_ctx=256) as model:
            expected = "".join(step.text for step in model.generate("A fox", max_tokens=3))
        for name in damaged:
            status, lines = real.post("/api/generate", few(name, stream=False))
            if status == 200:  # a mutation that left a model
                assert name.rpartition("-")[0] in ("random_bytes", "odd_value", "odd_string")
                continue
            assert status in (400, 404, 500), (name, lines)
            assert len(lines[0]["error"]) > 20
            assert "Traceback" not in lines[0]["error"]
            assert "internal server error" not in lines[0]["error"], name
            with pytest.raises(ollama.ResponseError):
                client.show(name) if f"{name}:latest" not in listed else client.generate(name, "x")
        assert real.post("/api/generate", few("folder"))[0] == 404
        assert real.post("/api/generate", few("whole", stream=False))[1][0]["response"] == expected
