"""POST /v1/chat/completions: who asks, which model that is, and the engine's answer passed on as it comes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.auth import Reader
from app.db import Database
from app.feedback.completions import Keeper
from app.inference.engines import Engine
from app.inference.passing import PassedOn, engine_of, unless_hung_up, whole_or_streamed
from app.inference.resolve import find_model
from app.inference.schemas import ChatCompletion, ChatCompletionCreate
from app.settings import Settings

router = APIRouter(prefix="/v1", tags=["Chat"])


@router.post(
    "/chat/completions",
    summary="Ask a model",
    response_model=None,
    responses=whole_or_streamed(ChatCompletion, "completion"),
)
async def create_chat_completion(
    body: ChatCompletionCreate, caller: Reader, request: Request, engine: Annotated[Engine, Depends(engine_of)]
) -> Response:
    """Ask a base, a fine-tuned model, an adapter by its name, or a checkpoint; whole or as a stream of server-sent events.

    A parameter that is not honoured is refused by name. Hanging up stops the computing.
    """
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    async with database.transaction() as db:  # not the request's: it would be held as long as the answer takes
        served = await find_model(db, caller, body.model, models_file=settings.models_file)
    asked = body.model_dump(exclude_unset=True)
    keeper = Keeper.of(database, caller, asked, served)
    if body.stream:
        return PassedOn(keeper.tapped(await engine.stream(asked, served)))
    completion = await unless_hung_up(request, engine.complete(asked, served))
    if completion is not None:
        await keeper.keep(completion)
    return Response(status_code=499) if completion is None else JSONResponse(completion)
