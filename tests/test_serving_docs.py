"""docs/serving.md against the code: its table of settings, and the names it mentions."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from loom_gguf.cli import serve
from loom_gguf.manager import Manager
from loom_gguf.runner import Runner
from loom_gguf.server.metrics import Metrics
from loom_gguf.settings import _ALIASES, _SETTINGS, _VARIABLES, ServerSettings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and "`LOOM_" in line
]
OF_THE_COMMAND = {"models", "config", "command", "help"}  # no settings
UNITS = {"MiB": 2**20, "GiB": 2**30}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(.*?)`", cell)


def flags() -> dict[str, str]:
    """By a setting's name."""
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    actions = commands.choices["serve"]._actions
    return {
        action.dest: next(flag for flag in action.option_strings if flag.startswith("--"))
        for action in actions
        if action.dest not in OF_THE_COMMAND
    }


def test_every_setting_has_its_row() -> None:
    assert {field.name for field in fields(ServerSettings)} == set(_SETTINGS)
    at = {key: name for name, (_, key) in _SETTINGS.items()} | {key: name for key, (name, _) in _ALIASES.items()}
    keys = [key for row in ROWS for key in quoted(row[2])]
    assert sorted(keys) == sorted(at)
    shown, of_flags = {}, flags()
    for flag, variables, key, _ in ROWS:
        name = at[quoted(key)[0]]
        shown.update(dict.fromkeys(quoted(variables), name))
        if quoted(key)[0] not in _ALIASES:
            assert quoted(flag) == [of_flags[name]] if name in of_flags else flag == "", name
    known = {f"LOOM_{name.upper()}": name for name in _SETTINGS}
    assert shown == known | {variable: name for variable, (name, _) in _VARIABLES.items()}
    assert set(of_flags) <= set(_SETTINGS)


@pytest.mark.parametrize("row", [row for row in ROWS if quoted(row[2])[0] not in _ALIASES], ids=lambda row: row[2])
def test_its_default_is_the_default(row: list[str]) -> None:
    """The first word, read as the setting itself is read."""
    name, parse = next((name, parse) for name, (parse, key) in _SETTINGS.items() if key == quoted(row[2])[0])
    default = getattr(ServerSettings(), name)
    first, *rest = row[3].rstrip(".").split()
    word = first.rstrip(",;:")
    if rest and (unit := rest[0].rstrip(",")) in UNITS:
        word = str(int(word) * UNITS[unit])
    assert default in (None, ()) if word == "none" else parse(word) == default


def test_flags_and_variables_in_the_text_exist() -> None:
    pages = [PAGE, (ROOT / "docs" / "the-loom.md").read_text()]
    every = set(flags().values()) | {"--config"}
    for page in pages:
        text = "\n".join(line for line in page.splitlines() if not line.startswith(("|", "docker ")))
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= every
    known = {f"LOOM_{name.upper()}" for name in _SETTINGS} | set(_VARIABLES)
    known |= {f"LOOM_{key.upper().replace('.', '__')}" for _, key in _SETTINGS.values()}
    assert set(re.findall(r"LOOM_[A-Z_]*[A-Z]", "\n".join(pages))) - {"LOOM"} <= known


def test_metrics_have_the_names_that_it_tells() -> None:
    told = set(re.findall(r"`(loom_[a-z_]+)(?:\{.*?\})?`", PAGE)) - {"loom_gguf"}
    text = Metrics().text(Manager(Runner.start)).decode()
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert told == {name for name in names if not name.endswith("_created")}
