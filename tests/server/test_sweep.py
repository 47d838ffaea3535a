"""Requests made up from the OpenAPI document, right ones and wrong ones: none of them breaks the server.

The runner has no model, so whatever goes wrong is the server's own fault.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from fakes import FakeManager, FakeRunner
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from loom_gguf.server import create_app
from loom_gguf.server.documented import document
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of other packages' imports
    import schemathesis
    from schemathesis.core import NOT_SET

RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
NAMES = ["demo", "DEMO:latest", "no--such"]  # random names would all be of no model


def new_client() -> TestClient:
    app = create_app(Services(Models(), FakeManager(FakeRunner()), ServerSettings()))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def operations() -> dict[str, Any]:
    """Routes by what they are called in the test's name."""
    made = document(new_client().app)  # type: ignore[arg-type]
    for schema in made["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": NAMES}
    for path in made["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = {"enum": NAMES}
    found = [result.ok() for result in schemathesis.openapi.from_dict(made).get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


OPERATIONS = operations()
WITH_BODIES = [name for name, operation in OPERATIONS.items() if operation.body]


def send(client: TestClient, case: Any) -> Any:
    content = None
    if case.body is not NOT_SET:
        content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    return client.request(case.method, case.formatted_path, content=content)


def sweep(operation: Any, mode: Any, examples: int) -> set[int]:
    """Statuses of many requests to one route."""
    seen = set()
    client = new_client()

    # The same examples each time, and none kept: a sweep belongs to the document as it is.
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        answer = send(client, case)
        assert answer.status_code < 500, (case.body, answer.text)
        if answer.headers["content-type"].startswith("application/json"):
            answer.json()
        seen.add(answer.status_code)

    check()
    return seen


THE_LOOMS = (
    "GET /health, GET /metrics, GET /models, POST /models/load, DELETE /models/{model_id}, GET /loaders, "
    "GET /loaders/probe/{model_id}, POST /generate, POST /v1/generate, POST /generate/stream, POST /generate/batch, "
    "POST /embed, POST /embed/batch, POST /analyze"
)


def test_every_route_is_in_the_document() -> None:
    assert set(THE_LOOMS.split(", ")) <= set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_right_requests(name: str) -> None:
    statuses = sweep(OPERATIONS[name], RIGHT, 40 if name in WITH_BODIES else 5)
    # The Loom's schemas say all that is refused; Ollama's and OpenAI's have fields that are refused in words.
    if name in THE_LOOMS.split(", ") and not name.startswith("DELETE"):
        assert 200 in statuses
    if name.removeprefix("POST ") in ("/embed", "/embed/batch", "/analyze"):  # all that is refused is in the schema
        assert statuses <= {200, 404}


@pytest.mark.parametrize("name", WITH_BODIES)
def test_wrong_requests(name: str) -> None:
    assert max(sweep(OPERATIONS[name], WRONG, 40)) >= 400
