"""Which deliveries go next: those whose time has come, some places a host, most a project, one as the probe of an open breaker.

The claim walks from one receiving host to the next along the index of what is pending, so that a backlog for one host costs
the others nothing. Claims; sends nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import WebhookDelivery
from app.webhooks import signing

AT_ONCE = 32
"""Attempts under way at a time, for one worker."""

A_PROJECT = 24
A_HOST = 8
"""Of those: a receiver that hangs must not hold up the others, nor a project with many of them other projects."""

_CLAIM = text("""
with recursive lanes as (
    (select project_id, host from webhook_deliveries where status = 'pending' order by project_id, host limit 1)
    union all
    select next.project_id, next.host from lanes l cross join lateral (
        select d.project_id, d.host from webhook_deliveries d
        where d.status = 'pending' and (d.project_id, d.host) > (l.project_id, l.host)
        order by d.project_id, d.host limit 1) next
),
busy as (select * from unnest(cast(:projects as text[]), cast(:hosts as text[]), cast(:counts as int[]))
         as b (project_id, host, places)),
open as (
    select l.project_id, l.host, h.open_until is not null as probe,
        case when h.open_until is not null then 1 else :a_host - coalesce(b.places, 0) end as places
    from lanes l left join webhook_hosts h using (project_id, host) left join busy b using (project_id, host)
    where h.open_until is null or h.open_until <= (select clock_timestamp())
),
ranked as (
    select d.id, d.next_attempt_at, o.probe,
        row_number() over (partition by o.project_id order by d.next_attempt_at, d.id)
            + coalesce((select sum(places) from busy where busy.project_id = o.project_id), 0) as place
    from open o cross join lateral (
        select id, next_attempt_at from webhook_deliveries
        where status = 'pending' and project_id = o.project_id and host = o.host
          and next_attempt_at <= (select clock_timestamp())
          and (claimed_until is null or claimed_until < (select clock_timestamp()))
        order by next_attempt_at limit greatest(0, o.places)) d
),
due as (
    select d.id, r.probe, d.project_id, d.host from webhook_deliveries d
    join (select * from ranked where place <= :a_project order by place, next_attempt_at limit :places) r using (id)
    where d.status = 'pending' and (d.claimed_until is null or d.claimed_until < (select clock_timestamp()))
    for update of d skip locked
),
probing as (
    update webhook_hosts h set open_until = clock_timestamp() + make_interval(secs => :seconds) from due
    where due.probe and h.project_id = due.project_id and h.host = due.host
)
update webhook_deliveries d set claimed_until = clock_timestamp() + make_interval(secs => :seconds)
from due where d.id = due.id
returning d.id, due.probe, d.claimed_until, clock_timestamp()
""")


@dataclass(frozen=True)
class Due:
    """A claimed delivery. claimed_until is also its fence: a later claim has another one."""

    id: str
    project_id: str
    host: str
    probe: bool
    claimed_until: datetime
    at: datetime
    url: str
    event_id: str
    body: bytes
    secrets: list[str]

    @property
    def lane(self) -> tuple[str, str]:
        """Whose places it takes."""
        return self.project_id, self.host


async def claim(db: AsyncSession, places: int, seconds: float, busy: Counter[tuple[str, str]]) -> list[Due]:
    """Claim deliveries that are due.

    Args:
        places: At most so many.
        seconds: How long the claim holds.
        busy: Lane → attempts under way here.
    """
    given = {"projects": [project for project, _ in busy], "hosts": [host for _, host in busy]}
    limits = {"counts": list(busy.values()), "places": places, "a_host": A_HOST, "a_project": A_PROJECT}
    rows = (await db.execute(_CLAIM, {**given, **limits, "seconds": seconds})).all()
    return [await _load(db, *row) for row in rows]


async def _load(db: AsyncSession, id: str, probe: bool, claimed_until: datetime, at: datetime) -> Due:
    row = await db.get_one(WebhookDelivery, id)
    secrets = await signing.valid(db, row.project_id, row.endpoint_id)
    return Due(row.id, row.project_id, row.host, probe, claimed_until, at, row.url, row.event_id, row.body, secrets)
