"""What the OpenAPI document says beyond the routes: the introduction, the sections, and the one shape of errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

DESCRIPTION = """
Fine-tuning as a service: one request in, a LoRA adapter on S3 and a signed callback out.

The fine-tuning, files, models and chat routes speak OpenAI's wire format: the official clients work with
`base_url="http://…/v1"`. Press **Authorize** and give your key (`lf-…`).
"""

TAGS = [
    {"name": "Fine-tuning jobs", "description": "Train an adapter on a dataset, and follow how it goes."},
    {"name": "Files", "description": "Datasets and results: upload them, or name objects on S3."},
    {"name": "Models", "description": "Bases and fine-tuned models, as chats name them."},
    {"name": "Adapters", "description": "Names, their versions, and which one is promoted."},
    {"name": "Chat", "description": "Ask a base or a fine-tuned model."},
    {"name": "Health", "description": "For supervisors and load balancers; no key is needed."},
]

ERROR = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and the way out."},
                "type": {"type": "string", "examples": ["invalid_request_error"]},
                "param": {"type": ["string", "null"], "description": "The field it is about, as a dotted path."},
                "code": {"type": ["string", "null"], "description": "A stable name a program can act on."},
                "errors": {"type": "array", "items": {"type": "object"}, "description": "With several mistakes, each."},
            },
        }
    },
}


def describe(app: FastAPI) -> None:
    """Give `app` its introduction, and a document in which every error has the shape it really has."""
    app.description, app.openapi_tags = DESCRIPTION, TAGS
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _put_errors(generate())
        return dict(app.openapi_schema or {})

    app.openapi = openapi  # type: ignore[method-assign]


def _put_errors(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR
    answer = {
        "description": "An error, with a sentence and a code.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if path.startswith("/v1/"):
                operation["responses"].update({"4XX": answer, "5XX": answer})
