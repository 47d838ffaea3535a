"""The Loom's routes about models and the machine, with a manager that loads nothing."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import FIDELITY
from fakes import N_EMBD, N_LAYER, FakeManager
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from loom_gguf import errors
from loom_gguf.devices import DEVICES, DeviceMemory
from loom_gguf.library import demo_path
from loom_gguf.server import create_app
from loom_gguf.server.loom.places import PLACES
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

GB = 2**30
GPUS = [
    DeviceMemory("CUDA0", "A card", "gpu", 24 * GB, 20 * GB),
    DeviceMemory("CUDA1", "Another card", "gpu", 16 * GB, 16 * GB),
]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[DeviceMemory]:
    found: list[DeviceMemory] = []
    monkeypatch.setattr(DEVICES, "gpus", lambda: found)
    return found


@pytest.fixture(autouse=True)
def _machine(gpus: list[DeviceMemory]) -> None:
    """No GPU, unless a test adds some; and nobody asks this machine's."""


def load(client: TestClient, **fields: Any) -> Any:
    return client.post("/models/load", json={"model": "plain"} | fields)


# -- health and metrics -------------------------------------------------------------------------------------------


def test_health_without_a_gpu(client: TestClient) -> None:
    assert client.get("/health").json() == {
        "status": "healthy",
        "model_loaded": None,
        "gpu_info": {
            "has_gpu": False,
            "default_device": "cpu",
            "allowed_devices": [],
            "memory_fraction": 1.0,
            "gpus": [],
        },
        "config": {"max_loaded_models": 3, "default_layers": [-1]},
    }
    assert client.head("/health").status_code == 200


def test_health_with_gpus(make_client: Any, gpus: list[DeviceMemory]) -> None:
    gpus += GPUS
    client = make_client(max_models=7, default_layers=None)
    client.post("/generate", json={"model": "PLAIN", "prompt": "x"})
    told = client.get("/health").json()
    assert told["model_loaded"] == "plain"
    assert told["config"] == {"max_loaded_models": 7, "default_layers": "all"}
    info = told["gpu_info"]
    assert (info["has_gpu"], info["default_device"], info["allowed_devices"]) == (True, "cuda:0", [0, 1])
    assert info["gpus"][0] == {
        "index": 0, "name": "A card", "total_memory_gb": 24.0, "free_memory_gb": 20.0, "used_memory_gb": 4.0
    }  # fmt: skip
    assert make_client(device="cuda:1").get("/health").json()["gpu_info"]["default_device"] == "cuda:1"


def test_metrics(client: TestClient, gpus: list[DeviceMemory]) -> None:
    gpus += GPUS
    client.post("/generate", json={"model": "plain", "prompt": "x"})
    told = client.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = told.text.splitlines()
    assert 'loom_requests_total{endpoint="/generate",method="POST",status="200"} 1.0' in lines
    assert 'loom_tokens_generated_total{model="plain"} 5.0' in lines
    assert "loom_models_loaded 1.0" in lines
    samples = {
        (sample.name, sample.labels["device"]): sample.value
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
        if "device" in sample.labels
    }
    assert samples == {
        ("loom_gpu_memory_used_bytes", "cuda:0"): 4 * GB,
        ("loom_gpu_memory_total_bytes", "cuda:0"): 24 * GB,
        ("loom_gpu_memory_used_bytes", "cuda:1"): 0,
        ("loom_gpu_memory_total_bytes", "cuda:1"): 16 * GB,
    }


# -- models -------------------------------------------------------------------------------------------------------


def test_no_models(make_client: Any) -> None:
    assert make_client(max_models=5, keep_alive=1200).get("/models").json() == {
        "loaded_models": [],
        "max_models": 5,
        "auto_unload_minutes": 20,
    }
    assert make_client(keep_alive=-1).get("/models").json()["auto_unload_minutes"] == 0


def test_loaded_models(client: TestClient, manager: FakeManager) -> None:
    load(client, model="Deep/Er.Q4_0")
    manager.idle_since = datetime.now(timezone.utc) - timedelta(seconds=30)
    (told,) = client.get("/models").json()["loaded_models"]
    assert 30 <= told.pop("idle_seconds") < 60
    assert 240 < told.pop("auto_unload_in") <= 300
    assert told == {
        "model_id": "Deep/Er.Q4_0",
        "device": "cpu",
        "dtype": "float32",  # of the runner, which has no file
        "hidden_size": N_EMBD,
        "num_layers": N_LAYER,
        "loader_type": "folder",
        "quantization": "none",
    }
    manager.idle_since, manager.for_ever = None, True
    (told,) = client.get("/models").json()["loaded_models"]
    assert (told["idle_seconds"], told["auto_unload_in"]) == (0, None)


def test_load(make_client: Any, manager: FakeManager) -> None:
    told = load(make_client(keep_alive=77))
    assert (told.status_code, told.json()) == (200, {
        "model_id": "plain",
        "device": "cpu",
        "dtype": "float32",
        "hidden_size": N_EMBD,
        "num_layers": N_LAYER,
        "load_time_seconds": 0.1,
        "loader_type": "folder",
        "quantization": "none",
    })  # fmt: skip
    ((params, keep_alive),) = manager.uses
    assert (params.path.name, params.device, params.n_gpu_layers, keep_alive) == ("plain.gguf", "auto", -1, 77)


@pytest.mark.parametrize(
    ("device", "wanted", "told"),
    [
        (None, ("auto", -1), "cuda"),
        ("auto", ("auto", -1), "cuda"),
        ("cpu", ("cpu", -1), "cpu"),
        ("CUDA", ("cuda", -1), "cuda"),
        ("cuda:1", ("cuda:1", -1), "cuda:1"),
    ],
)
def test_devices(
    client: TestClient,
    manager: FakeManager,
    gpus: list[DeviceMemory],
    device: str | None,
    wanted: tuple[str, int],
    told: str,
) -> None:
    gpus += GPUS
    assert load(client, device=device).json()["device"] == told
    ((params, _),) = manager.uses
    assert (params.device, params.n_gpu_layers) == wanted


def test_metal(client: TestClient, manager: FakeManager, gpus: list[DeviceMemory]) -> None:
    gpus.append(DeviceMemory("MTL0", "Apple", "gpu", GB, GB))
    assert load(client, device="metal").json()["device"] == "metal"
    assert load(client).json()["device"] == "metal:0"
    assert manager.uses[0][0].device == "metal"


@pytest.mark.parametrize("device", ["cuda:2", "metal", "tpu", "cuda:x", "cpu:1"])
def test_devices_that_are_not_there(
    client: TestClient, manager: FakeManager, gpus: list[DeviceMemory], device: str
) -> None:
    gpus += GPUS
    told = load(client, device=device)
    assert told.status_code == 400
    assert told.json()["detail"].startswith(f"there is no device {device!r}; there are cpu, CUDA0, CUDA1")
    assert not manager.uses  # nothing made room for it


@pytest.mark.parametrize(
    ("fields", "where"),
    [({"model": None}, "model"), ({"device": 0}, "device"), ({"dtype": None}, "dtype"), ({"quantization": 4},
     "quantization"), ({"loader": []}, "loader")],
)  # fmt: skip
def test_wrong_fields(client: TestClient, fields: dict[str, Any], where: str) -> None:
    told = load(client, **fields)
    assert (told.status_code, told.json()["detail"][0]["loc"]) == (422, ["body", where])


def test_errors_of_loading(client: TestClient, manager: FakeManager) -> None:
    assert load(client, model="nosuch").json() == {"detail": "model 'nosuch' not found"}
    assert load(client, model="nosuch", quantization="4bit").status_code == 404
    manager.fails = errors.ModelLoadError("no memory")
    told = load(client)
    assert (told.status_code, told.json()) == (500, {"detail": "no memory"})


# -- types and quantizations --------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path, manager: FakeManager) -> TestClient:
    """One model in several quantizations; what a file is called is not always what is in it."""
    folder = tmp_path / "several"
    (folder / "org").mkdir(parents=True)
    files = {
        "tiny-F16": "llama-f16", "tiny-Q8_0": "llama-q8_0", "tiny-Q4_K_M": "llama-q4_0", "tiny-Q4_0": "llama-q4_0",
        "tiny": "llama", "other-Q5_K_M": "llama-q8_0", "org/small.q4_0": "llama-q4_0",
    }  # fmt: skip
    for name, source in files.items():
        (folder / f"{name}.gguf").write_bytes((FIDELITY / f"{source}.gguf").read_bytes())
    app = create_app(Services(Models(folder), manager, ServerSettings(models_dir=folder)))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("name", "quantization", "chosen"),
    [
        ("tiny", None, "tiny"),
        ("tiny", "4bit", "tiny-Q4_K_M"),
        ("tiny-Q4_0", "4bit", "tiny-Q4_0"),
        ("TINY:latest", "8bit", "tiny-Q8_0"),
        ("tiny-Q4_0", "8bit", "tiny-Q8_0"),
        ("tiny", "q4_0", "tiny-Q4_0"),
        ("tiny", "Q4_K_M", "tiny-Q4_K_M"),
        ("tiny", "f16", "tiny-F16"),
        ("tiny-Q8_0", "none", "tiny"),
        ("tiny-f16", "none", "tiny-F16"),
        ("other", "Q5_K_M", "other-Q5_K_M"),
        ("other", "8bit", "other-Q5_K_M"),  # which is what its header says
        ("org/small", "4bit", "org/small.q4_0"),
    ],
)
def test_a_quantization_chooses_the_file(
    several: TestClient, manager: FakeManager, name: str, quantization: str | None, chosen: str
) -> None:
    told = load(several, model=name, quantization=quantization)
    assert told.status_code == 200, told.text
    assert told.json()["model_id"] == chosen
    assert told.json()["loader_type"] == "folder"
    assert manager.uses[0][0].path.stem == chosen.rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "quantization", "text"),
    [
        ("tiny", "gptq", "quantization: gptq belongs to PyTorch models"),
        ("tiny", "AWQ", "quantization: awq belongs to PyTorch models"),
        ("tiny", "Q6_K", "quantization: there is no 'Q6_K' of this model; there are tiny (F32), tiny-F16 (F16)"),
        ("org/small", "8bit", "quantization: there is no '8bit' of this model; there are org/small.q4_0 (Q4_0)"),
    ],
)
def test_a_quantization_that_is_not_there(several: TestClient, name: str, quantization: str, text: str) -> None:
    told = load(several, model=name, quantization=quantization)
    assert told.status_code == 400
    assert told.json()["detail"].startswith(text)


@pytest.mark.parametrize(
    ("name", "dtype", "status"),
    [
        ("tiny", "auto", 200), ("tiny", "float32", 200), ("tiny", "F32", 200), ("tiny", "float16", 400),
        ("tiny-F16", "float16", 200), ("tiny-F16", "bfloat16", 400), ("tiny-Q4_0", "q4_0", 200),
        ("tiny-Q4_0", "float16", 400),
    ],
)  # fmt: skip
def test_a_dtype_is_the_files_own(several: TestClient, name: str, dtype: str, status: int) -> None:
    told = load(several, model=name, dtype=dtype)
    assert told.status_code == status
    if status == 400:
        assert told.json()["detail"].startswith("dtype: this file's weights are")


# -- unloading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["Deep/Er.Q4_0", "Deep--Er.Q4_0", "deep--er.q4_0:latest"])
def test_unload(client: TestClient, manager: FakeManager, path: str) -> None:
    load(client, model="Deep/Er.Q4_0")
    told = client.delete(f"/models/{path}")
    assert (told.status_code, told.json()) == (200, {"status": "unloaded", "model_id": "Deep/Er.Q4_0"})
    assert [each.name for each in manager.unloaded] == ["Er.Q4_0.gguf"]
    told = client.delete(f"/models/{path}")
    assert (told.status_code, told.json()) == (404, {"detail": "model not loaded: Deep/Er.Q4_0"})


def test_unload_what_is_not_there(client: TestClient) -> None:
    told = client.delete("/models/no--such")
    assert (told.status_code, told.json()) == (404, {"detail": "model not loaded: no--such"})
    assert client.delete("/models/plain").status_code == 404


def test_names_that_have_dashes_of_their_own(tmp_path: Path, manager: FakeManager) -> None:
    folder = tmp_path / "dashes"
    folder.mkdir()
    (folder / "a--b.gguf").write_bytes((FIDELITY / "llama.gguf").read_bytes())
    client = TestClient(create_app(Services(Models(folder), manager, ServerSettings())), base_url="http://localhost")
    load(client, model="a--b")
    assert client.delete("/models/a--b").json()["model_id"] == "a--b"


# -- loaders ------------------------------------------------------------------------------------------------------


def test_loaders(client: TestClient) -> None:
    told = client.get("/loaders").json()
    assert set(told) == {"loaders", "fallback_order"}
    assert sorted(told["loaders"]) == sorted(told["fallback_order"])
    for name, loader in told["loaders"].items():
        assert set(loader) == {"name", "type"}
        assert loader["name"] == name


def test_probe(make_client: Any, folder: Path, manager: FakeManager) -> None:
    client = make_client(models_dir=folder)
    told = client.get("/loaders/probe/Deep--Er.Q4_0").json()
    assert told.pop("hidden_states")["level"] == "all"
    assert told.pop("parameters") > 0
    assert told == {
        "model_id": "Deep/Er.Q4_0",
        "configured_loader": None,
        "detected_loader": "folder",
        "can_load": {**dict.fromkeys(PLACES, False), "folder": True},
        "selected_loader": "folder",
        "architecture": "llama",
        "quantization": "Q4_0",
        "context_length": 512,
    }
    assert client.get("/loaders/probe/demo").json()["selected_loader"] == "demo"
    assert client.get("/loaders/probe/nosuch").status_code == 404
    assert not manager.uses


def test_probe_what_cannot_be_loaded(make_client: Any, folder: Path) -> None:
    whole = demo_path().read_bytes()
    (folder / "half.gguf").write_bytes(whole[: len(whole) // 2])
    told = make_client(models_dir=folder).get("/loaders/probe/half").json()
    assert (told["selected_loader"], any(told["can_load"].values())) == (None, False)
    assert told["problem"]
