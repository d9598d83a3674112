"""A new job as one statement: its row, its first events and word to who listens. Every submission waits for it.

The same rows by way of the session would be nine round trips. Only lifecycle.created calls it.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from app.db import rows
from app.models import Job, new_id

_COLUMNS = {attribute.key: attribute.columns[0] for attribute in inspect(Job).column_attrs}
_WRITTEN = [name for name in _COLUMNS if name not in ("created_at", "fence")]
_JSON = {name for name, column in _COLUMNS.items() if isinstance(column.type, JSONB)}

_INSERT = f"""
with made as (
    insert into jobs ({", ".join(_COLUMNS[name].name for name in _WRITTEN)})
    values ({", ".join(f"%({name})s" + ("::jsonb" if name in _JSON else "") for name in _WRITTEN)})
    returning created_at, fence
), told as (
    insert into events (id, project_id, job_id, seq, level, type, message)
    select id, %(project_id)s, %(id)s, seq, 'info', 'message', message
    from unnest(%(event_ids)s::text[], %(messages)s::text[]) with ordinality as e(id, message, seq)
)
select created_at, fence, pg_notify('llamaflow_events', %(id)s), pg_notify('llamaflow_jobs', %(id)s) from made
"""  # noqa: S608  made of column names only


async def insert(db: AsyncSession, job: Job, messages: list[str]) -> None:
    """Write a new job and its first events, and have the session know the row as it stands now.

    Args:
        db: The transaction.
        job: Not yet in any session. What it does not say is null.
        messages: Of its events, numbered from 1.
    """
    given = {name: getattr(job, name) for name in _WRITTEN} | {"last_seq": len(messages)}
    given["priority"] = given["priority"] or 0
    given["result_files"] = given["result_files"] or []
    sent: dict[str, Any] = {
        name: json.dumps(value) if name in _JSON and value is not None else value for name, value in given.items()
    }
    sent |= {"event_ids": [new_id("ftevent-") for _ in messages], "messages": messages}
    [(created_at, fence, *_)] = await rows(db, _INSERT, sent)
    for name, value in (given | {"created_at": created_at, "fence": fence}).items():
        set_committed_value(job, name, value)
    make_transient_to_detached(job)
    db.add(job)
