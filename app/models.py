"""One page of tables, longer than others for being one. All times are the database's clock (`clock_timestamp()`), stored with time zone.

Every row belongs to a project. A fact about a job is an event written in the fact's own transaction (app/jobs/lifecycle.py).
Ids are prefix + 24 base62 characters.
"""

from __future__ import annotations

import secrets
import string
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql import func

_ALPHABET = string.ascii_letters + string.digits

FINAL = ("succeeded", "failed", "cancelled")
"""Statuses that never change again."""


def new_id(prefix: str) -> str:
    """A fresh id, such as `ftjob-` + 24 base62 characters (142 bits)."""
    number, letters = secrets.randbelow(len(_ALPHABET) ** 24), []
    for _ in range(24):
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return prefix + "".join(letters)


class Table(DeclarativeBase):
    """Base of all tables: constraint names are fixed, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: JSONB,
        list[dict[str, Any]]: JSONB,
        int: BigInteger,
        float: Double,
        bytes: LargeBinary,
    }


_IN_LINE = ("project_id", text("priority desc"), "created_at", "id")
"""A project's jobs in the order they are claimed in."""
_FINAL_EVENT = (
    "job_id is not null and type in "
    "('fine_tuning.job.succeeded', 'fine_tuning.job.failed', 'fine_tuning.job.cancelled')"
)
OPEN = "status in ('validating_files', 'queued', 'running', 'paused')"
"""Of a job that has not ended, as the partial index on open jobs says it."""


def _now() -> Any:
    return mapped_column(server_default=func.clock_timestamp(), nullable=False)


SWEEPS = Sequence("sweeps", metadata=Table.metadata)
"""Counts sweeps of the housekeeping; the count is kept on S3 too, so that a database older than its objects is known."""


class Project(Table):
    """Whose everything is. `path_allow`: S3 prefixes its jobs may read and write; null means the setting's default."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    path_allow: Mapped[list[str] | None]
    created_at: Mapped[datetime] = _now()


class ApiKey(Table):
    """A key's sha256; the key itself is shown once. scopes: read, write, admin."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(server_default="")
    hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    keep_completions: Mapped[int | None] = mapped_column(comment="seconds; null: none are kept")
    created_at: Mapped[datetime] = _now()
    revoked_at: Mapped[datetime | None]


class SigningSecret(Table):
    """`whsec_` + base64 of 64 hex characters, for a project's callbacks or (with endpoint_id) for one endpoint. Old ones stay valid until `expires_at`."""

    __tablename__ = "signing_secrets"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id"))
    secret: Mapped[str]
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]


class File(Table):
    """A dataset or result: an object on S3. `owned`: uploaded through the service, so deleted with the row."""

    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint("status in ('uploaded', 'processed', 'error')", name="status"),
        Index("ix_files_project_created", "project_id", text("created_at desc"), "id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    uri: Mapped[str]
    etag: Mapped[str | None]
    sha256: Mapped[str | None]
    owned: Mapped[bool]
    status: Mapped[str]
    status_details: Mapped[str | None]
    created_at: Mapped[datetime] = _now()


class Upload(Table):
    """A file that is uploaded in parts; complete once `file_id` is set."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(comment="as announced; the parts must come to it")
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime] = mapped_column(index=True)
    cancelled_at: Mapped[datetime | None]
    file_id: Mapped[str | None] = mapped_column(comment="of the file it became, which may be deleted by now")


class UploadPart(Table):
    """A part of an upload: an object on S3 until the upload ends."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="cascade"), index=True)
    bytes: Mapped[int]
    created_at: Mapped[datetime] = _now()


class Job(Table):
    """A fine-tuning job. `spec` is the JobSpec as validated; intents are asked-for and not yet settled.

    Ownership: `worker_id` holds it until `lease_until`; each claim raises `fence`, and every write of the owner says
    `WHERE fence = :mine`. `last_seq` numbers the job's events without gaps.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "status in ('validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')",
            name="status",
        ),
        CheckConstraint(
            "(status in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null)", name="finished_at_is_final"
        ),
        CheckConstraint("(status = 'failed') = (error is not null)", name="error_is_failed"),
        CheckConstraint("(worker_id is null) = (lease_until is null)", name="lease_has_owner"),
        CheckConstraint("(status = 'paused') = (paused_at is not null)", name="paused_at_is_paused"),
        Index("ix_jobs_project_created", "project_id", text("created_at desc"), "id"),
        Index("ix_jobs_validating", *_IN_LINE, postgresql_where=text("status = 'validating_files'")),
        Index("ix_jobs_queued", *_IN_LINE, postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_held", "project_id", "worker_id", postgresql_where=text("worker_id is not null")),
        Index(
            "uq_jobs_project_id_idempotency_key",
            "project_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key is not null"),
        ),
        Index("ix_jobs_request_hash", "api_key_id", "request_hash", "created_at"),
        Index("ix_jobs_open", "api_key_id", postgresql_where=text(OPEN)),
        Index("ix_jobs_running", "project_id", postgresql_where=text("status = 'running'")),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    status: Mapped[str]
    spec: Mapped[dict[str, Any]]
    model: Mapped[str]
    base: Mapped[dict[str, Any]] = mapped_column(comment="steps.ModelSource")
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    training_objects: Mapped[list[dict[str, Any]] | None] = mapped_column(comment="steps.Pinned, since validating")
    validation_objects: Mapped[list[dict[str, Any]] | None]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    job_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    callback_url: Mapped[str | None]
    callback_events: Mapped[list[str] | None]
    resolved: Mapped[dict[str, Any] | None] = mapped_column(comment="steps.Resolved, once FINE_TUNE starts")
    progress: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None]
    result_files: Mapped[list[str]] = mapped_column(server_default="[]")
    output: Mapped[dict[str, Any] | None] = mapped_column(comment="uri, manifest_sha256, model_s3")
    usage: Mapped[dict[str, Any] | None]
    estimate: Mapped[dict[str, Any] | None] = mapped_column(
        comment="what was expected once PREPARE_DATA had counted; at the end what it was"
    )
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str]
    created_at: Mapped[datetime] = _now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    estimated_finish: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    logs_uri: Mapped[str | None] = mapped_column(comment="S3 prefix of its logs, once its folder was cleared")
    lacks: Mapped[str | None] = mapped_column(comment="profile or memory: what no worker had for it, once told")
    fence: Mapped[int] = mapped_column(server_default="0")
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    last_seq: Mapped[int] = mapped_column(server_default="0")


class Run(Table):
    """One launch of Nextflow for a job: who it is on which machine, and how it ended."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("job_id", "attempt"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    fence: Mapped[int]
    profile: Mapped[str]
    session_uuid: Mapped[str]
    folder: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int | None]
    pid_started: Mapped[str | None] = mapped_column(comment="start time of the pid in clock ticks since boot")
    boot_id: Mapped[str | None]
    pid_namespace: Mapped[str | None]
    cursor: Mapped[dict[str, Any]] = mapped_column(
        server_default="{}", comment="how far progress was read: file → byte offset"
    )
    started_at: Mapped[datetime] = _now()
    finished_at: Mapped[datetime | None]
    exit_status: Mapped[int | None]


class RunToken(Table):
    """What FINE_TUNE and EVALUATE hold where they share no disk with a worker: good for one run, until it is settled. The hash only."""

    __tablename__ = "run_tokens"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    intent: Mapped[str | None] = mapped_column(comment="what the run's training is asked: pause")


class RunLines(Table):
    """A piece of progress.jsonl of a training that shares no disk with a worker: whole lines, by their place in the file."""

    __tablename__ = "run_lines"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    start: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="byte of the file")
    until: Mapped[int] = mapped_column(comment="the byte after the last")
    content: Mapped[bytes]
    created_at: Mapped[datetime] = _now()


class TrainLease(Table):
    """Who trains a train key where no lock can be shared through a disk."""

    __tablename__ = "train_leases"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    train_key: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    lease_until: Mapped[datetime]
    created_at: Mapped[datetime] = _now()


class Stage(Table):
    """One Nextflow task of a run."""

    __tablename__ = "stages"
    __table_args__ = (
        UniqueConstraint("run_id", "task_hash"),
        Index("ix_stages_job", "job_id", "created_at"),
        CheckConstraint(
            "status in ('submitted', 'running', 'succeeded', 'cached', 'failed', 'aborted')", name="status"
        ),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    process: Mapped[str]
    task_hash: Mapped[str]
    attempt: Mapped[int]
    status: Mapped[str]
    exit_status: Mapped[int | None]
    workdir: Mapped[str | None]
    peak_rss_bytes: Mapped[int | None]
    submitted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()


class Measurement(Table):
    """What a training took: later estimates of the project are made of these. One for each job that succeeded."""

    __tablename__ = "measurements"
    __table_args__ = (
        CheckConstraint("kind in ('cpu', 'gpu')", name="kind"),
        Index("ix_measurements_like", "project_id", "technique", "method", "kind", text("created_at desc")),
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    base: Mapped[str] = mapped_column(comment="its id")
    revision: Mapped[str]
    parameters: Mapped[int]
    technique: Mapped[str]
    method: Mapped[str]
    profile: Mapped[str]
    kind: Mapped[str]
    device: Mapped[str] = mapped_column(comment="the GPU's name, or cpu and its threads")
    tokens: Mapped[int] = mapped_column(comment="over all epochs, prompts included")
    longest: Mapped[int] = mapped_column(comment="tokens of the longest example")
    steps: Mapped[int]
    seconds: Mapped[float]
    peak_memory_bytes: Mapped[int]
    bytes_a_token: Mapped[float | None] = mapped_column(comment="bytes of text that made one token")
    created_at: Mapped[datetime] = _now()


class Event(Table):
    """What happened to a job, in order. History, live stream and webhooks are only readers of this table."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("job_id", "seq"),
        CheckConstraint("level in ('info', 'warn', 'error')", name="level"),
        CheckConstraint("type in ('message', 'metrics')", name="type"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    seq: Mapped[int]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = _now()


class Checkpoint(Table):
    """A saved point of a training."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step_number"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step_number: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    uri: Mapped[str | None] = mapped_column(comment="S3 prefix, once uploaded")
    created_at: Mapped[datetime] = _now()


class Adapter(Table):
    """A named adapter of a project: name → versions, one of them promoted."""

    __tablename__ = "adapters"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,64}$'", name="name"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    promoted_version: Mapped[int | None]
    last_version: Mapped[int] = mapped_column(server_default="0")
    combination: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True), comment="adapters that the name answers with, and how; then no version is promoted"
    )
    created_at: Mapped[datetime] = _now()


class AdapterVersion(Table):
    """One trained adapter; never changes, but for what became of its objects. Without a suffix it has no adapter name and is reached by its `ft:` id alone."""

    __tablename__ = "adapter_versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "version"),
        UniqueConstraint("project_id", "model"),
        CheckConstraint("(adapter_id is null) = (version is null)", name="named_has_version"),
        CheckConstraint("verdict in ('promoted', 'not_promoted')", name="verdict"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    adapter_id: Mapped[str | None] = mapped_column(ForeignKey("adapters.id"))
    version: Mapped[int | None]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), unique=True)
    model: Mapped[str] = mapped_column(comment="the ft: id")
    base: Mapped[dict[str, Any]] = mapped_column(comment="steps.Base, revision pinned")
    uri: Mapped[str] = mapped_column(comment="S3 prefix that holds manifest.json and adapter/")
    manifest_sha256: Mapped[str]
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    verdict: Mapped[str | None] = mapped_column(comment="of its gate; null without one")
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True), comment="steps.GateResult, and why")
    unservable: Mapped[str | None] = mapped_column(comment="why, once its objects were found missing or changed")
    imported_from: Mapped[str | None] = mapped_column(
        comment="where it was brought from; then its objects are the service's own"
    )
    created_at: Mapped[datetime] = _now()


class Promotion(Table):
    """One change of what an adapter's name answers with: who, from which version to which, why. Kept when the adapter is deleted."""

    __tablename__ = "promotions"
    __table_args__ = (
        UniqueConstraint("project_id", "adapter", "number"),
        CheckConstraint("kind in ('job', 'import', 'request', 'rollback', 'deletion')", name="kind"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    adapter: Mapped[str] = mapped_column(comment="its name")
    number: Mapped[int] = mapped_column(comment="1, 2, ... of the name")
    kind: Mapped[str]
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    last_version: Mapped[int] = mapped_column(comment="the newest there had been by then: no number is given twice")
    api_key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    reason: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = _now()


class KeptResponse(Table):
    """A response of /v1/responses with the conversation it answered, until it expires."""

    __tablename__ = "responses"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON, comment="role and content, without instructions")
    response: Mapped[dict[str, Any]] = mapped_column(JSON, comment="as it was answered")
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Import(Table):
    """A file or a job of another service, as it was told: history, never a job of the queue."""

    __tablename__ = "imports"
    __table_args__ = (
        UniqueConstraint("project_id", "source_id"),
        CheckConstraint("kind in ('file', 'job')", name="kind"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    source_id: Mapped[str] = mapped_column(comment="its id there")
    kind: Mapped[str]
    body: Mapped[dict[str, Any]] = mapped_column(comment="as it was told")
    checkpoints: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]")
    file_id: Mapped[str | None] = mapped_column(comment="the file here with its content, deleted or not")
    job_id: Mapped[str | None] = mapped_column(comment="the job here that recreates it")
    complete: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()


class ImportEvent(Table):
    """An event of an imported job, as it was told."""

    __tablename__ = "import_events"
    import_id: Mapped[str] = mapped_column(ForeignKey("imports.id", ondelete="cascade"), primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[int] = mapped_column(comment="created_at there, in seconds")
    body: Mapped[dict[str, Any]]


class Completion(Table):
    """A chat completion of a key that keeps them, until it expires: what feedback is given on."""

    __tablename__ = "completions"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    model: Mapped[str] = mapped_column(comment="as it was asked for")
    served: Mapped[str | None] = mapped_column(comment="the ft: id that answered; null for a base")
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    answers: Mapped[list[str]] = mapped_column(JSON, comment="a text for each choice")
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Feedback(Table):
    """What somebody says of an answer. It holds what was asked and answered, so that it outlives the completion."""

    __tablename__ = "feedback"
    __table_args__ = (
        UniqueConstraint("project_id", "completion_id", "choice"),
        CheckConstraint("rating in ('good', 'bad')", name="rating"),
        Index("ix_feedback_adapter", "project_id", "adapter", "updated_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    completion_id: Mapped[str]
    choice: Mapped[int]
    model: Mapped[str]
    adapter: Mapped[str | None] = mapped_column(comment="the name of the version that answered")
    version: Mapped[int | None]
    rating: Mapped[str]
    correction: Mapped[str | None]
    comment: Mapped[str] = mapped_column(server_default="")
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON, comment="what was asked")
    answer: Mapped[str]
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()


class Loop(Table):
    """Trains an adapter again when there is enough feedback. One an adapter: it never overlaps itself."""

    __tablename__ = "loops"
    __table_args__ = (UniqueConstraint("project_id", "adapter"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    adapter: Mapped[str] = mapped_column(comment="its name")
    every_seconds: Mapped[int | None]
    min_new_examples: Mapped[int]
    gate: Mapped[dict[str, Any]] = mapped_column(comment="config.Gate")
    rounds: Mapped[int] = mapped_column(server_default="0", comment="begun")
    next_look_at: Mapped[datetime] = _now()
    considered_until: Mapped[datetime | None] = mapped_column(comment="feedback up to then was in the last round")
    waits_for: Mapped[str | None] = mapped_column(comment="why no round began when it was looked at last")
    paused_at: Mapped[datetime | None]
    paused_reason: Mapped[str | None]
    created_at: Mapped[datetime] = _now()


class LoopRound(Table):
    """One round of a loop: the job it made, and of which examples."""

    __tablename__ = "loop_rounds"
    loop_id: Mapped[str] = mapped_column(ForeignKey("loops.id", ondelete="cascade"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    training_file: Mapped[str]
    counts: Mapped[dict[str, Any]] = mapped_column(comment="examples: new, old, replaced, left out")
    created_at: Mapped[datetime] = _now()


class WebhookEndpoint(Table):
    """An account-wide receiver with an event filter. A deleted one stays for the log of its deliveries."""

    __tablename__ = "webhook_endpoints"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    created_at: Mapped[datetime] = _now()
    updated_at: Mapped[datetime] = _now()
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    deleted_at: Mapped[datetime | None]


class WebhookHost(Table):
    """A project's breaker of one receiving host (host:port): after failures in a row nothing is sent there until `open_until`."""

    __tablename__ = "webhook_hosts"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    host: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int] = mapped_column(server_default="0")
    open_until: Mapped[datetime | None]
    updated_at: Mapped[datetime] = _now()


class WebhookDelivery(Table):
    """One event owed to one URL; `seq` is the job's event it tells. `body` stays the same bytes on every attempt; its id is the `evt_…`."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status in ('pending', 'delivered', 'dead')", name="status"),
        Index(
            "ix_webhook_deliveries_due",
            "project_id",
            "host",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
        ),
        Index("ix_webhook_deliveries_project", "project_id", text("created_at desc"), "id"),
        Index("ix_webhook_deliveries_job", "job_id", "created_at"),
        Index(
            "uq_webhook_deliveries_event",
            "job_id",
            "seq",
            "type",
            "url",
            "endpoint_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("job_id is not null"),
        ),
        Index(
            "uq_webhook_deliveries_final",
            "job_id",
            "url",
            "endpoint_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text(_FINAL_EVENT),
        ),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    seq: Mapped[int | None]
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id"))
    event_id: Mapped[str] = mapped_column(comment="evt_…, the webhook-id header")
    type: Mapped[str]
    url: Mapped[str]
    host: Mapped[str] = mapped_column(comment="host:port of the url, whose breaker it waits for")
    body: Mapped[bytes]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime] = _now()
    claimed_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()
    finished_at: Mapped[datetime | None]


class DeliveryAttempt(Table):
    """One try of a delivery: status or error, latency, the first KiB of the answer."""

    __tablename__ = "delivery_attempts"
    id: Mapped[str] = mapped_column(primary_key=True)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id"), index=True)
    attempt: Mapped[int]
    response_status: Mapped[int | None]
    error: Mapped[str | None]
    latency_ms: Mapped[int]
    response_head: Mapped[str | None]
    created_at: Mapped[datetime] = _now()


class Worker(Table):
    """A worker process: where it is, what it can run, when it was last seen."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    boot_id: Mapped[str]
    pid_namespace: Mapped[str]
    capabilities: Mapped[dict[str, Any]]
    started_at: Mapped[datetime] = _now()
    heartbeat_at: Mapped[datetime] = _now()
