"""POST /v1/adapters/combine: a name that answers with several adapters."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.adapters import combine
from app.adapters.combine_schemas import Combine, Combined
from app.auth import Writer

router = APIRouter(tags=["Adapters"])


@router.post("/combine", summary="Combine adapters", response_model=Combined)
async def combine_adapters(body: Combine, caller: Writer, request: Request) -> Combined:
    """Let a name answer with several adapters over one base: routed by question, mixed by token, or merged into a version.

    `route` keeps what each adapter knows; merges forget. Adapters are used at their promoted versions, also when another one
    is promoted later; a merge is made once.
    """
    state = request.app.state
    return await combine.combine(state.database, state.storage, state.settings, state.engine, caller, body)
