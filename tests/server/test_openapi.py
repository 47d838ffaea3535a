from __future__ import annotations

from starlette.testclient import TestClient


def test_the_document_names_every_request_that_has_a_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["GenerateBody"]["properties"]["prompt"]["type"] == "string"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("requestBody" in operation) == (method == "post"), path
            if method == "post":
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                assert reference.removeprefix("#/components/schemas/") in schemas
    assert len({op["operationId"] for ops in document["paths"].values() for op in ops.values()}) >= 9
