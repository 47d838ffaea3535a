"""Requests that several files of tests make."""

from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def generate(client: TestClient, **fields: Any) -> Any:
    return client.post("/api/generate", json={"model": "plain", "prompt": "hi", **fields})


def chat(client: TestClient, **fields: Any) -> Any:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    return client.post("/api/chat", json=body | fields)
