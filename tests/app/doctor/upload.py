"""A job's result on S3, as UPLOAD_MODEL leaves it, made of the stubs' files without a pipeline."""

from __future__ import annotations

from pathlib import Path

from app.models import Job
from app.worker import folder
from finetune import stub
from finetune.config import JobSpec
from finetune.export import upload
from finetune.steps import (
    S3,
    DownloadStep,
    EvaluateStep,
    FetchStep,
    ModelSource,
    Pinned,
    StepFile,
    TrainStep,
    UploadStep,
)
from tests.app.worker.services import World

MADE = {
    "adapter": "adapter", "resolved": "prepared/resolved.json", "result": "result.json", "source": "data/source.json",
    "base_info": "base.json", "metrics": "metrics.csv", "evaluation": "evaluation.json",
}  # fmt: skip


def result(world: World, job: Job, out: Path) -> str:
    """Upload a whole result; its prefix."""
    out.mkdir(parents=True)
    spec = JobSpec.model_validate(job.spec)
    steps: dict[str, StepFile | None] = {
        "download": DownloadStep(training=[Pinned(uri=job.training_file)]),
        "fetch": FetchStep(model=ModelSource.model_validate(job.base)),
        "prepare": None,
        "train": TrainStep(lora=spec.lora, seed=1, state_dir=str(out / "train")),
        "evaluate": EvaluateStep(evaluation=spec.evaluation, seed=1),
    }
    for name, made in steps.items():
        stub.WORK[name](made, {}, out)
    home = folder.JobFolder(out)
    folder.write_credentials(home, world.settings)
    access = S3(endpoint=world.settings.s3_endpoint, credentials_file=str(out / "credentials"))
    config, state = spec.model_dump(mode="json"), str(out / "train")
    step = UploadStep(job=job.id, output=spec.output, suffix=job.suffix, config=config, s3=access, state_dir=state)
    upload.run(step, {name: out / place for name, place in MADE.items()}, out)
    return upload.result_prefix(step)
