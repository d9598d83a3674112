"""A new job as one statement: its row, its first events and word to who listens. Every submission waits for it.

Only lifecycle.created and lifecycle.created_at_once call it. The same rows by way of the session are nine round trips.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from app.db import Database, rows
from app.models import OPEN, Job, new_id

_COLUMNS = {attribute.key: attribute.columns[0] for attribute in inspect(Job).column_attrs}
_TYPES = {name: column.type.compile(PGDialect()) for name, column in _COLUMNS.items()}  # type: ignore[no-untyped-call]
_RETURNED = ("created_at", "fence", "priority", "result_files")
"""What the table decides where the job does not say."""

_LOCKED = """locked as materialized (
    select pg_advisory_xact_lock(hashtextextended(name, 0)) from unnest(%(locks)s::text[]) name
), """
_GUARD = f"""
    where (select count(*) from locked) > 0
      and (select count(*) from files where id = any(%(files)s) and project_id = %(project_id)s
           and purpose = 'fine-tune' and owned) = cardinality(%(files)s::text[])
      and (select count(*) from (select 1 from jobs where api_key_id = %(api_key_id)s and {OPEN} limit %(most)s) o) < %(most)s
    on conflict (project_id, idempotency_key) where idempotency_key is not null do nothing"""  # noqa: S608


@dataclass(frozen=True)
class Guard:
    """On what a job is accepted, as part of the statement that writes it.

    Attributes:
        locks: Taken first, in this order, as for every equal request.
        files: Uploads of the project that must be there to be trained on.
        most: Jobs of the key that have not ended must be fewer.
    """

    locks: list[str]
    files: list[str]
    most: int


async def insert(db: AsyncSession, job: Job, messages: list[str]) -> None:
    """Write a new job and its first events, and have the session know the row as it stands now.

    Args:
        db: The transaction.
        job: Not yet in any session. What it does not say is null, or the table's default.
        messages: Of its events, numbered from 1.
    """
    given = _given(job, messages)
    [found] = await rows(db, _statement(frozenset(given), guarded=False), _sent(given, messages))
    _fill(job, found)
    for name in _COLUMNS.keys() - vars(job).keys():
        set_committed_value(job, name, None)
    make_transient_to_detached(job)
    db.add(job)


async def insert_if(database: Database, job: Job, messages: list[str], guard: Guard) -> bool:
    """The same as a transaction of its own, provided that `guard` holds and the job's idempotency key is not in use.

    Returns:
        Whether it was written; the job is filled in, and in no session.
    """
    given = _given(job, messages)
    sent = _sent(given, messages) | vars(guard)
    found = await database.first(_statement(frozenset(given), guarded=True), sent)
    if found is not None:
        _fill(job, found)
    return found is not None


def _given(job: Job, messages: list[str]) -> dict[str, Any]:
    job.last_seq = len(messages)
    said = vars(job)
    return {name: said[name] for name in _COLUMNS if name in said}


def _sent(given: dict[str, Any], messages: list[str]) -> dict[str, Any]:
    """The values as the driver takes them."""
    columns = {
        name: json.dumps(value) if _TYPES[name] == "JSONB" and value is not None else value
        for name, value in given.items()
    }
    return columns | {"event_ids": [new_id("ftevent-") for _ in messages], "messages": messages}


def _fill(job: Job, found: tuple[Any, ...]) -> None:
    for name, value in zip(_RETURNED, found, strict=False):
        set_committed_value(job, name, value)


@lru_cache(maxsize=16)
def _statement(given: frozenset[str], *, guarded: bool) -> str:
    written = sorted(given)
    return f"""
with {_LOCKED if guarded else ""}made as (
    insert into jobs ({", ".join(_COLUMNS[name].name for name in written)})
    select {", ".join(f"%({name})s::{_TYPES[name]}" for name in written)}{_GUARD if guarded else ""}
    returning id, project_id, {", ".join(_RETURNED)}
), told as (
    insert into events (id, project_id, job_id, seq, level, type, message)
    select e.id, made.project_id, made.id, seq, 'info', 'message', message
    from made, unnest(%(event_ids)s::text[], %(messages)s::text[]) with ordinality as e(id, message, seq)
)
select {", ".join(_RETURNED)}, pg_notify('llamaflow_events', id), pg_notify('llamaflow_jobs', id) from made
"""  # noqa: S608  made of column names and constants only
