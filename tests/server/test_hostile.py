"""Requests that are made to do harm: labels without end, patterns that never end, JSON that is nested too deep."""

from __future__ import annotations

from starlette.testclient import TestClient
from test_loom_counts import samples


def test_methods_that_nobody_knows_make_one_label(client: TestClient) -> None:
    for method in ("GET", "BREW", "STIR", "GET2"):
        client.request(method, "/api/tags")
    told = samples(client.get("/metrics").text)
    methods = {labels[2] for labels in told if labels[0] == "loom_requests_total"}
    assert methods == {"GET", "other"}
