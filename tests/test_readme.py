"""What the README shows must run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from loom_gguf.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in SHELL for line in block.splitlines() if line.startswith("loom-gguf")]


def test_there_is_something_to_run():
    assert len(PYTHON) >= 2
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python(code, capsys):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, capsys):
    command = command.replace("model.gguf", "demo")
    arguments = shlex.split(command, comments=True)[1:]
    if arguments[0] == "serve":
        pytest.skip("serves until it is stopped; tests/server has it")
    assert main(arguments) == 0
    out, _ = capsys.readouterr()
    assert out
