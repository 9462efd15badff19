"""The OpenAPI document: what FastAPI cannot see, for the routes read their bodies themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from cogrpo_client.types import GenerateRequest, Problem
from cogrpo_server.problems import MEDIA_TYPE

_REFERENCE = "#/components/schemas/{model}"


def _reference(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=name)}}


GENERATE_EXTRA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": _reference("GenerateRequest")
            | {"example": {"prompt": "a red circle left of a blue square", "seed": 7}}
        },
    },
    "responses": {
        "200": {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, with the request body, the problems and the key that every route takes."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, definitions = models_json_schema(
            [(GenerateRequest, "validation"), (Problem, "serialization")], ref_template=_REFERENCE
        )
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        problem = {"description": "Problem", "content": {MEDIA_TYPE: _reference("Problem")}}
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                if path in ("/livez", "/readyz"):
                    operation["security"] = []
                else:
                    operation["responses"]["default"] = problem
        app.openapi_schema = schema
    return app.openapi_schema
