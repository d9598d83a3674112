"""The wire shapes of models and adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from app.models import Adapter as Row
from app.models import AdapterVersion, Promotion
from app.pages import Page
from app.validation import unstorable
from finetune.config import Bool, Count, S3Prefix, Spec

AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
Reason = Annotated[str, Field(max_length=500)]
Description = Annotated[str, Field(max_length=2000)]


class Model(BaseModel):
    """A model a chat can name: a base, or a fine-tuned one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    base: str | None = Field(None, description="What it stands on: of an alias, where the open model comes from.")
    revision: str | None = Field(None, description="Commit or sha256 of the base, where it is pinned.")
    license: str | None = None
    description: str | None = None
    limits: dict[str, int] | None = Field(None, description="Of jobs on it: max_length, max_epochs.")


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
    """One adapter, trained here or imported; it never changes."""

    object: Literal["adapter.version"] = "adapter.version"
    id: str
    version: int
    model: str = Field(description="Its ft: id.")
    created_at: int
    job_id: str | None = Field(description="null for an imported one.")
    imported_from: str | None
    base: str
    base_revision: str | None
    uri: str
    manifest_sha256: str
    metrics: dict[str, Any]
    promoted: bool
    verdict: Literal["promoted", "not_promoted"] | None = Field(description="Of its gate; null without one.")
    gate: dict[str, Any] | None = Field(
        description="What its gate found: scores, difference and 95 % interval, what it was compared with, and why."
    )
    unservable: str | None = Field(description="Why it cannot be served: its objects were found missing or changed.")


class Adapter(BaseModel):
    """A name and its versions, newest first."""

    object: Literal["adapter"] = "adapter"
    id: str
    name: str
    description: str
    created_at: int
    promoted_version: int | None = Field(description="What the name answers with.")
    combination: dict[str, Any] | None = Field(None, description="The adapters it answers with instead, and how.")
    versions: list[Version]

    @classmethod
    def of(cls, row: Row, versions: list[AdapterVersion]) -> Adapter:
        """A row and its versions as clients see them."""
        return cls(
            id=row.id,
            name=row.name,
            description=row.description,
            created_at=int(row.created_at.timestamp()),
            promoted_version=row.promoted_version,
            combination=row.combination,
            versions=[version_of(version, row.promoted_version) for version in versions],
        )


def version_of(row: AdapterVersion, promoted: int | None) -> Version:
    """A version as clients see it; promoted: that of its name."""
    return Version(
        id=row.id,
        version=row.version or 0,
        model=row.model,
        created_at=int(row.created_at.timestamp()),
        job_id=row.job_id,
        imported_from=row.imported_from,
        base=row.base["id"],
        base_revision=row.base.get("revision"),
        uri=row.uri,
        manifest_sha256=row.manifest_sha256,
        metrics=row.metrics,
        promoted=row.version == promoted,
        verdict=row.verdict,
        gate=row.gate,
        unservable=row.unservable,
    )


class AdapterPage(Page):
    """Adapters by name."""

    data: list[Adapter]


class _Body(Spec):
    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data


class AdapterUpdate(_Body):
    """What is to change."""

    description: Description = Field(description="For people; empty for none.")


class Promote(_Body):
    """Which version a name is to answer with."""

    version: Count
    expected: Annotated[Count, Field(description="The version replaced: 409 if another one is promoted.")] | None = None
    reason: Reason = Field("", description="Why, for the history.")


class Rollback(_Body):
    """Why, and from which version."""

    expected: Annotated[Count, Field(description="The version left: 409 if another one is promoted.")] | None = None
    reason: Reason = Field("", description="Why, for the history.")


class ImportFiles(_Body):
    """A PEFT folder's files as they were uploaded: ids of /v1/files."""

    config: str = Field(description="adapter_config.json")
    weights: str = Field(description="adapter_model.safetensors")
    template: str | None = Field(None, description="chat_template.jinja, if the adapter was trained with one.")


class AdapterImport(_Body):
    """A PEFT adapter that was trained elsewhere: at `uri`, or uploaded as `files`."""

    name: AdapterName = Field(description="Gets a new version; the adapter is made if need be.")
    uri: S3Prefix | None = Field(
        None, description="S3 folder that holds adapter_config.json and adapter_model.safetensors."
    )
    files: ImportFiles | None = None
    base: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        None,
        description="A name of the models file, or name@revision. Left out: what adapter_config.json says.",
    )
    description: Description | None = Field(None, description="Of the adapter; left out: as it was.")
    promote: Bool = Field(True, description="Whether the name answers with it at once. It is compared with nothing.")
    reason: Reason = Field("", description="Why, for the history.")

    @model_validator(mode="after")
    def _one_source(self) -> AdapterImport:
        if (self.uri is None) == (self.files is None):
            raise ValueError("uri is required, or files, and not both")
        return self


class Change(BaseModel):
    """One change of what a name answers with."""

    object: Literal["adapter.promotion"] = "adapter.promotion"
    id: str
    created_at: int
    kind: Literal["job", "import", "request", "rollback", "deletion"]
    from_version: int | None
    to_version: int | None
    api_key_id: str | None = Field(description="Who did it; null for the end of a job.")
    api_key_name: str | None
    job_id: str | None
    reason: str

    @classmethod
    def of(cls, row: Promotion, key_name: str | None) -> Change:
        """A row as clients see it."""
        shown = ("id", "kind", "from_version", "to_version", "api_key_id", "job_id", "reason")
        return cls(
            **{name: getattr(row, name) for name in shown},
            created_at=int(row.created_at.timestamp()),
            api_key_name=key_name or None,
        )


class ChangePage(Page):
    """Changes of a name, newest first."""

    data: list[Change]


class AdapterDeleted(BaseModel):
    """An adapter that is gone, with its versions."""

    name: str
    object: Literal["adapter"] = "adapter"
    deleted: bool = True


class VersionDeleted(BaseModel):
    """A version that is gone; its number is not given again."""

    name: str
    version: int
    object: Literal["adapter.version"] = "adapter.version"
    deleted: bool = True


class Dataset(BaseModel):
    """One object that was trained or validated on."""

    uri: str
    etag: str | None
    sha256: str | None
    bytes: int | None


class LineageJob(BaseModel):
    """The job that made a version."""

    id: str
    status: str
    created_at: int
    finished_at: int | None
    training_file: str
    validation_file: str | None
    retry_of: str | None


class Lineage(BaseModel):
    """Where a version comes from."""

    object: Literal["adapter.lineage"] = "adapter.lineage"
    adapter: str
    version: int
    model: str
    base: dict[str, Any] = Field(description="Its id, where it came from, and the revision it is pinned to.")
    parent: dict[str, Any] | None = Field(None, description="The adapter that the training went on from.")
    imported_from: str | None
    job: LineageJob | None = Field(description="null for an imported one.")
    training: list[Dataset] = []
    validation: list[Dataset] = []
    training_rows: int | None = None
    validation_rows: int | None = None
    data_sha256: str | None = Field(None, description="Over the prepared tokens and masks.")
    config: dict[str, Any] | None = Field(description="The job as asked for.")
    resolved: dict[str, Any] | None = Field(description="With every `auto` resolved.")
    code_version: str | None = None
    image: str | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="Of the libraries it was trained with.")
    metrics: dict[str, Any]
    manifest: str
    manifest_sha256: str
    problem: str | None = Field(description="Why the manifest cannot be believed; then only the job's row speaks.")
