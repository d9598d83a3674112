"""What a training sends and is answered on the internal routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from finetune.mirror import LINES_BYTES, OBJECTS, Mirror, Piece

Holder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$", description="A name the process gave itself.")]


class Strict(BaseModel):
    """Takes no field it does not know."""

    model_config = ConfigDict(extra="forbid")


class Take(Strict):
    """Take or renew the lease."""

    train_key: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    holder: Holder
    renew: bool = False


class Release(Strict):
    """Give the lease back."""

    holder: Holder


class Lease(BaseModel):
    """Whether the asker trains, for how long without a heartbeat, and what is asked of the training."""

    held: bool
    seconds: float
    intent: Literal["pause", "stop"] | None


class Lines(Strict):
    """Whole lines and the byte of progress.jsonl at which they stand."""

    holder: Holder
    start: int = Field(ge=0, le=1 << 40)
    text: str = Field(max_length=LINES_BYTES)


class End(BaseModel):
    """Where progress.jsonl ends."""

    end: int


class Text(BaseModel):
    """A piece of progress.jsonl; nothing when there is no more."""

    text: str


class Objects(Strict):
    """Objects to read or to write."""

    holder: Holder
    method: Literal["get", "put"]
    objects: list[Piece] = Field(min_length=1, max_length=OBJECTS)


class Addresses(BaseModel):
    """Presigned addresses by sha256."""

    urls: dict[str, str]


class Record(Strict):
    """What the mirror holds."""

    holder: Holder
    mirror: Mirror


class Recorded(BaseModel):
    """What the mirror holds; null before the first record."""

    mirror: Mirror | None
