"""What an operator meets: little room for models, idle ones, several APIs on one model, and wrong settings."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import FIDELITY
from fakes import FakeRunner
from prometheus_client.parser import text_string_to_metric_families
from serving import real_server, serving, until
from starlette.testclient import TestClient

from loom_gguf import Model
from loom_gguf.cli import main
from loom_gguf.client import LoomClient, StreamingResult
from loom_gguf.manager import Manager
from loom_gguf.requests import LoadParams
from loom_gguf.runner import Runner
from loom_gguf.server import create_app
from loom_gguf.server.metrics import Metrics
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.server.sockets import listening
from loom_gguf.settings import ServerSettings

# -- with a clock that is set by hand -----------------------------------------------------------------------------


@dataclass
class Working(FakeRunner):
    """Knows whether it works, and must not be closed then."""

    alive: bool = True
    working: int = 0

    async def generate(self, request: Any) -> Any:
        self.working += 1
        try:
            async for event in super().generate(request):
                yield event
        finally:
            self.working -= 1

    async def close(self) -> None:
        assert not self.working
        await asyncio.sleep(0)  # a process takes a while to end
        self.alive = False


@dataclass
class House:
    """A server without a network, its models, and the time."""

    client: httpx.AsyncClient = field(init=False)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    runners: list[tuple[str, Working]] = field(default_factory=list)
    time: datetime = datetime(2030, 1, 1, tzinfo=timezone.utc)
    sleepers: list[tuple[datetime, asyncio.Event]] = field(default_factory=list)

    async def load(self, params: LoadParams) -> Working:
        assert not any(runner.alive for _, runner in self.runners), "there is room for one"
        self.runners.append((params.path.stem, Working(hold=self.hold)))
        return self.runners[-1][1]

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.sleepers.append((self.time + timedelta(seconds=seconds), woken := asyncio.Event()))
        await woken.wait()

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        for end, woken in self.sleepers:
            if end <= self.time:
                woken.set()

    async def ask(self, model: str) -> str:
        told = await self.client.post("/generate", json={"model": model, "prompt": "x", "return_hidden_states": False})
        assert told.status_code == 200, told.text
        text: str = told.json()["text"]
        return text

    async def models(self) -> list[tuple[str, float, float | None]]:
        """Name, idle_seconds, auto_unload_in."""
        told = (await self.client.get("/models")).json()["loaded_models"]
        return [(model["model_id"], model["idle_seconds"], model["auto_unload_in"]) for model in told]

    async def until(self, ready: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not ready():
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), 60)


def play(folder: Path, scenario: Callable[[House], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        chosen = ServerSettings(max_models=1, **settings)
        house = House()
        manager = Manager(house.load, max_models=1, default_keep_alive=chosen.keep_alive, clock=house)
        app = create_app(Services(Models(folder), manager, chosen))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as house.client:
            await asyncio.wait_for(scenario(house), 60)
        await manager.close()

    asyncio.run(run())


def test_room_for_one_and_requests_for_two(folder: Path) -> None:
    async def scenario(house: House) -> None:
        first = [asyncio.create_task(house.ask("plain")) for _ in range(2)]
        await house.until(lambda: bool(house.runners) and house.runners[0][1].working == 2)
        other = [asyncio.create_task(house.ask("Deep/Er.Q4_0")) for _ in range(2)]
        for _ in range(50):
            await asyncio.sleep(0.001)
        house.forward(10_000)
        assert [name for name, _ in house.runners] == ["plain"]
        assert [name for name, _, _ in await house.models()] == ["plain"]
        house.hold.set()
        more = [asyncio.create_task(house.ask("plain"))]
        assert set(await asyncio.gather(*first, *other, *more)) == {"One fox é."}
        assert {name for name, _ in house.runners} == {"plain", "Er.Q4_0"}

    play(folder, scenario)


def test_an_idle_model_leaves_in_its_time(folder: Path) -> None:
    async def scenario(house: House) -> None:
        asked = asyncio.create_task(house.ask("plain"))
        await house.until(lambda: bool(house.runners) and house.runners[0][1].working == 1)
        house.forward(5000)
        assert await house.models() == [("plain", 0, 1200)]
        house.hold.set()
        await asked
        assert await house.models() == [("plain", 0, 1200)]
        house.forward(300.25)
        assert await house.models() == [("plain", 300.2, 899.8)]
        await house.ask("plain")
        assert await house.models() == [("plain", 0, 1200)]
        house.forward(1199)
        assert await house.models() == [("plain", 1199, 1)]
        house.forward(1)
        await house.until(lambda: not house.runners[0][1].alive)
        assert await house.models() == []
        assert len(house.runners) == 1

    play(folder, scenario, keep_alive=1200.0)


def test_zero_minutes_are_for_ever(folder: Path) -> None:
    settings = ServerSettings.read({"LOOM_AUTO_UNLOAD_MINUTES": "0"}, {})

    async def scenario(house: House) -> None:
        house.hold.set()
        await house.ask("plain")
        house.forward(1e8)
        assert await house.models() == [("plain", 1e8, None)]
        assert (await house.client.get("/models")).json()["auto_unload_minutes"] == 0

    play(folder, scenario, keep_alive=settings.keep_alive)


# -- with real models ---------------------------------------------------------------------------------------------


def test_real_models_that_have_room_for_one() -> None:
    """Both are at work when the other is asked for; everybody gets all of the answer."""
    names = ("llama", "demo")
    texts = {}
    for name in names:
        with Model(FIDELITY / "llama.gguf" if name == "llama" else name, n_ctx=256, precision="exact") as model:
            texts[name] = "".join(step.text for step in model.generate("A fox", max_tokens=24))
    with real_server(FIDELITY, max_models=1) as real, LoomClient(real.address, timeout=60) as client:
        stream = client.generate_stream("llama", "A fox", max_tokens=24, temperature=0)
        begun = [next(stream)]

        def ask(name: str) -> str:
            return client.generate(name, "A fox", max_tokens=24, temperature=0)["text"]

        with ThreadPoolExecutor(6) as pool:
            asked = [(name, pool.submit(ask, name)) for name in names * 3]
            *_, result = [*begun, *stream]
            assert isinstance(result, StreamingResult)
            assert result.text == texts["llama"]
            for name, answer in asked:
                assert answer.result(60) == texts[name], name
        assert {runner.params.path.stem for runner in real.runners} == set(names)
        assert len([runner for runner in real.runners if runner.alive]) == 1


def test_one_loaded_model_for_all_apis(tmp_path: Path) -> None:
    """/models/load says where; nobody else says anything, and nobody loads it again."""
    metrics = Metrics()
    manager = Manager(metrics.timing(Runner.start), max_models=3)
    settings = ServerSettings(ctx=256, keep_alive=1200)
    services = Services(Models(tmp_path), manager, settings, metrics)
    with serving(services) as address, httpx.Client(base_url=address, timeout=60) as client:

        def told(path: str, **fields: Any) -> Any:
            answer = client.post(path, json={"model": "demo", **fields})
            assert answer.status_code == 200, answer.text
            return answer.json()

        assert told("/models/load", device="cpu")["device"] == "cpu"
        (before,) = client.get("/models").json()["loaded_models"]
        messages = [{"role": "user", "content": "hi"}]
        told("/api/generate", prompt="A fox", stream=False, options={"num_predict": 2})
        told("/api/chat", messages=messages, stream=False, options={"num_predict": 2})
        told("/v1/chat/completions", messages=messages, max_tokens=2)
        told("/v1/completions", prompt="A fox", max_tokens=2)
        told("/v1/embeddings", input="A fox")
        told("/generate", prompt="A fox", max_tokens=2)
        told("/generate/batch", prompts=["A fox", "x"], max_tokens=2)
        told("/embed", text="A fox")
        told("/models/load")
        (after,) = client.get("/models").json()["loaded_models"]
        for clock in ("idle_seconds", "auto_unload_in"):
            assert 0 <= before.pop(clock) <= 1200
            assert 0 <= after.pop(clock) <= 1200
        assert after == before
        assert [model["name"] for model in client.get("/api/ps").json()["models"]] == ["demo:latest"]
        families = text_string_to_metric_families(client.get("/metrics").text)
        counts = {sample.name: sample.value for family in families for sample in family.samples}
        assert (counts["loom_model_loads_total"], counts["loom_models_loaded"]) == (1, 1)


# -- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server:\n  http_port: [1\n", 3, "this is not YAML"),
        ("server:\n  http_prot: 80\n", 2, "http_prot"),
        ("server:\n  http_port: 8080\nmodels:\n  max_loaded: many\n", 4, "models.max_loaded: 'many'"),
        ("modles: {max_loaded: 3}\n", 1, "modles"),
        ("gpu:\n\n  tensor_split: {a: 1}\n", 3, "gpu.tensor_split"),
    ],
)
def test_wrong_files_of_settings(text: str, line: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(text)
    assert main(["serve", "--port", "0", "--config", "bad.yaml"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert f"bad.yaml, line {line}" in error
    assert words in error
    assert "Traceback" not in error


def test_a_wrong_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_MAX_MODELS", "none")
    assert main(["serve", "--port", "0"]) == 1
    assert "LOOM_MAX_MODELS: 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:97", "tpu"])
def test_a_device_that_is_not_there(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Told at once, not with the first request; nothing listens."""
    assert main(["serve", "--port", "0", "--device", device]) == 1
    error = capsys.readouterr().err
    assert f"there is no device '{device}'" in error
    assert "serving" not in error


def test_a_device_that_a_request_names(client: TestClient) -> None:
    told = client.post("/models/load", json={"model": "plain", "device": "cuda:97"})
    assert (told.status_code, "there is no device 'cuda:97'" in told.json()["detail"]) == (400, True)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as short:  # pytest's own folders may be too long for a socket
        yield Path(short, "s")


def arguments(path: Path) -> list[str]:
    return ["serve", "--transport", "unix", "--unix-socket", str(path)]


def test_a_socket_that_is_taken(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(ServerSettings(transport="unix", unix_socket=path)):
        assert main(arguments(path)) == 1
        assert path.is_socket()
    assert str(path) in (error := capsys.readouterr().err)
    assert "listens on" in error


def test_a_socket_where_none_can_be(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(path / "further")) == 1
    assert "--unix-socket: cannot listen" in capsys.readouterr().err
    path.write_text("precious")
    assert main(arguments(path)) == 1
    assert "is no socket" in capsys.readouterr().err
    assert path.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.parent.chmod(0o500)
    try:
        assert main(arguments(path)) == 1
    finally:
        path.parent.chmod(0o700)
    assert "Permission denied" in capsys.readouterr().err


def test_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    command = [sys.executable, "-m", "loom_gguf", *arguments(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while not re.search(r" at unix://", line := process.stderr.readline()):
                assert line, process.wait()
            with LoomClient(f"unix://{path}", timeout=60) as client:
                told = client.generate("demo", "A fox", max_tokens=2, temperature=0)
                assert (told["token_count"], list(told["hidden_states"] or {})) == (2, ["-1"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    until(lambda: not path.exists())
