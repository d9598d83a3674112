"""/v1/responses: ask, have again, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

import structlog
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from app.auth import Reader, Writer
from app.db import Database, Session, is_outage
from app.errors import ApiError, BadRequest
from app.feedback.completions import Keeper
from app.inference.engines import Engine
from app.inference.passing import PassedOn, engine_of, unless_hung_up, whole_or_streamed
from app.inference.resolve import find_model
from app.inference.responses import kept
from app.inference.responses.answer import Answer
from app.inference.responses.ask import Messages, chat_request, messages_of
from app.inference.responses.schemas import (
    InputItem,
    InputItems,
    ModelResponse,
    ResponseCreate,
    ResponseDeleted,
)
from app.inference.responses.stream import ResponseStream
from app.settings import Settings

router = APIRouter(prefix="/v1/responses", tags=["Responses"])
log = structlog.get_logger("responses")


@router.post(
    "",
    summary="Ask a model for a response",
    response_model=None,
    responses=whole_or_streamed(ModelResponse, "response"),
)
async def create_response(
    body: ResponseCreate, caller: Reader, request: Request, engine: Annotated[Engine, Depends(engine_of)]
) -> Response:
    """Ask a base, a fine-tuned model, an adapter by its name, or a checkpoint for text; whole or as server-sent events.

    The response is kept for `LLAMAFLOW_KEEP_RESPONSES` unless `store` is false, and `previous_response_id` goes on from
    one that was kept. A parameter that is not honoured is refused by name. Hanging up stops the computing.
    """
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    own = messages_of(body)
    async with database.transaction() as db:  # not the request's: it would be held as long as the answer takes
        messages = [*await kept.before(db, caller.project_id, body.previous_response_id), *own]
        served = await find_model(db, caller, body.model, models_file=settings.models_file)
    stored = body.store is not False and settings.keep_responses > 0
    answer, asked = Answer(body, stored=stored), chat_request(body, messages)
    keeper = Keeper.of(database, caller, asked, served, id=answer.id)

    async def keep(response: ModelResponse) -> ModelResponse:
        if not stored:
            return response
        try:
            async with database.transaction() as db:
                await kept.keep(db, caller.project_id, response, messages, seconds=settings.keep_responses)
        except Exception as problem:
            if not is_outage(problem):
                raise
            log.warning("response_not_kept", error=type(problem).__name__)
            return response.model_copy(update={"store": False})  # the answer is there, and is given
        return response

    try:
        if body.stream:
            return PassedOn(ResponseStream(keeper.tapped(await engine.stream(asked, served)), answer, keep))
        completion = await unless_hung_up(request, engine.complete(asked, served))
    except ApiError as problem:
        raise _in_own_words(problem) from None
    if completion is None:
        return Response(status_code=499)
    await keeper.keep(completion)
    choice = completion["choices"][0]
    whole = answer.ended(choice["message"]["content"] or "", choice["finish_reason"], completion.get("usage"))
    return JSONResponse((await keep(whole)).model_dump(mode="json"))


@router.get("/{response_id}", summary="Get a response", response_model=ModelResponse)
async def get_response(
    response_id: str,
    caller: Reader,
    db: Session,
    stream: Annotated[bool, Query(description="Only false: what is kept is not streamed again.")] = False,
) -> Any:
    """A response that was kept."""
    if stream:
        raise BadRequest(
            "A response that is kept is not streamed again. Leave `stream` out.",
            code="unsupported_parameter",
            param="stream",
        )
    return (await kept.find(db, caller.project_id, response_id)).response


@router.delete("/{response_id}", summary="Delete a response", response_model=ResponseDeleted)
async def delete_response(response_id: str, caller: Writer, db: Session) -> ResponseDeleted:
    """Forget a response and the conversation it answered. Those that went on from it stay."""
    await kept.forget(db, caller.project_id, response_id)
    return ResponseDeleted(id=response_id)


@router.get("/{response_id}/input_items", summary="List what a response answered", response_model=InputItems)
async def list_input_items(
    response_id: str,
    caller: Reader,
    db: Session,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=128)] = None,
) -> InputItems:
    """The messages of the conversation that a kept response answered, newest first."""
    items = _items(response_id, (await kept.find(db, caller.project_id, response_id)).messages)
    if order == "desc":
        items.reverse()
    if after is not None:
        at = next((number for number, item in enumerate(items) if item.id == after), None)
        if at is None:
            raise BadRequest(f"There is no item {after!r} in it.", code="invalid_value", param="after")
        items = items[at + 1 :]
    page = items[:limit]
    return InputItems(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(items) > limit,
    )


@router.post("/{response_id}/cancel", summary="Cancel a response (not offered)", response_model=ModelResponse)
async def cancel_response(response_id: str, caller: Writer, db: Session) -> NoReturn:
    """Not offered: only responses made in the background can be cancelled, and there are none. Hanging up stops the computing."""
    await kept.find(db, caller.project_id, response_id)
    raise BadRequest(
        "Only a response made in the background can be cancelled, and none is here. Hang up to stop one under way.",
        code="unsupported_operation",
    )


def _items(response_id: str, messages: Messages) -> list[InputItem]:
    def content(message: dict[str, str]) -> dict[str, Any]:
        if message["role"] == "assistant":
            return {"type": "output_text", "text": message["content"], "annotations": []}
        return {"type": "input_text", "text": message["content"]}

    number = response_id.removeprefix("resp_")
    return [
        InputItem.model_validate({"id": f"msg_{number}_{at}", "role": message["role"], "content": [content(message)]})
        for at, message in enumerate(messages)
    ]


def _in_own_words(problem: ApiError) -> ApiError:
    """An engine's refusal, with the names this request has for what it is about."""
    for theirs, ours in (("messages", "input"), ("max_completion_tokens", "max_output_tokens")):
        if problem.param is not None and problem.param.startswith(theirs):
            problem.param, problem.message = ours, problem.message.replace(theirs, ours)
    return problem
