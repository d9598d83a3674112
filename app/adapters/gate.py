"""The gate's verdict on a new version: what EVALUATE found, and whether the version compared with is still the promoted one.

Before the run it says what is to be compared with; in the transaction that ends the job, what becomes of the version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import service
from app.models import Adapter, Job
from finetune.config import Gate
from finetune.steps import Comparison, EvaluationResult, Parent

NOTHING_FOUND = "EVALUATE left no comparison"


@dataclass(frozen=True)
class Verdict:
    """What becomes of a version.

    Attributes:
        promoted: Whether its name answers with it from now on.
        code: `gate_passed`, `gate_rejected`, `stale_comparison`, or `unnamed`: it passed, and has no name.
        reason: As the end of a sentence.
        against: What it was compared with, such as `version 2`.
        found: steps.GateResult as JSON.
        fails: Whether the job is to fail for it.
    """

    promoted: bool
    code: str
    reason: str
    against: str
    found: dict[str, Any]
    fails: bool

    @property
    def word(self) -> str:
        """As it stands on the version's row."""
        return "promoted" if self.promoted else "not_promoted"

    def as_json(self) -> dict[str, Any]:
        """As it is kept with the version."""
        return {"code": self.code, "reason": self.reason, "against": self.against, **self.found}

    def sentence(self, what: str) -> str:
        """What a user reads; what: such as `Version 3 of adapter kpi`."""
        if self.promoted:
            return f"{what} is better than {self.against} ({self.reason}): promoted"
        if self.code == "unnamed":
            return f"{what} is better than {self.against} ({self.reason}); it has no name to be promoted under"
        return f"{what} is not promoted, compared with {self.against}: {self.reason}"


def gate_of(job: Job) -> Gate | None:
    """The gate a job asks for."""
    given = (job.spec.get("evaluation") or {}).get("gate")
    return Gate.model_validate(given) if given else None


async def comparison(db: AsyncSession, job: Job) -> Comparison | None:
    """The version that a job's gate compares with: the one promoted now; None without a gate, a name, or a promoted version."""
    gate, name = gate_of(job), _name(job)
    if gate is None or name is None:
        return None
    query = select(Adapter).where(Adapter.project_id == job.project_id, Adapter.name == name)
    adapter = (await db.execute(query)).scalar_one_or_none()
    version = await service.promoted(db, adapter) if adapter else None
    if version is None or version.unservable is not None:
        return None
    uri = version.uri.rstrip("/")
    parent = Parent(
        id=version.model,
        uri=f"{uri}/adapter/",
        manifest_uri=f"{uri}/manifest.json",
        manifest_sha256=version.manifest_sha256,
    )
    return Comparison(adapter=parent, needed=gate.better_than == "current")


async def judge(db: AsyncSession, job: Job, evaluation: EvaluationResult | None) -> Verdict | None:
    """The verdict on what a job made; None without a gate. Holds the adapter's row lock, where it depends on what is promoted.

    Args:
        db: The transaction that ends the job; the caller holds the job's row lock.
        job: Its run has ended well.
        evaluation: Of the manifest.
    """
    gate = gate_of(job)
    if gate is None:
        return None
    found = evaluation.gate if evaluation is not None else None
    fails = job.spec["evaluation"].get("on_reject") == "fail"
    told = found.model_dump(mode="json") if found is not None else {}
    if found is None:
        return Verdict(False, "gate_rejected", NOTHING_FOUND, "nothing", told, fails)
    compared = found.current if found.compared_with == "current" else None
    against = "the base" if compared is None else await _called(db, job, compared)
    if not found.passed:
        return Verdict(False, "gate_rejected", found.reason, against, told, fails)
    if (name := _name(job)) is None:
        return Verdict(False, "unnamed", found.reason, against, told, fails=False)
    adapter = await service.made(db, job.project_id, name)
    now = await service.promoted(db, adapter)
    usable = now if now is not None and now.unservable is None else None
    if gate.better_than == "current" and (usable.model if usable else None) != (compared.id if compared else None):
        other = f"version {now.version}" if now else "no version"
        reason = f"{other} of {name} is promoted by now, and it was compared with {against}"
        return Verdict(False, "stale_comparison", reason, against, told, fails)
    return Verdict(True, "gate_passed", found.reason, against, told, fails=False)


async def _called(db: AsyncSession, job: Job, compared: Parent) -> str:
    version = await service.find_version(db, job.project_id, compared.id)
    return f"version {version.version}" if version is not None and version.version else compared.id


def _name(job: Job) -> str | None:
    return None if job.spec.get("technique") == "full" else service.adapter_name(job)
