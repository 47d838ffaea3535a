"""Who may ask."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from loom_gguf.server.guards import is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:11434", "LOCALHOST.", "a.localhost:1", "127.0.0.1:80", "127.9.9.9", "[::1]:11434"]
)
def test_own_hosts(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:11434", "localhost.evil.example", "10.0.0.1", "[::2]", ""]
)
def test_other_hosts(client: TestClient, host: str) -> None:
    answer = client.get("/api/tags", headers={"Host": host})
    assert answer.status_code == 403
    assert "error" in answer.json()


def test_bound_to_a_network_any_host_is_right(make_client: Any) -> None:
    assert make_client(host="0.0.0.0").get("/", headers={"Host": "box.lan"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("http://[::1]:5", 200),
        ("https://a.example", 200),
        ("https://b.example", 403),
        ("http://a.example", 403),
        ("http://localhost.b.example", 403),
        ("null", 403),
        ("file://", 403),
        ("http://[", 403),
    ],
)
def test_origins(make_client: Any, origin: str, status: int) -> None:
    client = make_client(origins=("https://a.example",))
    answer = client.get("/api/tags", headers={"Origin": origin})
    assert answer.status_code == status
    assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
    preflight = client.options("/api/chat", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == (204 if status == 200 else 403)


def test_a_page_may_send_the_headers_of_its_client(client: TestClient) -> None:
    asked = "authorization,content-type,x-stainless-lang,x-stainless-os"  # the openai package's
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    preflight = client.options("/v1/chat/completions", headers=headers | {"Access-Control-Request-Headers": asked})
    assert preflight.headers["access-control-allow-headers"] == asked


def test_all_origins(make_client: Any) -> None:
    assert make_client(origins=("*",)).get("/", headers={"Origin": "https://b.example"}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Bearer", 401), ("Basic sesame", 401), ("Bearer sesame", 200),
     ("bearer sesame", 200), ("Bearer s\u00e9same", 401)],
)  # fmt: skip
def test_key(make_client: Any, sent: str | None, status: int) -> None:
    client = make_client(api_key="sesame")
    headers = {} if sent is None else {"Authorization": sent.encode()}
    assert client.get("/api/tags", headers=headers).status_code == status
    assert client.get("/").status_code == 200


def test_body_size(make_client: Any) -> None:
    client = make_client(max_body=100)
    body = b'{"model": "plain", "prompt": "' + b"x" * 200 + b'"}'
    assert client.post("/api/generate", content=body).status_code == 413
    pieces = (body[i : i + 10] for i in range(0, len(body), 10))  # chunked: no length is told
    assert client.post("/api/generate", content=pieces).status_code == 413


def test_loopback() -> None:
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("")
