"""The wire shapes of jobs: OpenAI's objects with every key, and what LlamaFlow adds. Authority: the `openai` package's types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.errors import BadRequest
from app.pages import Page
from app.validation import unstorable
from app.webhooks.event_types import EventType
from finetune.config import JobSpec

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]

REINFORCEMENT = "method.reinforcement is OpenAI's own and is not offered here; use method.supervised."
INTEGRATIONS = "integrations is OpenAI's own (Weights & Biases) and is not offered here; metrics are events and a CSV."


class JobCreate(JobSpec):
    """What POST takes: the training part, and what concerns the service alone."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "training_file": "s3://llamaflow-data/train.jsonl",
                "suffix": "support",
                "hyperparameters": {"n_epochs": 3},
            }
        }
    )

    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = Field(
        None, description="Up to 16 pairs of your own; keys up to 64, values up to 512 characters."
    )
    callback_url: str | None = Field(None, description="Every terminal event goes there, signed.")
    callback_events: Annotated[list[EventType], Field(max_length=16)] | None = Field(
        None, description="Events that go to callback_url besides the terminal ones."
    )
    integrations: list[Any] | None = Field(None, description="OpenAI's own; not offered.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_openais_own(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unstorable(data)
            method = data.get("method")
            if isinstance(method, dict) and (method.get("reinforcement") or method.get("type") == "reinforcement"):
                raise BadRequest(REINFORCEMENT, code="unsupported_parameter", param="method.reinforcement")
            if data.get("integrations"):
                raise BadRequest(INTEGRATIONS, code="unsupported_parameter", param="integrations")
        return data

    def spec(self) -> dict[str, Any]:
        """The training part alone, as it is stored: a JobSpec."""
        return self.model_dump(mode="json", include=set(JobSpec.model_fields))


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class Progress(BaseModel):
    """How far a job is."""

    model_config = ConfigDict(extra="allow")

    stage: str | None = None
    step: int | None = None
    total_steps: int | None = None
    percent: float | None = None
    eta_seconds: float | None = None
    tokens_per_second: float | None = None


class JobAdapter(BaseModel):
    """The version a job registered."""

    name: str
    version: int
    promoted: bool


class JobRun(BaseModel):
    """The job's newest launch of the pipeline."""

    attempt: int
    profile: str


class Job(BaseModel):
    """A fine-tuning job: OpenAI's keys, then LlamaFlow's. What is not known yet is null."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any] = Field(description='As asked for; resolved, without "auto", once it runs.')
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str = Field(description="validating_files, queued, running, paused, succeeded, failed or cancelled.")
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Any] | None
    metadata: dict[str, str] | None
    method: dict[str, Any]
    suffix: str | None
    technique: str
    progress: Progress | None
    callback_url: str | None
    output: dict[str, Any] | None = Field(description="uri, manifest_sha256 and model_s3 of a succeeded job.")
    adapter: JobAdapter | None
    run: JobRun | None
    usage: dict[str, Any] | None
    estimate: dict[str, Any] | None = Field(
        description="What was expected before the training began, and at the end `actual` and `error`: within the range or not, and the ratio to its middle."
    )
    retry_of: str | None = Field(description="The job that this one was made of by a retry.")


class JobPage(Page):
    """Jobs, newest first."""

    data: list[Job]


class Checkpoint(BaseModel):
    """A saved point of a training."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float | None]
    uri: str | None = Field(description="S3 prefix, once the job has succeeded.")


class CheckpointPage(Page):
    """Checkpoints, newest first."""

    data: list[Checkpoint]


class Stage(BaseModel):
    """One task of a job's run."""

    id: str
    object: Literal["fine_tuning.job.stage"] = "fine_tuning.job.stage"
    name: str
    run: int = Field(description="Which run of the job.")
    attempt: int
    status: str = Field(description="submitted, running, succeeded, cached, failed or aborted.")
    exit_status: int | None
    peak_memory_bytes: int | None
    submitted_at: int | None
    started_at: int | None
    finished_at: int | None


class StagePage(Page):
    """Stages, oldest first."""

    data: list[Stage]
