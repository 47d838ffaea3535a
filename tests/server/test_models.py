"""Names to files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from loom_gguf.errors import ModelNotFoundError
from loom_gguf.library import demo_path
from loom_gguf.server import models as module
from loom_gguf.server.models import UNKNOWN_DIGEST, Models
from loom_gguf.server.tokens import TokenTexts


@pytest.mark.parametrize(
    ("name", "file"),
    [("plain", "plain.gguf"), ("PLAIN", "plain.gguf"), ("plain:latest", "plain.gguf"), ("Plain:LATEST", "plain.gguf"),
     ("deep/er.q4_0", "Deep/Er.Q4_0.gguf")],
)  # fmt: skip
def test_names(folder: Path, name: str, file: str) -> None:
    assert Models(folder).find(name).path == folder / file


@pytest.mark.parametrize(
    "name",
    ["../secret", "Deep/../../secret", "/etc/passwd", "plain.gguf/../../secret", "~/secret", "secret", "link", "a\0b",
     "", ".", "..", "x" * 100_000, "plain\n", "plain:other", "Deep", "..\\secret", "folderlink/secret", ".hidden",
     "%2e%2e/secret", "notes"],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    secret = folder.parent / "secret.gguf"
    secret.write_bytes((folder / "plain.gguf").read_bytes())
    (folder / "link.gguf").symlink_to(secret)
    (folder / "folderlink").symlink_to(folder.parent)
    (folder / ".hidden.gguf").write_bytes(b"GGUF")
    (folder / "notes.txt").write_text("no model")
    with pytest.raises(ModelNotFoundError) as caught:
        Models(folder).find(name)
    assert len(str(caught.value)) < 300


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "same.gguf").symlink_to(folder / "plain.gguf")
    assert Models(folder).find("same").path == folder / "same.gguf"


def test_same_name_in_another_case(folder: Path) -> None:
    (folder / "Plain.gguf").write_bytes(b"GGUF")
    found = Models(folder)
    if len(found.entries()) == 4:
        pytest.skip("this file system does not tell cases apart")
    assert found.find("Plain").path.name == "Plain.gguf"
    assert found.find("plain").path.name == "plain.gguf"


def test_files_of_the_command_line_and_the_demo(folder: Path) -> None:
    other = folder.parent / "other.gguf"
    other.write_bytes(b"GGUF")
    found = Models(None, [other])
    assert [entry.name for entry in found.entries()] == ["demo", "other"]
    assert found.find("demo:latest").path == demo_path()


def test_parts_of_a_split_model_are_one(folder: Path) -> None:
    for part in (1, 2):
        (folder / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    assert Models(folder).find("big").path.name == "big-00001-of-00002.gguf"
    assert not [entry for entry in Models(folder).entries() if "of" in entry.name]


def test_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "plain.gguf"
    found = Models(folder)
    assert found.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"other")
    os.utime(path, (1, 1))
    assert found.digest(path) == hashlib.sha256(b"other").hexdigest()
    monkeypatch.setattr(module, "_HASHED_AT_ONCE", 0)
    later = Models(folder)
    assert later.digest(path) in (UNKNOWN_DIGEST, hashlib.sha256(b"other").hexdigest())
    import time

    until = time.monotonic() + 10
    while later.digest(path) == UNKNOWN_DIGEST and time.monotonic() < until:
        time.sleep(0.01)
    assert later.digest(path) == hashlib.sha256(b"other").hexdigest()


def test_texts_of_tokens() -> None:
    bpe = TokenTexts({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["\u0120fox", "\u00c3\u00a9", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 3],
    })  # fmt: skip
    assert [bpe(i) for i in (-1, 0, 1, 2, 3)] == [b"", b" fox", "é".encode(), b"<|end|>", b""]
    spm = TokenTexts({
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["\u2581fox", "<0x0A>", "<s>"],
        "tokenizer.ggml.token_type": [1, 6, 3],
    })  # fmt: skip
    assert [spm(i) for i in range(3)] == [b" fox", b"\n", b"<s>"]
