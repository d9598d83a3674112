"""Rows at odds with each other or with the clock: numbers of events, leases from the future, callbacks that nobody owes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import exists, select, text

from app.doctor.finding import Finding, Patient
from app.jobs import lifecycle
from app.models import FINAL, Event, Job, WebhookDelivery
from app.webhooks import outbox


@dataclass(frozen=True)
class Rule:
    """Rows that are wrong by themselves. `wrong` is a table and its condition; `mend` the statement that mends one, :id."""

    kind: str
    wrong: str
    problem: str
    mend: str
    done: str


RULES = (
    Rule(
        "job",
        "jobs j where last_seq < (select max(seq) from events e where e.job_id = j.id)",
        "its events are numbered beyond what its row says.",
        "update jobs set last_seq = (select max(seq) from events where job_id = jobs.id) where id = :id",
        "The number was set.",
    ),
    Rule(
        "job",
        "jobs where lease_until > clock_timestamp() + interval '1 hour'",
        "its lease runs out in the far future, as after a clock that was wrong: nobody else would take it.",
        "update jobs set worker_id = null, lease_until = null, fence = fence + 1 "
        "where id = :id and lease_until > clock_timestamp() + interval '1 hour'",
        "It was freed.",
    ),
    Rule(
        "worker",
        "workers where heartbeat_at > clock_timestamp() + interval '1 hour'",
        "it was last seen in the future.",
        "delete from workers where id = :id",
        "It was forgotten; a living one registers anew when it is started.",
    ),
    Rule(
        "training lease of job",
        "(select job_id as id from train_leases where lease_until > clock_timestamp() + interval '1 hour') l where true",
        "it runs out in the far future.",
        "delete from train_leases where job_id = :id",
        "It was removed.",
    ),
    Rule(
        "delivery",
        "webhook_deliveries where status = 'pending' and "
        "(next_attempt_at > clock_timestamp() + interval '2 days' or claimed_until > clock_timestamp() + interval '1 hour')",
        "its next attempt lies in the far future.",
        "update webhook_deliveries set next_attempt_at = clock_timestamp(), claimed_until = null where id = :id",
        "It is due now.",
    ),
    Rule(
        "receiving host",
        "(select distinct host as id from webhook_hosts where open_until > clock_timestamp() + interval '2 days') h "
        "where true",
        "nothing is sent there until a time in the far future.",
        "update webhook_hosts set open_until = null where host = :id and open_until > clock_timestamp()",
        "It is tried again.",
    ),
)


async def by_rules(patient: Patient) -> list[Finding]:
    """Rows that break a rule."""
    findings = []
    for rule in RULES:
        async with patient.database.transaction() as db:
            wrong = (await db.execute(text(f"select id from {rule.wrong}"))).scalars().all()  # noqa: S608  constants
            for row in wrong if patient.repair else ():
                await db.execute(text(rule.mend), {"id": row})
        done = rule.done if patient.repair else None
        findings += [Finding(f"{rule.kind} {row}", rule.problem, repaired=done) for row in wrong]
    return findings


async def callbacks(patient: Patient) -> list[Finding]:
    """Jobs that have ended and owe their callback to nobody."""
    owed = exists().where(
        WebhookDelivery.job_id == Job.id,
        WebhookDelivery.endpoint_id.is_(None),
        WebhookDelivery.type.in_([f"fine_tuning.job.{status}" for status in FINAL]),
    )
    async with patient.database.transaction() as db:
        query = select(Job.id).where(Job.callback_url.is_not(None), Job.status.in_(FINAL), ~owed)
        ids = (await db.execute(query)).scalars().all()
        for job_id in ids if patient.repair else ():
            job = await lifecycle.lock(db, job_id)
            last = select(Event).where(Event.job_id == job_id).order_by(Event.seq.desc()).limit(1)
            await outbox.owe(db, job, f"fine_tuning.job.{job.status}", (await db.execute(last)).scalar_one())
    done = "It is owed now." if patient.repair else None
    return [Finding(f"job {job_id}", "it has ended, and its callback was never owed.", repaired=done) for job_id in ids]
