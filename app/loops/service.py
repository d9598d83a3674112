"""Loops in the database: made, found, paused, resumed, deleted. Their rounds begin in rounds.py."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import service as adapters
from app.auth import Caller
from app.errors import BadRequest, Conflict, NotFound
from app.loops.schemas import Loop as Shown
from app.loops.schemas import LoopCreate, Round, round_of
from app.models import AdapterVersion, ApiKey, Job, Loop, LoopRound, Project, new_id
from app.pages import of_project

SHOWN_ROUNDS = 20
NO_JOB = "Its promoted version was not trained here, so that its training data is not known: train one version with a job first."

NOT_CHATS = "Its promoted version was trained on rows of the format {!r}; feedback is conversations."


async def create(db: AsyncSession, caller: Caller, body: LoopCreate) -> Loop:
    """Make a loop; it is looked at at once.

    Raises:
        BadRequest: `unsupported_operation`: the promoted version is of no job, or its job held nothing out.
        NotFound: `adapter_not_found`.
        Conflict: `loop_exists`.
    """
    adapter = await adapters.lock(db, caller.project_id, body.adapter)
    job = await source(db, caller.project_id, body.adapter)
    if isinstance(job, str):
        raise BadRequest(
            f"The adapter {adapter.name} cannot be trained again: {job}", code="unsupported_operation", param="adapter"
        )
    if job.validation_file is None and not (job.spec.get("data") or {}).get("validation_split"):
        message = (
            f"gate compares on held-out rows, and {job.id}, which trained the promoted version of {adapter.name}, held none "
            "out. Train a version with validation_file or data.validation_split first."
        )
        raise BadRequest(message, code="unsupported_operation", param="gate")
    mine = (Loop.project_id == caller.project_id, Loop.adapter == adapter.name)
    if (there := (await db.execute(select(Loop.id).where(*mine))).scalar_one_or_none()) is not None:
        raise Conflict(f"The adapter {adapter.name} has a loop already: {there}. Delete it first.", code="loop_exists")
    given = (
        body.gate
        if "better_than" in body.gate.model_fields_set
        else body.gate.model_copy(update={"better_than": "current"})
    )
    row = Loop(
        id=new_id("loop_"), project_id=caller.project_id, api_key_id=caller.key_id, adapter=adapter.name,
        every_seconds=body.every, min_new_examples=body.min_new_examples or 1, gate=given.model_dump(mode="json"),
    )  # fmt: skip
    db.add(row)
    await db.flush()
    await db.refresh(row)
    return row


async def source(db: AsyncSession, project_id: str, name: str) -> Job | str:
    """The job that trained an adapter's promoted version; or why there is none, as a sentence."""
    try:
        version = await adapters.promoted(db, await adapters.get(db, project_id, name))
    except NotFound as gone:
        return gone.message
    if version is None:
        return f"No version of {name} is promoted."
    job = await db.get(Job, version.job_id) if version.job_id else None
    if job is None or not job.training_objects:
        return NO_JOB
    given = (job.spec.get("data") or {}).get("format")
    return NOT_CHATS.format(given) if given in ("text", "text_source", "prompt_completion", "preference") else job


async def find(db: AsyncSession, caller: Caller, loop_id: str, *, lock: bool = False) -> Loop:
    """A loop of the caller's project.

    Raises:
        NotFound: `loop_not_found`.
    """
    row = await db.get(Loop, loop_id, with_for_update=lock or None)
    if row is None or row.project_id != caller.project_id:
        raise NotFound(f"There is no loop {loop_id!r}.", code="loop_not_found")
    return row


async def listed(db: AsyncSession, caller: Caller, *, after: str | None, limit: int) -> tuple[list[Loop], bool]:
    """A page of a project's loops, newest first, and whether there are more."""
    return await of_project(db, Loop, caller.project_id, after=after, limit=limit)


async def pause(db: AsyncSession, caller: Caller, loop_id: str) -> Loop:
    """Begin no more rounds; one under way goes on."""
    row = await find(db, caller, loop_id, lock=True)
    if row.paused_at is None:
        row.paused_at, row.paused_reason = (
            (await db.execute(select(func.clock_timestamp()))).scalar_one(),
            "It was asked to.",
        )
    return row


async def resume(db: AsyncSession, caller: Caller, loop_id: str) -> Loop:
    """Begin rounds again, with the key of who resumes it."""
    row = await find(db, caller, loop_id, lock=True)
    row.paused_at = row.paused_reason = None
    row.api_key_id = caller.key_id
    row.next_look_at = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    return row


async def shown(db: AsyncSession, row: Loop) -> Shown:
    """A loop with its newest rounds."""
    query = (
        select(LoopRound, Job.status, AdapterVersion.version, AdapterVersion.verdict, AdapterVersion.gate)
        .join(Job, Job.id == LoopRound.job_id)
        .outerjoin(AdapterVersion, AdapterVersion.job_id == LoopRound.job_id)
        .where(LoopRound.loop_id == row.id)
        .order_by(LoopRound.number.desc())
        .limit(SHOWN_ROUNDS)
    )
    rounds: list[Round] = [round_of(*found) for found in (await db.execute(query)).all()]
    return Shown.of(row, rounds)


async def caller_of(db: AsyncSession, row: Loop) -> Caller | None:
    """On whose behalf a loop makes jobs; None if the key was revoked or may not write any more."""
    key = await db.get_one(ApiKey, row.api_key_id)
    project = await db.get_one(Project, row.project_id)
    if key.revoked_at is not None or not {"write", "admin"} & set(key.scopes):
        return None
    return Caller(project.id, project.name, key.id, frozenset(key.scopes), project.path_allow)
