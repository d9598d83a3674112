"""The base models a request may name: those of the models file, and what can be said at once about any other name."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from app.errors import ApiError, BadRequest
from finetune.config import JobSpec, nearest
from finetune.exit_codes import StepError
from finetune.model import catalog
from finetune.steps import ModelSource

Body = TypeVar("Body", bound=JobSpec)

OPENAI_OWN = re.compile(r"(gpt-[345]|chatgpt-|o[1-9](-|$)|davinci|babbage|curie|ada(-|$)|text-)", re.IGNORECASE)


def entries(models_file: Path | None) -> dict[str, catalog.Entry]:
    """The models file as it is now.

    Raises:
        ApiError: `models_file_unreadable`: the operator's file is broken.
    """
    try:
        return _read(models_file, (models_file or catalog.SHIPPED).stat().st_mtime_ns)
    except OSError as problem:
        raise ApiError(f"The models file cannot be read: {problem}.", code="models_file_unreadable") from problem
    except StepError as problem:
        raise ApiError(problem.message, code="models_file_unreadable") from problem


@lru_cache(maxsize=4)
def _read(models_file: Path | None, modified: int) -> dict[str, catalog.Entry]:
    """The file as it was at `modified`: parsing it costs more than the rest of a request's checks."""
    return catalog.load(models_file)


def resolve(model: str, known: dict[str, catalog.Entry]) -> ModelSource:
    """Where the base of a job comes from. A hub id is accepted unseen: FETCH_MODEL finds out.

    Raises:
        BadRequest: `model_not_found` for a name known to be absent, with the nearest; an `ft:…` is none of these.
    """
    if model.startswith("ft:"):
        message = f"There is no model {model!r} in this project to go on from. GET /v1/models lists what there is."
        raise BadRequest(message, code="model_not_found", param="model")
    try:
        source = catalog.resolve(model, known)
    except StepError as problem:
        raise BadRequest(problem.message, code=problem.code.name, param="model") from problem
    if source.kind == "hub" and source.id not in known and "/" not in source.location:
        _refuse_absent(source.location, known)
    return source


def within_limits(body: Body, known: dict[str, catalog.Entry]) -> Body:
    """A request within what the models file allows on its base: what it does not say itself is lowered to that.

    Raises:
        BadRequest: `limit_exceeded`, naming the field that asks for more.
    """
    name, at, _ = body.model.rpartition("@")
    entry = known.get(body.model) or (known.get(name) if at else None)
    given = body.hyperparameters
    if entry is None:
        return body
    for field, most in (("max_length", entry.max_length), ("n_epochs", entry.max_epochs)):
        asked = getattr(given, field)
        if most is None or not isinstance(asked, int) or asked <= most:
            continue
        if field in given.model_fields_set:
            message = f"{entry.name} takes at most {most:,} for hyperparameters.{field} here, not {asked:,}."
            raise BadRequest(message, code="limit_exceeded", param=f"hyperparameters.{field}")
        given = given.model_copy(update={field: most})
    return body.model_copy(update={"hyperparameters": given})


def _refuse_absent(name: str, known: dict[str, catalog.Entry]) -> None:
    """A name without an organisation is refused where it can only be a slip or another service's model."""
    short = {entry.rpartition("/")[2].lower(): entry for entry in known}
    near = short.get(name.lower()) or short.get(nearest(name.lower(), list(short)) or "")
    if near is None and OPENAI_OWN.match(name) is None:
        return
    hint = f"did you mean {near!r}?" if near else f"bases here are {', '.join(sorted(known))}, or any Hugging Face id."
    raise BadRequest(f"The model {name!r} does not exist here; {hint}", code="model_not_found", param="model")
