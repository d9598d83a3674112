"""The wire shapes of files: OpenAI's FileObject with every key, and the address on S3."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.models import File as Row
from app.pages import Page
from finetune.config import S3Prefix, Spec

PURPOSES = ("fine-tune", "fine-tune-results")


class FileRegister(Spec):
    """An object on S3 that is to become a file; it stays where it is."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"s3_uri": "s3://llamaflow-data/train.jsonl", "purpose": "fine-tune"}}
    )

    s3_uri: S3Prefix = Field(description="s3://bucket/key")
    purpose: Literal["fine-tune", "fine-tune-results"] = Field(description="What it is for.")


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = Field(description="uploaded, processed or error.")
    status_details: str | None
    expires_at: int | None
    uri: str = Field(description="Where it lies on S3.")

    @classmethod
    def of(cls, row: Row) -> FileObject:
        """A row as clients see it."""
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=int(row.created_at.timestamp()),
            filename=row.filename,
            purpose=row.purpose,
            status=row.status,
            status_details=row.status_details,
            expires_at=None,
            uri=row.uri,
        )


class FilePage(Page):
    """Files."""

    data: list[FileObject]


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
