"""The OpenAPI document: what FastAPI cannot see, for the routes read their bodies themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from cogrpo_client.types import (
    CanaryRequest,
    CycleRequest,
    DrainRequest,
    EvaluateRequest,
    FeedbackRequest,
    GenerateRequest,
    ImagesRequest,
    OpenAIError,
    Problem,
    PromoteRequest,
    RollbackRequest,
)
from cogrpo_server.problems import MEDIA_TYPE, OPENAI_PREFIX

_REFERENCE = "#/components/schemas/{model}"


def _reference(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=name)}}


def body_of(name: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads the model `name` from its body."""
    return {"requestBody": {"required": True, "content": {"application/json": _reference(name)}}}


GENERATE_EXTRA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": _reference("GenerateRequest")
            | {"example": {"prompt": "a red circle left of a blue square", "seed": 7}}
        },
    },
    "responses": {
        "200": {
            "content": {
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "text/event-stream": {"schema": {"type": "string"}},
            }
        },
        "202": {
            "description": "With Prefer: respond-async, the generation as a job",
            "content": {"application/json": _reference("GenerationRecord")},
        },
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, with the request body, the problems and the key that every route takes."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, definitions = models_json_schema(
            [
                (GenerateRequest, "validation"),
                (ImagesRequest, "validation"),
                (FeedbackRequest, "validation"),
                (DrainRequest, "validation"),
                (CanaryRequest, "validation"),
                (PromoteRequest, "validation"),
                (RollbackRequest, "validation"),
                (EvaluateRequest, "validation"),
                (CycleRequest, "validation"),
                (OpenAIError, "serialization"),
                (Problem, "serialization"),
            ],
            ref_template=_REFERENCE,
        )
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        problem = {"description": "Problem", "content": {MEDIA_TYPE: _reference("Problem")}}
        openai = {
            "description": "Error",
            "content": {"application/json": _reference("OpenAIError")},
        }
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                if path in ("/livez", "/readyz"):
                    operation["security"] = []
                else:
                    own = openai if path.startswith(OPENAI_PREFIX) else problem
                    operation["responses"]["default"] = own
                    operation["responses"].pop("422", None)
        app.openapi_schema = schema
    return app.openapi_schema
