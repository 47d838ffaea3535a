"""Routes that tell the OpenAPI document what they take, because they read their requests' bodies themselves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]

_JSON = "application/json"
_PARAMETER = re.compile(r"\{(\w+)")
_SCHEMAS = "x-schemas"  # in a route's extras until the document is made: schemas by name
_REFERENCE = "#/components/schemas/{model}"
_ERROR: dict[int | str, dict[str, Any]] = {"default": {"description": "An error, in words", "content": {_JSON: {}}}}


def add(
    routes: APIRouter,
    methods: str,
    path: str,
    handler: Handler,
    *,
    body: type[BaseModel] | None = None,
    answers: str = _JSON,
) -> None:
    """Add a route. `methods`: names with spaces between them. `answers`: media types, likewise."""
    content: dict[str, Any] = {kind: {} for kind in answers.split()}
    extras: dict[str, Any] = {} if body is None else _request_body(body)
    if names := _PARAMETER.findall(path):
        # The handlers take them from the request, so FastAPI does not know of them.
        extras["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    for method in methods.split():
        routes.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=None,
            responses={200: {"content": content}, **_ERROR},
            openapi_extra=extras,
            include_in_schema=method != "HEAD",
        )


def _request_body(body: type[BaseModel]) -> dict[str, Any]:
    schema = body.model_json_schema(ref_template=_REFERENCE)
    schemas = schema.pop("$defs", {}) | {body.__name__: schema}
    reference = {"$ref": _REFERENCE.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": reference}}}, _SCHEMAS: schemas}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an app whose routes were made with add()."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for operations in made["paths"].values():
        for operation in operations.values():
            for name, schema in operation.pop(_SCHEMAS, {}).items():
                if schemas.setdefault(name, schema) != schema:
                    raise ValueError(f"two schemas are called {name}: rename one of the classes")
    return made
