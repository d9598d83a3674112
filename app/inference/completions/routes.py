"""POST /v1/completions: which model goes on from which texts, whole or as a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.auth import Reader
from app.db import Database
from app.errors import ApiError
from app.inference.completions.ask import Asked, all_of, in_own_words
from app.inference.completions.schemas import Completion, CompletionCreate
from app.inference.completions.stream import CompletionStream
from app.inference.engines import Engine
from app.inference.passing import PassedOn, engine_of, unless_hung_up, whole_or_streamed
from app.inference.resolve import find_model
from app.settings import Settings

router = APIRouter(prefix="/v1", tags=["Completions"])


@router.post(
    "/completions",
    summary="Go on from a text",
    response_model=None,
    responses=whole_or_streamed(Completion, "completion"),
)
async def create_completion(
    body: CompletionCreate, caller: Reader, request: Request, engine: Annotated[Engine, Depends(engine_of)]
) -> Response:
    """Let a base, a fine-tuned model, an adapter by its name, or a checkpoint go on from one or more texts as they stand.

    No chat template is laid over a prompt: models trained on plain text are asked like this, those trained on
    conversations with POST /v1/chat/completions. A parameter that is not honoured is refused by name.
    """
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    asked = Asked(body)
    async with database.transaction() as db:  # not the request's: it would be held as long as the answer takes
        served = await find_model(db, caller, body.model, models_file=settings.models_file)
    served, wanted = replace(served, raw=True), asked.requests()
    try:
        if body.stream:
            return PassedOn(CompletionStream(asked, engine, served, await engine.stream(wanted[0], served)))
        found = await unless_hung_up(request, all_of(engine, wanted, served))
    except ApiError as problem:
        raise in_own_words(problem) from None
    return Response(status_code=499) if found is None else JSONResponse(asked.whole(found["answers"]).model_dump())
