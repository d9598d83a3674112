"""The wire shapes of feedback."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from app.models import Feedback as Row
from app.pages import Page
from app.validation import unstorable
from finetune.config import Bool, Int, S3Prefix, Spec

Rating = Literal["good", "bad"]
Text = Annotated[str, Field(max_length=200_000)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class FeedbackCreate(Spec):
    """What is said of an answer: a rating, a corrected answer, or both."""

    completion_id: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="`id` of a completion; its key must keep them."
    )
    choice: Int = Field(0, description="Which answer of it, if there are several.", ge=0, le=127)
    rating: Rating | None = Field(None, description="Left out with a correction: bad.")
    correction: Text | None = Field(None, description="What should have been answered.")
    comment: Annotated[str, Field(max_length=2000)] = Field("", description="For people.")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data


class Feedback(BaseModel):
    """What was said of an answer."""

    object: Literal["feedback"] = "feedback"
    id: str
    created_at: int
    updated_at: int
    completion_id: str
    choice: int
    model: str = Field(description="As it was asked for.")
    adapter: str | None = Field(
        description="Of the version that answered; null for a base or a version without a name."
    )
    version: int | None
    rating: Rating
    correction: str | None
    comment: str
    messages: list[dict[str, Any]]
    answer: str

    @classmethod
    def of(cls, row: Row) -> Feedback:
        """A row as clients see it."""
        shown = set(cls.model_fields) - {"object", "created_at", "updated_at"}
        return cls(
            **{name: getattr(row, name) for name in shown},
            created_at=int(row.created_at.timestamp()),
            updated_at=int(row.updated_at.timestamp()),
        )


class FeedbackPage(Page):
    """Feedback, newest first."""

    data: list[Feedback]


class FeedbackDeleted(BaseModel):
    """Feedback that is gone."""

    id: str
    object: Literal["feedback"] = "feedback"
    deleted: bool = True


class Rate(BaseModel):
    """How one version was rated."""

    adapter: str
    version: int
    ratings: int
    bad: int
    bad_rate: float
    corrections: int


class RateList(BaseModel):
    """By adapter and version, newest version first."""

    object: Literal["list"] = "list"
    data: list[Rate]


class ExportCreate(Spec):
    """Which feedback becomes a dataset."""

    adapter: Name = Field(description="Feedback on its versions.")
    include_good: Bool = Field(False, description="Also answers rated good, as they are; else corrections alone.")
    uri: S3Prefix | None = Field(
        None, description="s3://bucket/key to write to. Left out: a file of the project, to be named by its id."
    )


class Export(BaseModel):
    """A dataset made of feedback: `messages`, a line each."""

    object: Literal["feedback.export"] = "feedback.export"
    adapter: str
    uri: str
    file_id: str | None = Field(description="To train on, where no uri was given.")
    examples: int
    already_trained: int = Field(description="Left out: the promoted version was trained on them, word for word.")
    held_out: int = Field(description="Left out: their questions are in its validation file.")
    repeated: int = Field(description="Left out: newer feedback answers the same question.")
