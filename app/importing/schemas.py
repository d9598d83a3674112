"""The wire shapes of /v1/imports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.models import Import as Row
from app.pages import Page
from app.validation import unstorable
from finetune.config import Spec

MAX_EVENTS = 100
SourceId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.:-]+$")]


class ImportPut(Spec):
    """What is known of an object elsewhere. What is left out stays as it was."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"id": "ftjob-abc", "kind": "job", "object": {"id": "ftjob-abc", "status": "succeeded"}}
        }
    )

    id: SourceId = Field(description="Its id there.")
    kind: Literal["file", "job"]
    object: dict[str, Any] = Field(description="As its service told it, unchanged.")
    checkpoints: list[dict[str, Any]] | None = Field(None, description="Of a job, as told.", max_length=1000)
    file_id: SourceId | None = Field(None, description="Of a file: which file here has its content.")
    job_id: SourceId | None = Field(None, description="Of a job: which job here recreates it.")
    complete: bool | None = Field(None, description="Everything of it has been brought, and it will not change.")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data


class ImportEvents(Spec):
    """Events of an imported job, as told; each once by its id, however often it is sent."""

    events: Annotated[list[dict[str, Any]], Field(max_length=MAX_EVENTS)]

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data


class Imported(BaseModel):
    """A file or a job of another service, as it was there. Read-only: it neither runs nor changes here."""

    id: str = Field(description="Its id there.")
    object: Literal["import"] = "import"
    kind: Literal["file", "job"]
    source: dict[str, Any] = Field(description="The object as it was told.")
    checkpoints: list[dict[str, Any]]
    file_id: str | None
    job_id: str | None
    complete: bool
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, row: Row) -> Imported:
        """A row as clients see it."""
        return cls(
            id=row.source_id,
            kind=row.kind,
            source=row.body,
            checkpoints=row.checkpoints,
            file_id=row.file_id,
            job_id=row.job_id,
            complete=row.complete,
            created_at=int(row.created_at.timestamp()),
            updated_at=int(row.updated_at.timestamp()),
        )


class ImportPage(Page):
    """Imports, in the order of their ids."""

    data: list[Imported]


class EventsTaken(BaseModel):
    """How many events are kept now."""

    id: str
    object: Literal["import.events"] = "import.events"
    kept: int


class ImportEventPage(Page):
    """Events of an imported job as they were told, newest first."""

    data: list[dict[str, Any]]


class ImportDeleted(BaseModel):
    """An import that is forgotten; files and jobs made of it stay."""

    id: str
    object: Literal["import"] = "import"
    deleted: Literal[True] = True
