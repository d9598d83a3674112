"""The wire shapes of models and adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.models import Adapter as Row
from app.models import AdapterVersion
from app.pages import Page


class Model(BaseModel):
    """A model a chat can name: a base, or a fine-tuned one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Every model; never paged, as the official clients expect."""

    object: Literal["list"] = "list"
    data: list[Model]


class ModelDeleted(BaseModel):
    """A fine-tuned model that is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class Version(BaseModel):
    """One trained adapter; it never changes."""

    object: Literal["adapter.version"] = "adapter.version"
    id: str
    version: int
    model: str = Field(description="Its ft: id.")
    created_at: int
    job_id: str | None
    base: str
    base_revision: str | None
    uri: str
    manifest_sha256: str
    metrics: dict[str, Any]
    promoted: bool


class Adapter(BaseModel):
    """A name and its versions, newest first."""

    object: Literal["adapter"] = "adapter"
    id: str
    name: str
    created_at: int
    promoted_version: int | None
    versions: list[Version]

    @classmethod
    def of(cls, row: Row, versions: list[AdapterVersion]) -> Adapter:
        """A row and its versions as clients see them."""
        return cls(
            id=row.id,
            name=row.name,
            created_at=int(row.created_at.timestamp()),
            promoted_version=row.promoted_version,
            versions=[_version(version, row.promoted_version) for version in versions],
        )


def _version(row: AdapterVersion, promoted: int | None) -> Version:
    return Version(
        id=row.id,
        version=row.version or 0,
        model=row.model,
        created_at=int(row.created_at.timestamp()),
        job_id=row.job_id,
        base=row.base["id"],
        base_revision=row.base.get("revision"),
        uri=row.uri,
        manifest_sha256=row.manifest_sha256,
        metrics=row.metrics,
        promoted=row.version == promoted,
    )


class AdapterPage(Page):
    """Adapters by name."""

    data: list[Adapter]
