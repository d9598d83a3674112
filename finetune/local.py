"""Training without the service and without Nextflow: a whole job with local files, all its steps in one folder.

Reads one JSON file, the body of a job request with file paths where the service has uris; runs the very steps of the
pipeline one after another. Uploads only if the job names an output path.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune import environment, plan, step_files, steps
from finetune.config import MAKES, JobSpec, Product, nearest, unsupported
from finetune.exit_codes import StepError
from finetune.model.catalog import load, resolve
from finetune.progress import write_report

CHAIN: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("download", "finetune.download", ()),
    ("fetch", "finetune.model.fetch", ()),
    ("prepare", "finetune.data.prepare", ("data", "base", "base_info")),
    ("train", "finetune.train.step", ("prepared", "base", "base_info", "parent")),
    ("evaluate", "finetune.evaluate.step", ("prepared", "base", "base_info", "adapter", "compared")),
    ("export", "finetune.export.step", ("prepared", "base", "adapter")),
    (
        "upload",
        "finetune.export.upload",
        ("source", "base_info", "resolved", "statistics", "adapter", "result", "metrics", "evaluation"),
    ),
)
"""Step, its module, and what it takes of what earlier steps left; torch comes with the fourth."""

LEFT: dict[str, str] = {
    "data": "data",
    "source": "data/source.json",
    "base": "base",
    "base_info": "base.json",
    "parent": "parent",
    "compared": "compared",
    "prepared": "prepared",
    "resolved": "prepared/resolved.json",
    "statistics": "prepared/statistics.json",
    "exported": "exported",
    "adapter": "adapter",
    "result": "result.json",
    "metrics": "metrics.csv",
    "evaluation": "evaluation.json",
}
"""Where a step leaves what others take, below the job's folder."""


def run(job_file: Path, out: Path) -> None:
    """Train a job.

    Args:
        job_file: A JSON object with `model` (a folder, or a name of the models file) and `training_file` (a path beside the
            file, or absolute), and anything else a job may have.
        out: Gets everything: data/, base, prepared/, train/, adapter/ or model/, evaluation.json.
    Raises:
        StepError: `invalid_step_file` for a job that is not right; else whatever a step ends with.
    """
    body, folder = read_job(job_file), job_file.resolve().parent
    spec = validate(job_file, body)
    files = _plan(spec, folder, out)
    chain = [link for link in CHAIN if link[0] in files]
    chain = chain if isinstance(body.get("output"), dict) and body["output"].get("path") else chain[:-1]
    product = MAKES[spec.technique]
    for step, module, needs in chain:
        print(f"── {step}", flush=True)
        importlib.import_module(module).run(files[step], _inputs(step, needs, files, out, product), out)
    write_report(out, "local", f"The {product} is in {out / product}", {product: str(out / product)})


def _inputs(
    step: str, needs: tuple[str, ...], files: dict[str, steps.StepFile], out: Path, product: Product
) -> dict[str, Path]:
    """What earlier steps left for one; the upload takes what was exported too, if anything was."""
    more = ("exported",) if step == "upload" and "export" in files else ()
    left = LEFT | {"adapter": product}
    return {name: out / left[name] for name in (*needs, *more)}


def _plan(spec: JobSpec, folder: Path, out: Path) -> dict[str, steps.StepFile]:
    access = steps.S3()
    local = folder / spec.model
    model = str(local) if local.is_dir() else spec.model
    validation = plan.pin(spec.validation_file, access, folder, "validation_file") if spec.validation_file else []
    entries = load(environment.models_file())
    return step_files.plan(
        spec,
        job=f"local-{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]}",
        training=plan.pin(spec.training_file, access, folder, "training_file"),
        validation=validation,
        model=plan.with_parent(resolve(model, entries, allow_path=True), access, entries),
        s3=access,
        state_dir=str((out / "train").resolve()),
        code_version=importlib.metadata.version("llamaflow"),
    )


def read_job(job_file: Path) -> dict[str, Any]:
    """The body of a job.

    Raises:
        StepError: `invalid_step_file`: it is none.
    """
    try:
        body = json.loads(job_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StepError("invalid_step_file", f"{job_file} is no JSON file that can be read: {problem}") from None
    if not isinstance(body, dict) or "training_file" not in body:
        told = "a job has model and training_file; for a step file give its inputs too: --in prepared=… --in base=…"
        raise StepError("invalid_step_file", f"{job_file} is no job: {told}", param="training_file")
    return body


def validate(job_file: Path, body: dict[str, Any]) -> JobSpec:
    """The job that a body describes.

    Raises:
        StepError: `invalid_step_file` names the field; `unsupported_operation`.
    """
    try:
        spec = JobSpec.model_validate(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        told = f"unknown field{_hint(where)}" if first["type"] == "extra_forbidden" else first["msg"]
        raise StepError("invalid_step_file", f"{job_file}: {where}: {told}", param=where) from None
    if refused := unsupported(spec):
        raise StepError("unsupported_operation", refused[1], param=refused[0])
    return spec


def _hint(where: str) -> str:
    """Where an unknown field belongs, or which known one is near."""
    fields = {name: path for name, path in plan.parameters().items() if path.rpartition(".")[2] == name}
    known = fields | {name: name for name in JobSpec.model_fields}
    near = nearest(where.rpartition(".")[2], list(known))
    return f"; did you mean {known[near]}?" if near else ""
