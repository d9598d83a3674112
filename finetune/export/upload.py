"""UPLOAD_MODEL: the result to S3, below `<path>/<job>/`, and a manifest that says what it is.

Reads upload.json, the adapter, result.json, source.json, base.json, resolved.json, statistics.json, metrics.csv,
evaluation.json, exported/ and the checkpoints in state_dir; writes model_s3.txt, README.md and manifest.json. Every object is read back and its sha256 compared; the
manifest goes up last, so a prefix with a manifest is whole. S3 may be away for a quarter of an hour.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune import environment, s3
from finetune.download import size_text
from finetune.exit_codes import StepError
from finetune.export import GGUF, MERGED, mirrored
from finetune.export.archive import pack
from finetune.export.card import card
from finetune.model.cache import SAFE_NAME, file_sha256
from finetune.model.product import ADAPTER_FILES, kind_of
from finetune.progress import write_atomic, write_report
from finetune.steps import (
    Base,
    EvaluationResult,
    ExportResult,
    Manifest,
    Resolved,
    Result,
    Source,
    StepFile,
    UploadStep,
)

CHECKPOINTS = 3
CARD = "README.md"
Some = TypeVar("Some")
File = TypeVar("File", bound=StepFile)


def run(step: UploadStep, inputs: dict[str, Path], out: Path) -> None:
    """Upload the result of a job.

    Args:
        step: Where to, and what to say in the manifest.
        inputs: `adapter` (or a model), `resolved`, `result`, `source`, `base_info`; `statistics`, `metrics`, `evaluation` and `exported` if
            there are any.
        out: Gets model_s3.txt, README.md and manifest.json.
    Raises:
        StepError: `access_denied`, `file_not_found` (no such bucket), `s3_unavailable` after 15 minutes,
            `unsupported_operation` for an archive this version cannot write.
    """
    prefix = result_prefix(step)
    write_atomic(out / "model_s3.txt", f"model uploaded to {prefix}\n")
    patience = environment.upload_patience()
    with s3.opened(step.s3) as client:
        if step.mirror is not None:
            prefix_of_state = step.mirror
            mirror = patiently(lambda: mirrored.bring(client, prefix_of_state, ADAPTER_FILES, out), patience)
            step = step.model_copy(update={"state_dir": str(mirror)})
        kind = kind_of(inputs["adapter"])
        manifest = build_manifest(step, inputs)
        write_atomic(out / CARD, card(manifest, whole=kind == "model"))
        files = collect(step, inputs, out)
        described = [
            Manifest.File(path=name, sha256=file_sha256(path), size=path.stat().st_size) for name, path in files
        ]
        write_atomic(out / "manifest.json", manifest.model_copy(update={"files": described}).text())
        for entry, (name, path) in zip(described, files, strict=True):
            send(client, path, prefix + name, entry.sha256, patience=patience)
            print(f"{name}: {size_text(entry.size)}", flush=True)
        sha256 = file_sha256(out / "manifest.json")
        send(client, out / "manifest.json", f"{prefix}manifest.json", sha256, patience=patience)
        size = sum(entry.size for entry in described)
        message = f"Uploaded the {kind}: {len(files) + 1} files ({size_text(size)}) to {prefix}"
        data = {"prefix": prefix, "files": len(files) + 1, "bytes": size, "manifest_sha256": sha256}
        write_report(out, "upload", message, data)


def result_prefix(step: UploadStep) -> str:
    """The S3 prefix that is this job's alone, with a slash at its end."""
    return f"{step.output.path.rstrip('/')}/{step.job}/"


def collect(step: UploadStep, inputs: dict[str, Path], out: Path) -> list[tuple[str, Path]]:
    """What to upload besides the manifest: relative key and file, sorted.

    Raises:
        StepError: `invalid_step_file`: the folder has neither adapter nor model, or a name that is none of ours.
    """
    place = f"{kind_of(inputs['adapter'])}/"
    product = [(name, path) for name, path in _files_below(inputs["adapter"], place) if path.name != CARD]
    product.append((place + CARD, out / CARD))
    state = Path(step.state_dir) if step.state_dir else None
    files = [*product, *checkpoints(state), *boards(state)]
    files += [
        (name, inputs[key])
        for key, name in (("metrics", "metrics.csv"), ("evaluation", "evaluation.json"))
        if key in inputs
    ]
    files.append(("model_s3.txt", out / "model_s3.txt"))
    files += _exported(inputs.get("exported"))
    if step.output.archive != "none":
        archive = pack([(name.removeprefix(place), path) for name, path in product], step.output.archive, out)
        files.append((archive.name, archive))
    return sorted(files)


def checkpoints(state: Path | None) -> list[tuple[str, Path]]:
    """The adapter files of the last three checkpoints below a job's train/ folder, without optimiser state."""
    if state is None or not state.is_dir():
        return []
    numbered = [
        (int(match[1]), path) for path in state.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    whole = [(step, path) for step, path in sorted(numbered) if all((path / name).is_file() for name in ADAPTER_FILES)]
    return [
        (f"checkpoints/step-{step}/{name}", path / name)
        for step, path in whole[-CHECKPOINTS:]
        for name in ADAPTER_FILES
    ]


def boards(state: Path | None) -> list[tuple[str, Path]]:
    """TensorBoard's files of a job's train/ folder, numbered instead of named after the machine that wrote them."""
    found = sorted((state / "tensorboard").glob("events.out.tfevents.*")) if state is not None else []
    return [(f"tensorboard/events.out.tfevents.{number}", path) for number, path in enumerate(found, 1)]


def build_manifest(step: UploadStep, inputs: dict[str, Path]) -> Manifest:
    """What the result is and where it came from; its files are not listed yet."""
    exported = inputs.get("exported")
    return Manifest(
        job=step.job,
        suffix=step.suffix,
        created_at=int(time.time()),
        base=_read(Base, inputs["base_info"]),
        dataset=_read(Source, inputs["source"]),
        config=step.config,
        resolved=_read(Resolved, inputs["resolved"]),
        result=_read(Result, inputs["result"]),
        evaluation=_read(EvaluationResult, inputs["evaluation"]) if "evaluation" in inputs else None,
        code_version=step.code_version,
        export=_read(ExportResult, exported / "export.json") if exported is not None else None,
        statistics=_statistics(inputs.get("statistics")),
        image=step.image or environment.image(),
        files=[],
    )


def send(client: s3.S3Client, path: Path, uri: str, sha256: str, *, patience: float) -> None:
    """Upload one file and read it back, again and again while S3 is away.

    Args:
        sha256: Of the file; what is read back must have it.
        patience: Seconds to go on trying.
    Raises:
        StepError: `s3_unavailable` in the end; a refusal at once.
    """

    def once() -> None:
        s3.put(client, path, uri)
        if read_back(client, uri) != sha256:
            raise StepError("s3_unavailable", f"S3 gave back other bytes for {uri} than were sent.")

    patiently(once, patience)


def read_back(client: s3.S3Client, uri: str) -> str:
    """sha256 of an object as S3 gives it."""
    bucket, key = s3.split(uri)
    digest = hashlib.sha256()
    with s3.errors(uri):
        for chunk in client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(s3.CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def patiently(work: Callable[[], Some], patience: float) -> Some:
    """Call `work` until it does not end with `s3_unavailable`, with pauses of 1 to 30 s, for at most `patience` seconds."""
    deadline, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return work()
        except StepError as problem:
            left = deadline - time.monotonic()
            if problem.code.name != "s3_unavailable" or left <= 0:
                raise
            print(f"{problem.message}; trying again for {left:,.0f} s", flush=True)
            time.sleep(min(pause, left))
            pause = min(pause * 2, 30.0)


def _exported(folder: Path | None) -> list[tuple[str, Path]]:
    """The files of merged/ and the GGUF file, by the same names below the prefix."""
    if folder is None:
        return []
    merged = _files_below(folder / MERGED, f"{MERGED}/") if (folder / MERGED).is_dir() else []
    return [*merged, (GGUF, folder / GGUF)] if (folder / GGUF).is_file() else merged


def _statistics(path: Path | None) -> dict[str, Any] | None:
    """statistics.json without its sentence."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StepError("invalid_step_file", f"{path} is no JSON: {problem}") from None
    return {name: value for name, value in found.items() if name != "message"} if isinstance(found, dict) else None


def _files_below(folder: Path, prefix: str) -> list[tuple[str, Path]]:
    found = sorted(path for path in folder.iterdir() if path.is_file())
    if bad := [path.name for path in found if not SAFE_NAME.fullmatch(path.name)]:
        raise StepError("invalid_step_file", f"{folder} holds a file named {bad[0]!r}, which no step writes.")
    return [(prefix + path.name, path) for path in found]


def _read(kind: type[File], path: Path) -> File:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as problem:
        raise StepError("invalid_step_file", f"{path} is no {kind.__name__}: {str(problem).splitlines()[0]}") from None
