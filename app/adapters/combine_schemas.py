"""The wire shapes of combinations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from app.adapters.schemas import AdapterName, Description, Reason
from app.validation import unstorable
from finetune.config import Float, Spec

Method = Literal["route", "arrow", "cat", "ties"]
MERGES = ("cat", "ties")


class Part(Spec):
    """One adapter of a combination."""

    name: AdapterName
    weight: Annotated[Float, Field(gt=0, le=10, description="Of `cat` and `ties`.")] = 1.0


class Combine(Spec):
    """Which adapters a name is to combine, and how."""

    name: AdapterName = Field(description="What answers as the combination; the adapter is made if need be.")
    adapters: list[Part] = Field(min_length=2, max_length=8)
    method: Method = Field(
        "route",
        description="`route`: each request goes to the adapter whose training questions lie nearest, or to the base; "
        "`arrow`: each token chooses; `cat`, `ties`: one merged adapter, as a new version.",
    )
    threshold: Annotated[Float, Field(ge=-1, le=1)] | None = Field(
        None, description="Of `route`: the score below which the base answers. Left out: the engine's own."
    )
    density: Annotated[Float, Field(gt=0, le=1)] = Field(
        0.5, description="Of `ties`: the share of each adapter's weights that is kept."
    )
    description: Description | None = None
    reason: Reason = Field("", description="Why, for the history.")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data

    @model_validator(mode="after")
    def _fits(self) -> Combine:
        names = [part.name for part in self.adapters]
        if len(set(names)) < len(names):
            raise ValueError("adapters: every adapter is named once")
        if self.name in names:
            raise ValueError("name: a combination is none of its own adapters")
        if self.method not in MERGES and any(part.weight != 1 for part in self.adapters):
            raise ValueError(
                "adapters: a weight means something to cat and ties only; route and arrow choose by the question"
            )
        if self.method != "route" and self.threshold is not None:
            raise ValueError("threshold: it is route's")
        return self


class Combined(BaseModel):
    """A name that combines adapters; for `cat` and `ties` the version that was made."""

    object: Literal["adapter.combination"] = "adapter.combination"
    name: str
    method: Method
    adapters: list[dict[str, Any]]
    threshold: float | None = None
    version: int | None = Field(None, description="Of a merge: the version that the name answers with now.")
