"""PLAN, for runs by hand: Nextflow's parameters become the step files that the service writes for its jobs.

Reads the parameters as JSON, looks at the dataset's objects on S3 and pins them; writes steps/{download,fetch,prepare,
train,evaluate,upload}.json. Every option of a job is a parameter by its own name; a misspelt one names the nearest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune import environment, s3, step_files, steps
from finetune.config import Data, Evaluation, Hyperparameters, JobSpec, Lora, nearest, unsupported
from finetune.exit_codes import StepError
from finetune.model import parent
from finetune.model.catalog import Entry, load, resolve
from finetune.progress import write_atomic, write_report

DATASET = (".jsonl", ".json", ".csv", ".gz", ".zst")
"""Endings of the keys that a prefix takes; no other key below it is read."""

OWN: dict[str, str] = {
    "input": "training_file",
    "validation": "validation_file",
    "model_name": "model",
    "output": "output.path",
    "preset": "preset",
    "suffix": "suffix",
    "seed": "seed",
    "technique": "technique",
    "method": "method.type",
    "backend": "execution.backend",
    "kernels": "execution.kernels",
    "archive": "output.archive",
    "merge": "output.merge",
    "gguf": "output.gguf",
    "max_runtime_seconds": "execution.max_runtime_seconds",
}
"""Parameters with a name of their own, and the field of a job each is."""

AROUND = (
    "steps",
    "access",
    "job_id",
    "cache_dir",
    "models_file",
    "credentials_file",
    "s3_endpoint",
    "s3_region",
    "run_label",
)
"""Parameters that are about the run, not the job."""

TEXTS = ("input", "validation", "model_name", "output", "suffix", "job_id")

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


Pinning = Callable[[str, steps.S3, Path, str], list[steps.Pinned]]


def parameters() -> dict[str, str]:
    """Every parameter that makes a job, and the field of `JobSpec` it is: `n_epochs` is hyperparameters.n_epochs, `lora_r` lora.r."""
    groups: list[tuple[str, str, type[BaseModel]]] = [
        ("hyperparameters", "", Hyperparameters),
        ("lora", "lora_", Lora),
        ("data", "", Data),
        ("evaluation", "", Evaluation),
    ]
    found = {prefix + name: f"{group}.{name}" for group, prefix, kind in groups for name in kind.model_fields}
    return found | OWN


def main(argv: list[str]) -> None:
    """Write the step files.

    Args:
        argv: `--params FILE`, a JSON object of parameters, or `{"params": {…}, "session", "launch_dir", "state_dir"}` as
            main.nf writes it; `--out DIR`.
    Raises:
        StepError: `invalid_step_file` for a parameter that is not right; those of S3 and of the models file.
    """
    parser = argparse.ArgumentParser(prog="python -m finetune plan", description=__doc__)
    parser.add_argument("--params", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args(argv)
    write_plan(given.params, given.out, pin)


def write_plan(params: Path, out: Path, pinning: Pinning) -> None:
    """Read the parameters, write the step files below `out`/steps.

    Args:
        params: As `main` takes them.
        out: Gets steps/ and plan.report.json.
        pinning: `pin`, or `unpinned` where S3 is not to be asked.
    """
    run = _read(params)
    files = plan(check_names(run["params"]), run, pinning)
    (out / "steps").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(out / "steps" / f"{name}.json", content.text())
    upload = files["upload"]
    if isinstance(upload, steps.UploadStep):
        message = f"Planned job {upload.job}: the result goes to {upload.output.path.rstrip('/')}/{upload.job}/"
        write_report(out, "plan", message, {"job": upload.job})


def check_names(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that are set, by their names here: nulls fall away, `model-name` and `modelName` are `model_name`.

    Raises:
        StepError: `invalid_step_file`: a parameter is not known; names the nearest.
    """
    known = [*parameters(), *AROUND]
    found: dict[str, Any] = {}
    for name, value in params.items():
        plain = name if name in known else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
        if plain not in known:
            near = nearest(plain, known)
            hint = f"Did you mean --{near}?" if near else "docs/pipeline.md lists the parameters."
            raise StepError("invalid_step_file", f"There is no parameter --{name}. {hint}", param=name)
        if value is not None:
            found[plain] = value
    return found


def plan(values: dict[str, Any], run: dict[str, Any], pinning: Pinning) -> dict[str, steps.StepFile]:
    """The step files of a run by hand.

    Args:
        values: Parameters, by `check_names`.
        run: `session` (makes the job's id), `launch_dir` (local files are looked for there), `state_dir` (gets train/).
        pinning: Says which objects an address means.
    """
    launch = Path(run.get("launch_dir") or ".").absolute()
    spec = job_spec(values)
    access = steps.S3(
        endpoint=_text(values, "s3_endpoint"),
        region=_text(values, "s3_region") or steps.S3().region,
        credentials_file=_path(values, "credentials_file", launch),
    )
    models = _path(values, "models_file", launch)
    entries = load(Path(models) if models else environment.models_file())
    model = resolve(spec.model, entries, allow_path=True)
    job = _text(values, "job_id") or f"run-{re.sub('[^0-9a-z]', '', str(run.get('session', 'hand')).lower())[:12]}"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job):
        raise StepError(
            "invalid_step_file", f"--job_id {job!r}: 1 to 64 letters, digits, - and _ are expected.", param="job_id"
        )
    return step_files.plan(
        spec,
        job=job,
        training=pinning(spec.training_file, access, launch, "input"),
        validation=pinning(spec.validation_file, access, launch, "validation") if spec.validation_file else [],
        model=model if pinning is unpinned else with_parent(model, access, entries),
        s3=access,
        cache_dir=_path(values, "cache_dir", launch),
        state_dir=f"{run['state_dir']}/{job}" if run.get("state_dir") else None,
        code_version=importlib.metadata.version("llamaflow"),
    )


def job_spec(values: dict[str, Any]) -> JobSpec:
    """The job that parameters describe.

    Raises:
        StepError: `invalid_step_file` names the parameter, what it was and what is expected; `unsupported_operation`.
    """
    names = parameters()
    if "input" not in values:
        raise StepError(
            "invalid_step_file",
            "--input is missing: s3://bucket/key, a prefix s3://bucket/dir/, or a local file.",
            param="input",
        )
    body: dict[str, Any] = {"model": MODEL}
    for name, value in values.items():
        if name in names and not (name == "preset" and value in ("none", "", False)):
            group, _, field = names[name].rpartition(".")
            place = body.setdefault(group, {}) if group else body
            place[field] = _given(name, value)
    try:
        spec = JobSpec.model_validate(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        name = next((name for name, field in names.items() if path == field or path.startswith(f"{field}.")), path)
        raise StepError("invalid_step_file", f"--{name} {first['input']!r}: {first['msg']}.", param=name) from None
    if refused := unsupported(spec):
        raise StepError("unsupported_operation", refused[1], param=refused[0])
    return spec


def pin(uri: str, access: steps.S3, launch: Path, param: str) -> list[steps.Pinned]:
    """The objects that an address means, as they are now: one, or every dataset file below a prefix ending in `/`.

    Args:
        uri: `s3://bucket/key`, `s3://bucket/dir/`, or a local file, taken from `launch` when relative.
        param: The parameter it was given in, for the error.
    Raises:
        StepError: `file_not_found`, `access_denied`, `s3_unavailable`.
    """
    if not uri.startswith("s3://"):
        path = launch / uri.removeprefix("file://")
        if not path.is_file():
            raise StepError("file_not_found", f"--{param}: there is no file {path}.", param=param)
        return [steps.Pinned(uri=path.resolve().as_uri(), size=path.stat().st_size)]
    with s3.opened(access) as client:
        if not uri.endswith("/"):
            found = [_one(client, uri, param)]
        else:
            found = [row for row in s3.listing(client, uri, param=param) if row.uri.lower().endswith(DATASET)]
        if not found:
            raise StepError(
                "file_not_found", f"--{param}: there is no {', '.join(DATASET)} object below {uri}", param=param
            )
        return [steps.Pinned(uri=row.uri, etag=row.etag, size=row.size) for row in found]


def _one(client: s3.S3Client, uri: str, param: str) -> s3.Object:
    try:
        return s3.head(client, uri, param=param)
    except StepError as problem:
        if problem.code.name != "file_not_found" or not s3.listing(client, f"{uri}/", param=param):
            raise
        message = f"--{param}: there is no object {uri}, but there are objects below {uri}/ : end it with a slash."
        raise StepError("file_not_found", message, param=param) from problem


def with_parent(source: steps.ModelSource, access: steps.S3, entries: dict[str, Entry]) -> steps.ModelSource:
    """Where a base comes from, if a model was given; of an earlier result's prefix, its base and the adapter to go on from.

    Args:
        source: As the models file resolves it; only a prefix is looked at.
        access: How S3 is reached.
        entries: Of the models file.
    Raises:
        StepError: `manifest_mismatch`, `model_not_found`, and those of S3.
    """
    if source.kind != "s3":
        return source
    with s3.opened(access) as client:
        names = {row.uri.removeprefix(source.location) for row in s3.listing(client, source.location, param="model")}
        if "config.json" in names or "manifest.json" not in names:
            return source
        with tempfile.TemporaryDirectory(prefix="llamaflow-manifest-") as scratch:
            s3.fetch(client, f"{source.location}manifest.json", Path(scratch) / "manifest.json", param="model")
            content = (Path(scratch) / "manifest.json").read_bytes()
        return parent.source(source.location, content, entries, allow_path=True)


def unpinned(uri: str, access: steps.S3, launch: Path, param: str) -> list[steps.Pinned]:
    """What `pin` answers, without looking: the stub's."""
    return [steps.Pinned(uri=uri if uri.startswith("s3://") else (launch / uri.removeprefix("file://")).as_uri())]


def _given(name: str, value: Any) -> Any:
    """A parameter as the job takes it: lists from commas, and back to text what Nextflow took for a number."""
    if name in ("metrics", "lora_target_modules") and isinstance(value, str) and value != "all-linear":
        return value.split(",")
    if name == "prompts" and isinstance(value, str):
        return [value]
    return str(value) if name in TEXTS and isinstance(value, int | float) and not isinstance(value, bool) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StepError("invalid_step_file", f"{path} is no JSON file of parameters: {problem}") from None
    if not isinstance(value, dict):
        raise StepError("invalid_step_file", f"{path} holds no JSON object of parameters.")
    return value if isinstance(value.get("params"), dict) else {"params": value}


def _text(values: dict[str, Any], name: str) -> str | None:
    value = _given(name, values.get(name))
    if value is None or isinstance(value, str):
        return value
    raise StepError("invalid_step_file", f"--{name} {value!r}: text is expected.", param=name)


def _path(values: dict[str, Any], name: str, launch: Path) -> str | None:
    text = _text(values, name)
    return str((launch / Path(text).expanduser()).absolute()) if text else None
