"""What each step of the pipeline reads: one small JSON file a step, and the files steps hand to each other.

The service (or `python -m finetune plan`, when the pipeline is run by hand) writes the step files once per job, each with
only what its step reads, because a changed file makes Nextflow repeat every step that reads it. No callback, no metadata,
no credential stands in one. Imports pydantic and the standard library, never torch.

Hand-over between steps, each a folder or file in the task's working directory:

    DOWNLOAD_DATA  download.json                          -> data/{train,validation}/NNNN-name, data/source.json (Source)
    FETCH_MODEL    fetch.json                             -> base (folder, or link into the cache), base.json (Base),
                                                             parent/ (parent.json; the adapter to go on from, if any)
                                                             compared/ (the same of the version to compare with, if any)
    PREPARE_DATA   prepare.json data base base.json       -> prepared/ (tokens, resolved.json (Resolved), statistics.json)
    FINE_TUNE      train.json prepared base … parent      -> adapter/ (PEFT folder) or model/, metrics.csv, result.json (Result)
    EVALUATE       evaluate.json prepared base adapter compared -> evaluation.json (EvaluationResult)
    EXPORT_MODEL   export.json prepared base adapter      -> exported/ (merged/, model-f16.gguf, export.json (ExportResult))
    UPLOAD_MODEL   upload.json adapter evaluation.json …  -> model_s3.txt, manifest.json (Manifest)
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from finetune.config import (
    Backend,
    Data,
    Evaluation,
    Hyperparameters,
    Kernels,
    Lora,
    MethodType,
    Output,
    S3Prefix,
    Technique,
)


class StepFile(BaseModel):
    """Strict, and written with sorted keys so that equal content is equal bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def text(self) -> str:
        """The file's content."""
        import json

        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


class S3(StepFile):
    """How S3 is reached. Credentials are a 0600 file named here (lines `NAME=value`), else the environment's."""

    endpoint: str | None = None
    region: str = "us-east-1"
    credentials_file: str | None = None


class Pinned(StepFile):
    """One object of a dataset, as it was when it was checked. Without an ETag (run by hand) whatever is there is taken."""

    uri: S3Prefix | Annotated[str, Field(pattern=r"^file:///")]
    etag: str | None = None
    size: int | None = None


class Parent(StepFile):
    """The adapter a training goes on from: its name, its folder (with a slash at its end), the manifest that vouches for it."""

    id: str
    uri: str
    manifest_uri: str
    manifest_sha256: str | None = None


class ModelSource(StepFile):
    """Where a base model comes from.

    kind `hub`: location is a Hugging Face id. `s3`: a prefix. `path`: a local folder. `package`: a Python package that
    carries a GGUF file, converted once to safetensors. revision: hub commit or branch; for the others the sha256 of the
    files (see `finetune.model.cache.fingerprint`), checked when given.
    """

    id: str
    kind: Literal["hub", "s3", "path", "package"]
    location: str
    revision: str | None = None
    template: str | None = Field(None, description="A chat template that replaces the model's own.")
    parent: Parent | None = Field(
        None, description="An adapter on this base to go on from.", exclude_if=lambda parent: parent is None
    )


class DownloadStep(StepFile):
    """download.json"""

    training: list[Pinned] = Field(min_length=1)
    validation: list[Pinned] = Field(default_factory=list)
    s3: S3 = Field(default_factory=S3)
    cache_dir: str | None = Field(None, description="Raw objects are kept here by key and ETag.")


class Comparison(StepFile):
    """The version that a gate compares with: the one promoted when the job was launched."""

    adapter: Parent
    needed: bool = Field(description="The gate decides by it; else it is left out where it does not fit the base.")


class FetchStep(StepFile):
    """fetch.json"""

    model: ModelSource
    compare: Comparison | None = Field(
        None, description="Fetched too, for EVALUATE.", exclude_if=lambda compare: compare is None
    )
    s3: S3 = Field(default_factory=S3)
    cache_dir: str | None = Field(None, description="Bases are kept here by revision.")
    gguf: bool = Field(
        False, description="The result is to be a GGUF file: other bases are refused.", exclude_if=lambda gguf: not gguf
    )


class Room(StepFile):
    """Memory for FINE_TUNE. bytes: what it may count on; None if that is not known before it runs."""

    kind: Literal["cpu", "gpu"]
    bytes: int | None = None


class PrepareStep(StepFile):
    """prepare.json"""

    data: Data
    hyperparameters: Hyperparameters
    technique: Technique = Field("lora", description="Decides the automatic learning rate.")
    lora: Lora = Field(default_factory=Lora, exclude_if=lambda lora: lora == Lora())
    room: Room | None = Field(None, description="Left out: this machine's.", exclude_if=lambda room: room is None)
    seed: int
    cache_dir: str | None = None


class TrainStep(StepFile):
    """train.json"""

    technique: Technique = "lora"
    method: MethodType = "supervised"
    backend: Backend = "auto"
    kernels: Kernels = Field("auto", exclude_if=lambda kernels: kernels == "auto")
    lora: Lora
    seed: int
    state_dir: str | None = Field(
        None, description="The job's train/ folder: checkpoints, progress.jsonl, result.json. Left out: ./train."
    )
    max_runtime_seconds: int | None = None


class EvaluateStep(StepFile):
    """evaluate.json"""

    evaluation: Evaluation
    seed: int


class ExportStep(StepFile):
    """export.json, where something besides the adapter is asked for."""

    merge: bool = False
    gguf: bool = False
    name: str = Field("model", description="What the GGUF file calls the model.")


class UploadStep(StepFile):
    """upload.json. Everything lies below `<path>/<job>/`."""

    job: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    output: Output
    suffix: str | None = None
    config: dict[str, Any] = Field(description="The job as asked for, for the manifest.")
    s3: S3 = Field(default_factory=S3)
    state_dir: str | None = Field(
        None, description="Where checkpoints lie; adapter-only copies of the last three are uploaded."
    )
    mirror: S3Prefix | None = Field(
        None,
        description="S3 prefix of the training's state, where no disk is shared; then state_dir is none.",
        exclude_if=lambda mirror: mirror is None,
    )
    code_version: str = ""
    image: str | None = None


STEP_FILES: dict[str, type[StepFile]] = {
    "download": DownloadStep,
    "fetch": FetchStep,
    "prepare": PrepareStep,
    "train": TrainStep,
    "evaluate": EvaluateStep,
    "export": ExportStep,
    "upload": UploadStep,
}


class Source(StepFile):
    """data/source.json: what was downloaded."""

    class File(StepFile):
        """One downloaded object: its name below data/, where it came from, sha256 and bytes."""

        name: str
        split: Literal["train", "validation"]
        uri: str
        etag: str | None
        sha256: str
        size: int

    files: list[File]


class Base(StepFile):
    """base.json: the base model as fetched.

    revision: hub commit, or sha256 over the files' names and sha256 values. parameters: count of weights.
    template_sha256: of the chat template in force.
    """

    id: str
    kind: Literal["hub", "s3", "path", "package"]
    location: str
    revision: str
    parameters: int
    template: str | None = None
    template_sha256: str


class Resolved(StepFile):
    """prepared/resolved.json: every `auto` resolved, and what the training will be."""

    technique: Technique = "lora"
    method: MethodType = "supervised"
    beta: float | None = Field(None, description="DPO only.", exclude_if=lambda beta: beta is None)
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    lr_scheduler: Literal["cosine", "linear", "constant"]
    max_length: int
    gradient_accumulation_steps: int
    max_grad_norm: float
    save_steps: int
    save_total_limit: int
    eval_steps: int
    early_stopping_patience: int | None = Field(None, exclude_if=lambda patience: patience is None)
    packing: bool = Field(False, exclude_if=lambda packing: not packing)
    micro_batch_tokens: int | None = Field(None, description="By memory.", exclude_if=lambda tokens: tokens is None)
    gradient_checkpointing: bool = Field(False, description="By memory.", exclude_if=lambda twice: not twice)
    total_steps: int
    n_examples: int
    n_validation: int
    tokens: int = Field(description="Of one epoch, with prompts.")
    trained_tokens: int = Field(description="Of one epoch: those with loss.")
    longest: int
    dropped: int = 0
    truncated: int = 0
    data_sha256: str = Field(description="Over the prepared tokens and masks.")


class Result(StepFile):
    """train/result.json: how the training ended. Written last, beside and renamed."""

    status: Literal["succeeded", "failed", "paused", "interrupted"]
    train_key: str
    error: dict[str, str | None] | None = None
    steps: int = 0
    trained_tokens: int = Field(0, description="Over all epochs.")
    train_loss: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = Field("", description="What it ran on: cpu, or the GPU's name.")
    threads: int = Field(0, description="Of the arithmetic on a CPU.")
    precision: str = "float32"
    parent: Parent | None = Field(None, description="What it went on from.", exclude_if=lambda parent: parent is None)
    left_out: str | None = Field(None, description="What no adapter is beside.", exclude_if=lambda told: told is None)
    versions: dict[str, str] = Field(default_factory=dict)


class GateResult(StepFile):
    """What the quality gate found on the held-out rows; whether the version is promoted is settled by the service.

    scores: By `candidate`, `base` and, where it was fetched, `current`: the value of each metric.
    difference: Of the gate's metric, candidate to the one compared with; positive is better, also of loss.
    interval: Its paired bootstrap interval at 95 %; bound: its lower end at `confidence`, where that decides.
    """

    metric: str
    better_than: Literal["base", "current"]
    min: float | None
    min_delta: float
    confidence: float | None
    rows: int = Field(description="Compared: those held out; for answers those with a question and an answer.")
    compared_with: Literal["base", "current"]
    current: Parent | None = Field(description="The version that was promoted at launch.")
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    difference: float | None = None
    interval: tuple[float, float] | None = None
    bound: float | None = None
    passed: bool
    reason: str = Field(description="As the end of a sentence, such as: exact_match 0.91 > 0.84.")


class Forgetting(StepFile):
    """What general questions with known answers say: the mean loss of their answers, in nats a token.

    drift: loss - base_loss. worst: The question whose answer became least likely.
    """

    prompts: int
    loss: float
    base_loss: float
    drift: float
    worst: str
    worst_drift: float


class EvaluationResult(StepFile):
    """evaluation.json: the adapter on the held-out rows (`base_*`: the base on the same rows), and what it answers."""

    class Sample(StepFile):
        """One question, what was wanted (None for evaluation.prompts), and what base and adapter answered."""

        prompt: str
        wanted: str | None
        base: str | None
        answer: str

    rows: int
    loss: float | None = None
    token_accuracy: float | None = None
    base_loss: float | None = None
    base_token_accuracy: float | None = None
    exact_match: float | None = None
    contains: float | None = None
    chrf: float | None = Field(None, exclude_if=lambda chrf: chrf is None)
    rewards: dict[str, float] | None = Field(None, description="Of pairs.", exclude_if=lambda found: found is None)
    gate: GateResult | None = Field(None, exclude_if=lambda gate: gate is None)
    forgetting: Forgetting | None = Field(None, exclude_if=lambda found: found is None)
    samples: list[Sample] = Field(default_factory=list)


class ExportResult(StepFile):
    """exported/export.json: how well what was made agrees with base + adapter, by logits on the same tokens.

    difference, same: Of the merged float32 weights: the largest difference, and the share of positions with the same most
    likely token. cast_*: the same of the files of merged/, whose weights are stored as `dtype`.
    """

    dtype: str | None = None
    difference: float | None = None
    same: float | None = None
    cast_difference: float | None = None
    cast_same: float | None = None
    gguf_tensors: int | None = None


class Manifest(StepFile):
    """manifest.json beside the adapter on S3: where it came from and the sha256 of every file. Uploaded last."""

    class File(StepFile):
        """One object below the prefix: its relative key, sha256 and bytes."""

        path: str
        sha256: str
        size: int

    version: Literal[1] = 1
    job: str
    suffix: str | None
    created_at: int
    base: Base
    dataset: Source
    config: dict[str, Any]
    resolved: Resolved
    result: Result
    evaluation: EvaluationResult | None
    export: ExportResult | None = Field(None, exclude_if=lambda export: export is None)
    statistics: dict[str, Any] | None = Field(
        None,
        description="Of both splits: examples, tokens, what was left out, repeated or leaked.",
        exclude_if=lambda found: found is None,
    )
    code_version: str
    image: str | None
    files: list[File] = Field(description="Every object below the prefix but the manifest itself.")
