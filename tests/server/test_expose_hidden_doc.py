"""docs/expose-hidden.md: its tables have every field, and its program decodes every form of a record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import generate, lines
from fakes import row
from starlette.testclient import TestClient

from loom_gguf.server.ollama.schemas import ExposeHidden, Record

PAGE = (Path(__file__).parent.parent.parent / "docs" / "expose-hidden.md").read_text()
TABLES = [set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) for part in PAGE.split("## ")]


def test_every_field_is_told() -> None:
    assert TABLES[0] == set(ExposeHidden.model_fields)
    assert TABLES[1] == set(Record.__annotations__)


@pytest.mark.parametrize("encoding", ["json", "base64"])
@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, 0),
        ({"compression": "float16"}, 1e-3),
        ({"compression": "int8"}, 1e-2),
        ({"compression": "int8", "scale_block": 3}, 1e-2),
    ],
)
def test_its_program_decodes(client: TestClient, encoding: str, fields: dict[str, Any], bound: float) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/expose-hidden.md", "exec"), names)
    asked = {"encoding": encoding, "prompt": True, **fields}
    records = [r for line in lines(generate(client, expose_hidden=asked)) for r in line.get("hidden_states", ())]
    assert len(records) == 3 * (1 + 5)
    for record in records:
        got = names["rows"](record)
        wanted = np.stack([row(record["node"], record["position"] + r) for r in range(record["shape"][1])])[None]
        assert got.shape == wanted.shape == tuple(record["shape"])
        assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()
