"""Bodies as they came over the wire, compared key by key with the types the official client has for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openai import BaseModel
from openai.types import Completion, FileDeleted, FileObject, Model, ModelDeleted, Upload
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.responses import Response
from openai.types.uploads import UploadPart
from openai.types.webhooks import WebhookEndpoint

WHOLE: dict[str, type[BaseModel]] = {
    "fine_tuning.job": FineTuningJob,
    "fine_tuning.job.event": FineTuningJobEvent,
    "fine_tuning.job.checkpoint": FineTuningJobCheckpoint,
    "file": FileObject,
    "upload": Upload,
    "upload.part": UploadPart,
    "model": Model,
    "text_completion": Completion,
    "webhook_endpoint": WebhookEndpoint,
}
"""By `object`: every key of the type is there, optional ones as null."""
REQUIRED: dict[str, type[BaseModel]] = {"chat.completion": ChatCompletion, "response": Response}
"""Every required key is there; what concerns tools, audio and the like may be left out, as OpenAI does."""
DELETED: dict[str, type[BaseModel]] = {"file": FileDeleted, "model": ModelDeleted}


def objects(body: Any) -> Iterator[dict[str, Any]]:
    """Everything in a body that names its kind, at any depth."""
    if isinstance(body, list):
        for each in body:
            yield from objects(each)
    elif isinstance(body, dict):
        if isinstance(body.get("object"), str):
            yield body
        for each in body.values():
            yield from objects(each)


def missing(body: dict[str, Any]) -> list[str]:
    """Keys of the client's type that an object lacks; empty for kinds the client has no type for."""
    kind = body["object"]
    if body.get("deleted"):
        return _lacks(body, DELETED[kind], only_required=False) if kind in DELETED else []
    if kind in WHOLE:
        return _lacks(body, WHOLE[kind], only_required=False)
    return _lacks(body, REQUIRED[kind], only_required=True) if kind in REQUIRED else []


def _lacks(body: dict[str, Any], model: type[BaseModel], *, only_required: bool) -> list[str]:
    fields = model.model_fields.items()
    wanted = [field.alias or name for name, field in fields if field.is_required() or not only_required]
    return [f"{body['object']}.{name}" for name in wanted if name not in body]
