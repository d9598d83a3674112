"""The step files of a job, made of what it asks for: the one place where a job becomes what its steps read. No torch."""

from __future__ import annotations

from finetune.config import JobSpec
from finetune.estimate import device
from finetune.steps import (
    S3,
    Comparison,
    DownloadStep,
    EvaluateStep,
    ExportStep,
    FetchStep,
    ModelSource,
    Pinned,
    PrepareStep,
    StepFile,
    TrainStep,
    UploadStep,
)


def plan(
    spec: JobSpec,
    *,
    job: str,
    training: list[Pinned],
    validation: list[Pinned],
    model: ModelSource,
    s3: S3,
    cache_dir: str | None = None,
    state_dir: str | None = None,
    mirror: str | None = None,
    compare: Comparison | None = None,
    code_version: str = "",
    image: str | None = None,
) -> dict[str, StepFile]:
    """The step files of a job, by step name; `export` only where output.merge or output.gguf asks for it.

    Args:
        spec: The job.
        job: Its id: the last part of its S3 prefix.
        training: The dataset's objects.
        validation: The validation set's objects; may be empty.
        model: The base, resolved through the models file.
        s3: How the tasks reach S3.
        cache_dir: Content-addressed cache shared by jobs.
        state_dir: The job's train/ folder.
        mirror: S3 prefix of the training's state, where tasks share no disk; then there is no state_dir.
        compare: The promoted version, for a gate.
        code_version: Of LlamaFlow, for the manifest.
        image: The container image by digest, for the manifest.
    """
    output = spec.output
    files: dict[str, StepFile] = {
        "download": DownloadStep(training=training, validation=validation, s3=s3, cache_dir=cache_dir),
        "fetch": FetchStep(model=model, compare=compare, s3=s3, cache_dir=cache_dir, gguf=output.gguf),
        "prepare": PrepareStep(
            data=spec.data,
            hyperparameters=spec.hyperparameters,
            technique=spec.technique,
            lora=spec.lora,
            room=device.room_of_job(spec.execution),
            seed=spec.seed,
            cache_dir=cache_dir,
        ),
        "train": TrainStep(
            technique=spec.technique,
            method=spec.method.type,
            backend=spec.execution.backend,
            kernels=spec.execution.kernels,
            lora=spec.lora,
            seed=spec.seed,
            state_dir=state_dir,
            max_runtime_seconds=spec.execution.max_runtime_seconds,
        ),
        "evaluate": EvaluateStep(evaluation=spec.evaluation, seed=spec.seed),
        "upload": UploadStep(
            job=job,
            output=spec.output,
            suffix=spec.suffix,
            config=spec.model_dump(mode="json"),
            s3=s3,
            state_dir=state_dir,
            mirror=mirror,
            code_version=code_version,
            image=image,
        ),
    }
    if output.merge or output.gguf:
        files["export"] = ExportStep(merge=output.merge, gguf=output.gguf, name=spec.suffix or job)
    return files
