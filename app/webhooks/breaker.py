"""The breaker of a receiving host: after failures in a row a project's deliveries to it wait, and one goes first to find out.

Closed: `open_until` is null. Open: it lies ahead, and nothing is sent. Past it one delivery is the probe: while it is under
way `open_until` is set to the end of its claim (due.py); a success closes, a failure opens for longer. A delivery that waits
loses no attempt. What one project's receiver does is nothing to another project.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import WebhookHost

FAILURES = 10
"""In a row: no answer, 429 or 5xx. One delivery's quick tries alone do not open it, and n8n's 404 is no failure of the host."""

FIRST_SECONDS = 30.0
MOST_SECONDS = 600.0
FORGOTTEN_SECONDS = 3600.0
"""After so long without word of a host its failures count no more: a fresh delivery gets its quick tries again."""

_KNOWN = "case when h.updated_at > clock_timestamp() - make_interval(secs => :forgotten) then h.failures else 0 end"
_FAILED = text(f"""
insert into webhook_hosts as h (project_id, host, failures) values (:project, :host, 1)
on conflict (project_id, host) do update set
    failures = case when h.open_until is null or :probe then {_KNOWN} + 1 else h.failures end,
    open_until = case
        when not :probe and h.open_until is not null then h.open_until
        when {_KNOWN} + 1 >= :failures then clock_timestamp() + make_interval(secs =>
            least(:most, :first * 2 ^ least(20, {_KNOWN} + 1 - :failures)))
        end,
    updated_at = clock_timestamp()
""")  # noqa: S608  made of constants


async def failed(db: AsyncSession, project_id: str, host: str, *, probe: bool) -> None:
    """An attempt found the host failing. One that was under way when the breaker opened does not open it for longer."""
    limits = {"failures": FAILURES, "first": FIRST_SECONDS, "most": MOST_SECONDS, "forgotten": FORGOTTEN_SECONDS}
    await db.execute(_FAILED, {"project": project_id, "host": host, "probe": probe, **limits})


async def answered(db: AsyncSession, project_id: str, host: str) -> None:
    """An attempt was answered by the host: it is well, and what waited for that may go."""
    ill = (WebhookHost.project_id == project_id, WebhookHost.host == host, WebhookHost.failures > 0)
    await db.execute(
        update(WebhookHost).where(*ill).values(failures=0, open_until=None, updated_at=func.clock_timestamp())
    )


async def open_until(db: AsyncSession, hosts: Collection[tuple[str, str]]) -> dict[tuple[str, str], datetime]:
    """(project, host) → until when its deliveries wait, for those that do."""
    query = select(WebhookHost.project_id, WebhookHost.host, WebhookHost.open_until).where(
        tuple_(WebhookHost.project_id, WebhookHost.host).in_(hosts),
        WebhookHost.open_until > func.clock_timestamp(),
    )
    return {(project, host): until for project, host, until in (await db.execute(query)).all() if until is not None}
