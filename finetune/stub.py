"""`python -m finetune.stub <step> --job FILE [--attempt N]`: what a step leaves, tiny but valid, without doing it.

For `nextflow run … -stub-run` and tests of the orchestration: no torch, and no network but the service's for a training that
shares no disk with it. The stub of FINE_TUNE keeps its state as the trainer does, through the same train/ folder: one owner,
progress.jsonl, checkpoints, pause. Behaviour is set in `finetune/environment.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any, Literal

from finetune import environment
from finetune.__main__ import guarded, read_step
from finetune.config import MAKES, Product
from finetune.exit_codes import StepError
from finetune.export import GGUF, MERGED, upload
from finetune.model import cache
from finetune.plan import unpinned, write_plan
from finetune.progress import append, write_atomic, write_report
from finetune.steps import (
    EvaluationResult,
    ExportResult,
    ExportStep,
    FetchStep,
    Resolved,
    Result,
    Source,
    StepFile,
    TrainStep,
    UploadStep,
)
from finetune.train.folder import STATE, TrainFolder, step_of
from finetune.train.remote import folder_of

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": f"Answer {n}"}]}
    for n in range(12)
]
STEPS = 10
KEPT = 3


def main(argv: list[str]) -> int:
    """Leave a step's outputs in the working directory.

    Args:
        argv: The step, `--job` its file, `--attempt` Nextflow's, `--in name=path` what earlier steps left.
    Returns:
        0, or an exit status of the table: the one `LLAMAFLOW_STUB_FAULT` asks for, or that of a pause.
    """
    parser = argparse.ArgumentParser(prog="python -m finetune.stub", description=__doc__)
    parser.add_argument("step", choices=["plan", *WORK])
    parser.add_argument("--job", required=True, type=Path)
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--in", dest="inputs", action="append", default=[])
    given = parser.parse_args(argv)
    inputs = {name: Path(path) for name, _, path in (text.partition("=") for text in given.inputs)}

    def work() -> None:
        print(f"This is the stub of {given.step}", flush=True)
        if given.step == "train" and environment.stub_line():
            print("x" * environment.stub_line(), flush=True)
        if given.step == "plan":
            write_plan(given.job, Path(), unpinned)
            return
        fail(given.step, given.attempt)
        time.sleep(environment.stub_slow().get(given.step, 0))
        WORK[given.step](read_step(given.step, given.job), inputs, Path())
        if not Path(f"{given.step}.report.json").exists():
            write_report(Path(), given.step, f"Stub of {given.step} done.", {})

    return guarded(work, Path())


def fail(step: str, attempt: int) -> None:
    """End as `LLAMAFLOW_STUB_FAULT` says: `train=loss_diverged`, or `download=s3_unavailable:once` for the first attempt only."""
    for fault in environment.stub_faults():
        target, _, rest = fault.partition("=")
        name, _, once = rest.partition(":")
        if target == step and (once != "once" or attempt == 1):
            raise StepError(name)


def _download(step: StepFile, inputs: dict[str, Path], out: Path) -> None:
    content = "".join(json.dumps(row) + "\n" for row in ROWS)
    (out / "data" / "train").mkdir(parents=True, exist_ok=True)
    write_atomic(out / "data" / "train" / "0001.jsonl", content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    file = Source.File(name="train/0001.jsonl", split="train", uri="stub", etag=None, sha256=sha256, size=len(content))
    write_atomic(out / "data" / "source.json", Source(files=[file]).text())


def _fetch(step: FetchStep, inputs: dict[str, Path], out: Path) -> None:
    for name in ("base", "parent", "compared"):
        (out / name).mkdir(exist_ok=True)
    for name in ("parent", "compared"):
        write_atomic(out / name / "parent.json", "{}\n")
    write_atomic(out / "base" / "config.json", '{"model_type": "stub"}\n')
    write_atomic(out / "base" / "model.safetensors", _safetensors())
    write_atomic(out / "base.json", cache.describe(step.model, out / "base", cache.fingerprint(out / "base")).text())


def _prepare(step: StepFile, inputs: dict[str, Path], out: Path) -> None:
    (out / "prepared").mkdir(exist_ok=True)
    resolved = Resolved(
        n_epochs=1, batch_size=1, learning_rate_multiplier=1.0, learning_rate=1e-3, warmup_ratio=0.1, weight_decay=0.0,
        lr_scheduler="cosine", max_length=128, gradient_accumulation_steps=1, max_grad_norm=1.0, save_steps=5,
        save_total_limit=3, eval_steps=STEPS, total_steps=STEPS, n_examples=STEPS, n_validation=0, tokens=100,
        trained_tokens=50, longest=10, data_sha256=hashlib.sha256(b"stub").hexdigest(),
    )  # fmt: skip
    write_atomic(out / "prepared" / "resolved.json", resolved.text())
    write_atomic(
        out / "prepared" / "statistics.json", json.dumps({"examples": STEPS, "tokens": 100, "longest": 10}) + "\n"
    )
    write_atomic(out / "prepared" / "samples.jsonl", "")


def _train(step: TrainStep, inputs: dict[str, Path], out: Path) -> None:
    folder = folder_of(step, inputs, out, "stub")
    with folder.owned():
        folder.claim("stub")
        if folder.finished() is None:
            folder.begin()
            _pretend_steps(folder, MAKES[step.technique])
        shutil.copytree(folder.product, out / folder.product.name, dirs_exist_ok=True)
        for name in ("result.json", "metrics.csv"):
            write_atomic(out / name, (folder.path / name).read_bytes())


def _pretend_steps(folder: TrainFolder, makes: Product) -> None:
    """Steps as the trainer writes them, going on after the last checkpoint; a pause that is asked for is obeyed."""
    done = max((step_of(path) or 0 for path in folder.checkpoints()), default=0)
    append(folder.progress, "start", total_steps=STEPS, resumed_from=done or None)
    for number in range(done + 1, STEPS + 1):
        time.sleep(environment.stub_seconds() / STEPS)
        append(folder.progress, "step", **_step(number))
        if number % 5 == 0:
            _save(folder, number)
        if (intent := _intent(folder)) is not None:
            _save(folder, number)
            error = StepError(intent)
            folder.end(Result(status=intent, train_key="stub", error=error.as_error(), steps=number), number)
            raise error
    with folder.making(makes) as beside:
        _write(beside, _adapter() if makes == "adapter" else _model())
    result = Result(status="succeeded", train_key="stub", steps=STEPS, trained_tokens=50, train_loss=1 / STEPS)
    folder.end(result, STEPS)


def _evaluate(step: StepFile, inputs: dict[str, Path], out: Path) -> None:
    sample = EvaluationResult.Sample(prompt="Question 1", wanted="Answer 1", base="?", answer="Answer 1")
    result = EvaluationResult(
        rows=1, loss=0.1, token_accuracy=0.9, base_loss=2.0, base_token_accuracy=0.1, samples=[sample]
    )
    write_atomic(out / "evaluation.json", result.text())


def _export(step: ExportStep, inputs: dict[str, Path], out: Path) -> None:
    folder = out / "exported"
    folder.mkdir(exist_ok=True)
    if step.merge:
        (folder / MERGED).mkdir(exist_ok=True)
        _write(folder / MERGED, {"config.json": '{"model_type": "stub"}\n', "model.safetensors": _safetensors()})
    if step.gguf:
        write_atomic(folder / GGUF, b"GGUF")
    write_atomic(folder / "export.json", ExportResult(dtype="float32", difference=0.0, same=1.0).text())


def _upload(step: UploadStep, inputs: dict[str, Path], out: Path) -> None:
    """Without S3 a manifest of what would go up; with `LLAMAFLOW_STUB_UPLOAD=1` the real upload of the stubs' files."""
    if environment.stub_uploads():
        upload.run(step, inputs, out)
        return
    write_atomic(out / "model_s3.txt", f"model uploaded to {upload.result_prefix(step)}\n")
    write_atomic(out / "manifest.json", upload.build_manifest(step, inputs).text())


def _adapter() -> dict[str, str | bytes]:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["stub"], "task_type": "CAUSAL_LM"}
    return {"adapter_config.json": json.dumps(config) + "\n", "adapter_model.safetensors": _safetensors()}


def _model() -> dict[str, str | bytes]:
    return {"config.json": '{"model_type": "stub"}\n', "model.safetensors": _safetensors()}


def _safetensors() -> bytes:
    """One float32 zero named `stub`, in the safetensors format."""
    header = json.dumps({"stub": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _step(number: int) -> dict[str, Any]:
    return {
        "step": number, "total_steps": STEPS, "epoch": number / STEPS, "loss": 1 / number, "train_accuracy": 0.5,
        "learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 5 * number, "tokens_per_second": 100.0,
        "eta_seconds": 0.0, "seconds": float(number), "memory_bytes": 1 << 20,
    }  # fmt: skip


def _save(folder: TrainFolder, number: int) -> None:
    with folder.making(f"checkpoint-{number}") as beside:
        _write(beside, _adapter() | {STATE: json.dumps({"global_step": number}) + "\n"})
    folder.keep(KEPT)
    append(
        folder.progress, "checkpoint", step=number, path=str(folder.path / f"checkpoint-{number}"), train_loss=1 / number,
        train_mean_token_accuracy=0.5, valid_loss=None, valid_mean_token_accuracy=None,
    )  # fmt: skip
    folder.write_metrics()


def _write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        write_atomic(folder / name, content)


def _intent(folder: TrainFolder) -> Literal["paused", "interrupted"] | None:
    asked = folder.intent()
    return "paused" if asked == "pause" else "interrupted" if asked == "stop" else None


WORK: dict[str, Any] = {
    "download": _download,
    "fetch": _fetch,
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "upload": _upload,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
