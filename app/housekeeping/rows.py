"""Rows past their time: workers, idempotency keys, old signing secrets, run tokens, kept responses, progress of jobs that ended, attempts of settled deliveries."""

from __future__ import annotations

from sqlalchemy import text

from app.housekeeping.house import House, counted

WORKER_KEPT_SECONDS = 7 * 24 * 3600.0
KEY_KEPT_SECONDS = 24 * 3600.0
EXPIRED_KEPT_SECONDS = 24 * 3600.0
"""What has expired is kept so long, for whoever looks for a reason."""

STATEMENTS: tuple[tuple[str, str, str], ...] = (
    ("worker unseen for long", "workers unseen for long", "delete from workers where heartbeat_at < {before_worker}"),
    (
        "idempotency key",
        "idempotency keys",
        "update jobs set idempotency_key = null where idempotency_key is not null and created_at < {before_key}",
    ),
    (
        "signing secret",
        "signing secrets",
        "delete from signing_secrets where expires_at < {before_expired} and endpoint_id is not null",
    ),
    ("run token", "run tokens", "delete from run_tokens where expires_at < {before_expired}"),
    ("training lease", "training leases", "delete from train_leases where lease_until < {before_expired}"),
    ("upload in parts", "uploads in parts", "delete from uploads where expires_at < {before_expired}"),
    ("kept response", "kept responses", "delete from responses where expires_at < clock_timestamp()"),
    ("kept completion", "kept completions", "delete from completions where expires_at < clock_timestamp()"),
    ("piece of feedback", "pieces of feedback", "delete from feedback where updated_at < {before_feedback}"),
    (
        "piece of a training's progress",
        "pieces of trainings' progress",
        "delete from run_lines using jobs where jobs.id = run_lines.job_id and jobs.finished_at < {before_ended}",
    ),
    (
        "delivery attempt",
        "delivery attempts",
        """delete from delivery_attempts a using webhook_deliveries d
        where d.id = a.delivery_id and d.status <> 'pending' and a.created_at < {before_attempt}""",
    ),
    (
        "record of a receiving host",
        "records of receiving hosts",
        """delete from webhook_hosts where updated_at < {before_attempt}
        and (open_until is null or open_until < clock_timestamp())""",
    ),
)
"""One, many, and the statement that forgets them."""


async def forget(house: House) -> list[str]:
    """Remove rows that nobody will ask for any more."""
    kept = {
        "worker": WORKER_KEPT_SECONDS,
        "key": KEY_KEPT_SECONDS,
        "expired": EXPIRED_KEPT_SECONDS,
        "attempt": house.settings.keep_attempts,
        "ended": house.settings.keep_failed,
        "feedback": house.settings.keep_feedback,
    }
    before = {f"before_{name}": f"clock_timestamp() - make_interval(secs => :{name})" for name in kept}
    lines = []
    for one, many, statement in STATEMENTS:
        prepared = text(_counting(statement) if house.dry_run else statement)
        prepared = text(prepared.text.format(**before))
        used = {name: value for name, value in kept.items() if f":{name}" in prepared.text}
        async with house.database.transaction() as db:
            result = await db.execute(prepared, used)
            number = int(result.scalar_one() if house.dry_run else result.rowcount)  # type: ignore[attr-defined]
        if number:
            what = counted(number, one, many)
            lines.append(house.did(f"Forgot {what}.", f"forget {what}."))
    return lines


def _counting(statement: str) -> str:
    """The statement that only counts what another one would change."""
    if statement.startswith("update"):
        table, _, rest = statement.removeprefix("update ").partition(" set ")
        return f"select count(*) from {table} where {rest.partition(' where ')[2]}"  # noqa: S608  made of constants only
    rest = statement.removeprefix("delete from ").replace(" using ", ", ")
    return f"select count(*) from {rest}"  # noqa: S608  made of constants only
