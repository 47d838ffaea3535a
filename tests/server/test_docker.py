"""What can be said of Dockerfile and compose.yaml without Docker: shell, paths, variables, and the health check."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import FakeManager
from serving import serving

from loom_gguf.library import LibrarySettings
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

ROOT = Path(__file__).parent.parent.parent
# Without comments, with one instruction on a line.
DOCKERFILE = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
HOME = Path("/home/loom")


def of(stage: str, instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.*)$", STAGES[stage], re.MULTILINE)


def environment(stage: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)=("[^"]*"|\S+)', " ".join(of(stage, "ENV"))))


@pytest.mark.parametrize("stage", STAGES)
def test_commands_are_shell(stage: str) -> None:
    for command in of(stage, "RUN"):
        script = re.sub(r"^(--mount=\S+ )+", "", command)
        done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", ["build-cpu", "build-cuda"])
def test_the_pin_is_found(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("grep") is None:
        pytest.skip("needs grep")
    (line,) = (command for command in of(stage, "RUN") if "grep" in command)
    script = line[line.index("/opt/loom/bin/pip install") :].replace("/opt/loom/bin/pip install", "echo")
    monkeypatch.chdir(ROOT)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    pins = set(re.findall(r"llama-cpp-python==[\d.]+", (ROOT / "pyproject.toml").read_text()))
    assert {done.stdout.strip()} == pins


def test_what_is_copied_has_what_is_built() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = re.findall(r"(?:csrc|vendor)/[\w/.-]+", (ROOT / "CMakeLists.txt").read_text())
    for needed in ("pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", "loom_gguf/data/demo.gguf", *sources):
        assert (ROOT / needed).exists()
        assert not {needed, needed.partition("/")[0]} & set(ignored), needed
        assert not needed.endswith((".so", ".egg-info"))


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_image_is_set_as_the_server_reads_it(stage: str) -> None:
    found = environment(stage)
    path = found.pop("PATH")
    settings = ServerSettings.read(found, {})
    assert {f"LOOM_{name}" for name in ("HOST", "MODELS_DIR")} == set(found)
    assert (settings.host, settings.models_dir) == ("0.0.0.0", Path("/models"))
    assert of(stage, "EXPOSE") == [str(settings.port)]
    copied = of(stage, "COPY")[0].split()
    assert copied == [f"--from=build-{stage}", "/opt/loom", "/opt/loom"]
    assert path == "/opt/loom/bin:$PATH"
    assert of(stage, "USER") == ["loom"]
    assert json.loads(of(stage, "ENTRYPOINT")[0]) == ["loom-gguf"]
    assert json.loads(of(stage, "CMD")[0]) == ["serve"]
    own = LibrarySettings.read({"HOME": str(HOME)}).own
    assert f"--parents /models {own.parent} " in of(stage, "RUN")[0]


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_health_check_needs_no_key(stage: str, manager: FakeManager, folder: Path) -> None:
    (check,) = (each.partition("CMD ")[2] for each in of(stage, "HEALTHCHECK"))
    _, flag, code = json.loads(check)
    settings = ServerSettings.read(environment(stage) | {"LOOM_API_KEY": "secret"}, {})
    with serving(Services(Models(folder), manager, settings)) as address:
        code = code.replace("http://127.0.0.1:11434", address)
        assert address in code
        healthy = subprocess.run([sys.executable, flag, code], capture_output=True, timeout=60, check=False)
    ill = subprocess.run([sys.executable, flag, code], capture_output=True, timeout=60, check=False)
    assert (healthy.returncode, ill.returncode) == (0, 1), healthy.stderr


def test_compose() -> None:
    services = COMPOSE["services"]
    assert {service["build"]["target"] for service in services.values()} == {"cpu", "cuda"}
    assert services["loom-cuda"]["profiles"] == ["cuda"]  # so that `docker compose up` starts the other alone
    assert "profiles" not in services["loom"]
    known = LibrarySettings.read({"HOME": str(HOME)})
    for service in services.values():
        assert service["ports"] == [f"127.0.0.1:{ServerSettings().port}:{ServerSettings().port}"]
        given = {}
        for name, text in service["environment"].items():
            variable, default = re.fullmatch(r"\$\{(\w+):-(.*)\}", text).groups()  # type: ignore[union-attr]
            assert variable == name
            given[name] = default
        assert given.pop("HF_TOKEN") == ""
        # Where nothing is said, the server is as it is without Docker.
        assert ServerSettings.read(given, {}) == ServerSettings()
        mounted = {volume.removesuffix(":ro").rpartition(":")[2] for volume in service["volumes"]}
        assert mounted == {"/models", str(known.own.parent), str(known.hugging_face.parent)}
        assert (
            {"loom-data"}
            == set(COMPOSE["volumes"])
            == {volume.partition(":")[0] for volume in service["volumes"] if re.match(r"[\w-]+:", volume)}
        )
