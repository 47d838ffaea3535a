"""The commands pull, copy and rm."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import StandIn, content_of
from stores import OllamaStore

from loom_gguf.cli import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "home"


def test_pull_copy_rm(
    server: StandIn, llama: bytes, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    server.add_repository("o/r", {"r-Q8_0.gguf": llama, "r-F32.gguf": llama})
    assert main(["pull", "hf.co/o/r"]) == 0
    out, err = capsys.readouterr()
    assert out == "hf.co/o/r:Q8_0\n"
    assert [line.partition(" ")[0] for line in err.splitlines()] == [
        "pulling",
        "pulling",
        "verifying",
        "writing",
        "success",
    ]
    assert main(["where", "hf.co/o/r"]) == 0
    assert capsys.readouterr().out.startswith(f"own\thf.co/o/r:Q8_0\t{home}/models/blobs/sha256-")
    assert not (tmp_path / "hub").exists()
    assert main(["copy", "hf.co/o/r", "mine"]) == 0
    assert capsys.readouterr().out == "mine\n"
    assert main(["show", "mine"]) == 0
    capsys.readouterr()
    assert main(["rm", "hf.co/o/r", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "removed hf.co/o/r:Q8_0 (0 bytes freed)\n" in err
    assert "removed mine (39" in err
    assert not list((home / "models" / "blobs").iterdir())


def test_errors(capsys: pytest.CaptureFixture[str], server: StandIn, tmp_path: Path) -> None:
    theirs = OllamaStore(tmp_path / "ollama")
    theirs.add("theirs")
    before = content_of(theirs.root)
    for arguments, words in (
        (["pull", "hf.co/o/nosuch"], "no repository"),
        (["pull", f"{server.host}/a/b"], "check its name"),
        (["pull", "../x"], "no model's name"),
        (["pull", "http://192.0.2.1/a/b"], "--insecure"),
        (["pull", "demo"], "comes with the package"),
        (["rm", "nosuch"], "not found"),
        (["rm", "theirs"], "ollama rm"),
        (["rm", "demo"], "comes with the package"),
        (["copy", "theirs", "x"], "Ollama's"),
        (["copy", "nosuch", "x"], "not found"),
    ):
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert words in err.splitlines()[-1]
        assert err.splitlines()[-1].startswith("loom-gguf: error: ")
    assert content_of(theirs.root) == before


@pytest.mark.parametrize("arguments", [["pull"], ["pull", "a", "b"], ["copy", "a"], ["rm"], ["rm", "--all"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: loom-gguf ")


def test_unfinished_downloads(
    server: StandIn, llama: bytes, capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loom_gguf.pull.transport.Patience.tries", 1)
    server.add_repository("o/r", {"r-Q8_0.gguf": llama})
    server.faults.append(("cut", 10_000))
    server.faults.append(("status", 403))
    assert main(["pull", "hf.co/o/r"]) == 1
    assert "rm" not in capsys.readouterr().out
    assert [path.stat().st_size for path in (home / "models" / "partial").iterdir()] == [10_000]
    assert main(["list", "--place", "own"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["rm", "--partial"]) == 0
    assert "10.0 kB freed" in capsys.readouterr().err
    assert not list((home / "models" / "partial").iterdir())
