"""What the OpenAPI document says beyond the routes: the introduction, the sections, and the one shape of errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from app.examples import EXAMPLES

DESCRIPTION = """
Fine-tuning as a service: one request in, a LoRA adapter on S3 and a signed callback out.

The fine-tuning, files, uploads, models, chat, completions and responses routes speak OpenAI's wire format: the official clients work with
`base_url="http://…/v1"`. Press **Authorize** and give your key (`lf-…`).
"""

TAGS = [
    {"name": "Fine-tuning jobs", "description": "Train an adapter on a dataset, and follow how it goes."},
    {"name": "Files", "description": "Datasets and results: upload them, or name objects on S3."},
    {"name": "Models", "description": "Bases and fine-tuned models, as chats name them."},
    {"name": "Adapters", "description": "Names, their versions, and which one is promoted."},
    {"name": "Chat", "description": "Ask a base or a fine-tuned model."},
    {"name": "Completions", "description": "Let a model go on from a text as it stands, without a chat template."},
    {"name": "Responses", "description": "The newer way to ask, with answers that are kept and gone on from."},
    {"name": "Feedback", "description": "What answers were worth, by version, and training data made of it."},
    {"name": "Loops", "description": "Adapters that are trained again as feedback comes in."},
    {"name": "Webhooks", "description": "Who is told of events, signed with which secret, and what was answered."},
    {"name": "Imports", "description": "History brought over from OpenAI: what it was there, and what it became here."},
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


REFUSALS = {
    "400": "The request is wrong as it stands; the message says what and how.",
    "401": "There is no API key, or it is not known.",
    "403": "The key's scopes do not allow this.",
    "404": "Not there, or another project's: the two are not told apart.",
    "408": "The body stopped coming.",
    "409": "At odds with what is there; sent again as it is, it is refused again.",
    "413": "The body is larger than allowed.",
    "429": "Over a limit of the key; `retry-after` says when to come back.",
    "500": "The service failed; its log says more under the request's id.",
    "503": "Something that is needed does not answer; `retry-after` says when to come back.",
}


NAMING = (
    "/completions", "/responses", "/webhook_secret", "/feedback", "/feedback/export", "/loops", "/adapters/combine",
)  # fmt: skip
"""Ends of paths without an id whose bodies name something that may not be there."""


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
    for name in EXAMPLES.keys() & schemas.keys():
        schemas[name].setdefault("example", EXAMPLES[name])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("422", None)
            if path.startswith("/v1/"):
                operation["responses"].update(_refusals(path, method, operation))


def _refusals(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    """What an operation may answer instead: each status with its sentence, all of one shape."""
    found = {"400", "401", "429", "500", "503"}
    if method != "get":
        found |= {"403", "409"}
    if "requestBody" in operation:
        found |= {"408", "413"}
    if "{" in path or path.endswith(NAMING):
        found.add("404")
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": REFUSALS[status], "content": shape} for status in sorted(found)}
