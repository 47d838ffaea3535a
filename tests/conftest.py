"""Fixtures that several files of the suite use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules that stand beside the tests

from oracle import open_model

from loom_gguf import Model

OpenModel = Callable[..., Model]

# On CI the same examples each time, so that a run says something about the change; elsewhere they are searched anew.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "search")


@pytest.fixture(autouse=True)
def _away_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout's own loom_gguf folder has no extension: child processes must find the installed package."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_models_of_this_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have models of their own."""
    nowhere = str(tmp_path_factory.getbasetemp() / "nowhere")
    for name in ("LOOM_HOME", "OLLAMA_MODELS", "HF_HUB_CACHE", "LM_STUDIO_MODELS"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.delenv("LOOM_MODELS_DIR", raising=False)


@pytest.fixture(scope="session")
def shared() -> Iterator[OpenModel]:
    """Fidelity models by name and settings, each opened once; exact unless said otherwise. Not to be closed."""
    models: dict[tuple[str, tuple[tuple[str, Any], ...]], Model] = {}

    def get(name: str, **settings: Any) -> Model:
        key = (name, tuple(sorted(settings.items())))
        if key not in models:
            models[key] = open_model(name, **settings)
        return models[key]

    yield get
    for model in models.values():
        model.close()


@pytest.fixture
def llama(shared: OpenModel) -> Model:
    """The F32 Llama in exact mode."""
    return shared("llama")


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few dots and one panel of twelve in pages: for tests to which it does not matter how a picture looks."""
    monkeypatch.setattr("loom_gguf.report.figures.DPI", 30)
    monkeypatch.setattr("loom_gguf.analysis.html.PANELS", ("norm_percentile_50",))
