"""The wire shapes of loops."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from app.models import Loop as Row
from app.models import LoopRound
from app.pages import Page
from app.validation import unstorable
from finetune.config import Gate, Int, Spec

SOONEST, LATEST = 60, 366 * 86400
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(value: Any) -> Any:
    """`"7d"`, `"12h"` in seconds; numbers as they are."""
    text = value.strip() if isinstance(value, str) else ""
    return int(text[:-1]) * UNITS[text[-1]] if text[:-1].isdecimal() and text[-1:] in UNITS else value


Every = Annotated[Int, BeforeValidator(_seconds)]


class LoopCreate(Spec):
    """When an adapter is to be trained again, and what decides whether the new version answers."""

    adapter: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Its promoted version must be one that a job trained."
    )
    every: Every | None = Field(
        None, description='Seconds, or "12h", "7d": a round as often, if there is a new example.'
    )
    min_new_examples: Annotated[Int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="New corrections that begin a round; with every: at most as often as that."
    )
    gate: Gate = Field(description="As of a job; better_than is current where it is left out.")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data

    @model_validator(mode="after")
    def _when(self) -> LoopCreate:
        if self.every is None and self.min_new_examples is None:
            raise ValueError("min_new_examples is required, or every, or both")
        if self.every is not None and not SOONEST <= self.every <= LATEST:
            raise ValueError(
                f'every must be {SOONEST} seconds to a year, such as 3600, "12h" or "7d", not {self.every}'
            )
        return self


class Round(BaseModel):
    """One round: its job, and what that was made of."""

    number: int
    created_at: int
    job_id: str
    job_status: str
    training_file: str
    examples: dict[str, int] = Field(description="new, old, replaced by a correction, and what was left out.")
    version: int | None = Field(description="Of the adapter, once the job has succeeded.")
    verdict: Literal["promoted", "not_promoted"] | None
    gate: dict[str, Any] | None = Field(description="What the gate found.")


class Loop(BaseModel):
    """A loop and its newest rounds."""

    object: Literal["loop"] = "loop"
    id: str
    created_at: int
    adapter: str
    every: int | None = Field(description="Seconds.")
    min_new_examples: int
    gate: Gate
    status: Literal["active", "paused"]
    paused_reason: str | None
    waits_for: str | None = Field(description="Why no round began when it was looked at last.")
    rounds: list[Round] = Field(description="Newest first, twenty at most.")

    @classmethod
    def of(cls, row: Row, rounds: list[Round]) -> Loop:
        """A row as clients see it."""
        return cls(
            id=row.id, created_at=int(row.created_at.timestamp()), adapter=row.adapter, every=row.every_seconds,
            min_new_examples=row.min_new_examples, gate=Gate.model_validate(row.gate),
            status="paused" if row.paused_at else "active", paused_reason=row.paused_reason, waits_for=row.waits_for,
            rounds=rounds,
        )  # fmt: skip


def round_of(row: LoopRound, status: str, version: int | None, verdict: Any, gate: dict[str, Any] | None) -> Round:
    """A round as clients see it."""
    return Round(
        number=row.number, created_at=int(row.created_at.timestamp()), job_id=row.job_id, job_status=status,
        training_file=row.training_file, examples=row.counts, version=version, verdict=verdict, gate=gate,
    )  # fmt: skip


class LoopPage(Page):
    """Loops, newest first."""

    data: list[Loop]


class LoopDeleted(BaseModel):
    """A loop that is gone; its jobs stay."""

    id: str
    object: Literal["loop"] = "loop"
    deleted: bool = True
