"""Requests that are made to do harm: labels without end, patterns that never end, JSON that is nested too deep."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from test_loom_counts import samples

from loom_gguf.server.ollama.options import is_go_template
from loom_gguf.settings import duration


def test_methods_that_nobody_knows_make_one_label(client: TestClient) -> None:
    for method in ("GET", "BREW", "STIR", "GET2"):
        client.request(method, "/api/tags")
    told = samples(client.get("/metrics").text)
    methods = {labels[2] for labels in told if labels[0] == "loom_requests_total"}
    assert methods == {"GET", "other"}


def test_tools_that_are_nested_too_deep(client: TestClient) -> None:
    deep = '{"properties": {"a": ' * 490 + "{}" + "}}" * 490
    body = (
        '{"model": "demo", "messages": [{"role": "user", "content": "x"}], "tool_choice": "required", "tools": '
        '[{"type": "function", "function": {"name": "f", "parameters": ' + deep + "}}]}"
    )
    answer = client.post("/v1/chat/completions", content=body)
    assert (answer.status_code, "nested" in answer.json()["error"]["message"]) == (400, True)


def test_patterns_end() -> None:
    """Each of these took time as the square of its length: for ever."""
    assert not is_go_template("{{if " * 400_000)
    assert is_go_template("{{if " * 400_000 + "{{if .Prompt}}")
    with pytest.raises(ValueError, match="no duration"):
        duration("1" * 2_000_000 + "x")
