from __future__ import annotations

from starlette.testclient import TestClient


def test_the_document_names_every_request_that_has_a_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["GenerateBody"]["properties"]["prompt"]["type"] == "string"
    expose_hidden = schemas["ChatBody"]["properties"]["expose_hidden"]["anyOf"][0]
    assert {"layers", "nodes", "compression", "encoding", "prompt"} <= expose_hidden["properties"].keys()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            has_body = method == "post" or path == "/api/delete"
            assert ("requestBody" in operation) == has_body, path
            if has_body:
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                assert reference.removeprefix("#/components/schemas/") in schemas
    assert len({op["operationId"] for ops in document["paths"].values() for op in ops.values()}) >= 9
