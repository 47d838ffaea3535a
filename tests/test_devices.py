"""The devices, asked in a process of their own."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from loom_gguf import devices
from loom_gguf.devices import DeviceMemory, Devices
from loom_gguf.placement import devices as asked_here


def test_this_machine() -> None:
    known = Devices().known()
    assert [(device.name, device.kind) for device in known] == [(device.name, device.kind) for device in asked_here()]
    assert all(0 <= device.free <= device.total for device in known)
    (cpu,) = [device for device in known if device.kind == "cpu"]
    assert cpu.total > 2**28
    assert not cpu.is_gpu


@pytest.mark.parametrize(("kind", "asked"), [("cpu", 1), ("gpu", 2), ("igpu", 2)])
def test_only_what_can_change_is_asked_again(monkeypatch: pytest.MonkeyPatch, kind: str, asked: int) -> None:
    now, calls = [1000.0], []

    def ask() -> Any:
        calls.append(now[0])
        return (DeviceMemory("X0", "x", kind, 2, 1),)

    monkeypatch.setattr(devices, "_ask", ask)
    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = Devices()
    for seconds in (0, 10, 10, 20):
        now[0] += seconds
        assert len(found.known()) == 1
    assert len(calls) == asked
    assert len(found.gpus()) == (kind != "cpu")


@pytest.mark.parametrize("error", [OSError("no"), subprocess.TimeoutExpired("x", 1), ValueError("no JSON")])
def test_a_child_that_fails_means_no_devices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert Devices().gpus() == []
    assert "cannot be told" in caplog.text
