"""What the README and the documents of commands show must run, as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from oracle import fidelity_file, torch_says
from safetensors.numpy import save_file

from loom_gguf.cli import main

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/analysis.md", "docs/lens.md", "docs/compare.md")


def blocks(language):
    """(file, code) of each block in this language."""
    return [
        (file, code)
        for file in FILES
        for code in re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)
    ]


def sessions():
    """(file, commands) of each block of commands: a later one may read what an earlier one wrote."""
    found = [
        (file, [line for line in code.splitlines() if line.startswith("loom-gguf")]) for file, code in blocks("sh")
    ]
    return [(file, commands) for file, commands in found if commands]


def test_there_is_something_to_run():
    for file in FILES:
        assert any(each == file for each, _ in blocks("python")), file
        assert any(each == file for each, _ in sessions()), file
    assert sum(len(commands) for _, commands in sessions()) >= 14


@pytest.fixture
def files(tmp_path):
    """Files of the names that the documents use."""
    for name, source in (("model", "llama"), ("model-f16", "llama-f16"), ("model-q4_k_m", "llama-q4_0")):
        (tmp_path / f"{name}.gguf").symlink_to(fidelity_file(source))
    (tmp_path / "prompts.txt").write_text("One morning\nThe end\n")
    truth = torch_says("llama")
    arrays = {f"hidden_states.{i}": rows for i, rows in enumerate(truth["hidden_states"])}
    save_file({**arrays, "tokens": truth["tokens"].astype(np.int64)}, tmp_path / "pytorch.safetensors")


@pytest.mark.usefixtures("files", "small_pictures")
@pytest.mark.parametrize(("file", "code"), blocks("python"), ids=lambda each: each if each in FILES else "")
def test_python(file, code):
    exec(compile(code, file, "exec"), {})


@pytest.mark.usefixtures("files", "small_pictures")
@pytest.mark.parametrize(("file", "commands"), sessions(), ids=lambda each: each if each in FILES else "")
def test_commands(file, commands, capsys, tmp_path):
    if file == "docs/analysis.md":
        assert main(["run", "demo", "One", "--max-tokens", "2", "--out", "states.safetensors", "--threads", "1"]) == 0
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        if arguments[0] == "serve":
            continue  # until it is stopped; tests/server has it
        capsys.readouterr()
        assert main(arguments) == 0, command
        assert capsys.readouterr().out
