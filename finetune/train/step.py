"""FINE_TUNE: from prepared examples and a base to a LoRA adapter, or to a whole model.

Reads train.json, prepared/, base, base.json, parent/; writes adapter/ (or model/), metrics.csv, result.json, copies of what the
train/ folder (state_dir) holds, so that an attempt that finds the training done ends at once. Ends with `loss_diverged`,
`out_of_memory`, `paused`, `interrupted`, `max_runtime_exceeded`, `unsupported_model`, `unsupported_operation` or, where the
adapter to go on from is none of this base, `manifest_mismatch`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from finetune.config import MAKES
from finetune.data.tokenizer import load
from finetune.exit_codes import StepError
from finetune.model import loading, targets
from finetune.model.cache import file_sha256
from finetune.model.peft_folder import WEIGHTS
from finetune.progress import write_atomic, write_report
from finetune.steps import Base, Parent, Resolved, Result, TrainStep
from finetune.train import computing, methods, questions, ranks
from finetune.train.folder import TrainFolder, step_of, train_key
from finetune.train.methods import Given, Work
from finetune.train.remote import folder_of
from finetune.train.techniques import Ground, Made, technique
from finetune.train.tell import Teller, device_name, peak_memory, threads
from finetune.train.watch import Reason, Watch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes")
"""Whose versions a result tells."""


def run(step: TrainStep, inputs: dict[str, Path], out: Path) -> None:
    """Train, or take over what was trained.

    Args:
        step: train.json.
        inputs: `prepared`, `base`, `base_info`; `parent`, if there is one; `access` where no disk is shared with the service.
        out: Gets adapter/ or model/, metrics.csv, result.json; also train/, if the step names no state_dir.
    """
    given = _read(step, inputs)
    if ranks.join(loading.device()) > 0:
        _follow(given)
        return
    folder = folder_of(step, inputs, out, given.key)
    with folder.owned():
        folder.claim(given.key)
        done = folder.finished()
        taken_over = ranks.agreed(done is not None)
        if done is None:
            folder.begin()
            done = train(given, folder)
        else:
            print("This training is done already: its result is taken over.", flush=True)
        _hand_over(folder, out)
    _report(out, given.resolved, done, taken_over)


def _follow(given: Given) -> None:
    """Train together with the process that leads; what comes out is its."""
    if not ranks.agreed(False):
        with ranks.following() as folder:
            train(given, folder)


def train(given: Given, folder: TrainFolder) -> Result:
    """Train from the newest checkpoint, or from the beginning, to the end.

    Args:
        given: What to train.
        folder: Owned; it gets checkpoints, the product and result.json, the latter also when the training stops early.
    Raises:
        StepError: The training failed or was stopped; result.json says the same.
    """
    loading.use_threads()
    where = loading.device()
    kind = loading.precision(where)
    resumed = ranks.agreed(next((path for path in reversed(folder.checkpoints()) if resumable(path)), None))
    teller = Teller(folder, given.resolved.total_steps, given.resolved.n_epochs, where)
    watch = Watch(folder, teller.seconds, given.step.max_runtime_seconds)
    chosen = technique(given.step.technique, methods.backend(given.step.backend))
    computing.require(given.step.kernels, where)
    with watch.listening():
        parent = given.parent[1] if given.parent else None
        ground = Ground(given.base_folder, given.step.lora, given.step.seed, parent, where, kind)
        model = chosen.load(ground)
        if given.step.kernels == "compile":
            computing.compile_layers(model)
        trainer = methods.trainer(Work(given, chosen, model, folder, teller, watch, where, kind))
        _tell_of_parent(given, teller)
        teller.start(step_of(resumed) if resumed else None, precision=kind, device=str(where), pid=os.getpid())
        try:
            if ranks.agreed(watch.signalled):  # while the base was loaded
                watch.reason = "interrupted"
            else:
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except StepError as error:
            folder.end(_result(given, teller, trainer, kind, "failed", error), teller.step)
            raise
    if watch.reason is not None:
        raise _stopped(given, folder, teller, trainer, kind, watch.reason)
    result = _result(given, teller, trainer, kind, "succeeded")
    with folder.making(MAKES[given.step.technique]) as beside:
        told = Made(given.base_folder, given.base, given.tokenizer.template.source, given.resolved, result)
        chosen.export(trainer.model, told, beside)
        if MAKES[given.step.technique] == "adapter":
            _keep_questions(trainer.model, given, teller, beside)
    folder.end(result, teller.step)
    return result


def _keep_questions(model: Any, given: Given, teller: Teller, folder: Path) -> None:
    """The vectors of the training questions beside the adapter; a training is not lost over them."""
    try:
        questions.keep(model, given.prepared, given.tokenizer, folder)
    except (RuntimeError, AttributeError, TypeError) as problem:  # memory, or a base that is built otherwise
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        teller.notice(teller.step, f"The adapter has no question vectors, so it cannot be routed to: {reason}")


def resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint holds all that the training goes on from: without the optimiser's state it would be another one."""
    names = ("optimizer.pt", "scheduler.pt")
    return all((checkpoint / name).is_file() for name in names) and any(checkpoint.glob("rng_state*.pth"))


def _read(step: TrainStep, inputs: dict[str, Path]) -> Given:
    prepared = inputs["prepared"]
    base = Base.model_validate_json(inputs["base_info"].read_bytes())
    resolved = Resolved.model_validate_json((prepared / "resolved.json").read_bytes())
    template = (prepared / "chat_template.jinja").read_text(encoding="utf-8")
    parent = _parent(inputs.get("parent"))
    return Given(
        step=step,
        prepared=prepared,
        base_folder=inputs["base"],
        base=base,
        resolved=resolved,
        tokenizer=load(inputs["base"], template),
        pad_id=int(json.loads((prepared / "tokens.json").read_text(encoding="utf-8"))["pad_id"]),
        parent=parent,
        key=train_key(step, base, resolved, file_sha256(parent[1] / WEIGHTS) if parent else None),
    )


def _parent(folder: Path | None) -> tuple[Parent, Path] | None:
    """The adapter to go on from, if FETCH_MODEL brought one."""
    if folder is None or not (folder / WEIGHTS).is_file():
        return None
    return Parent.model_validate_json((folder / "parent.json").read_bytes()), folder


def _tell_of_parent(given: Given, teller: Teller) -> None:
    if given.parent is not None:
        told = f"Going on from {given.parent[0].id}: its weights, and its shape whatever `lora` says."
        teller.notice(teller.step, told)


def _stopped(
    given: Given, folder: TrainFolder, teller: Teller, trainer: Any, kind: loading.Precision, reason: Reason
) -> StepError:
    """Leave word of a training that was stopped; its checkpoint is written."""
    status: Any = {"max_runtime_exceeded": "failed"}.get(reason, reason)
    where = f"after step {teller.step} of {given.resolved.total_steps}; its checkpoint is kept"
    where = where if teller.step else "before its first step"
    message = {
        "paused": f"The training was paused {where}.",
        "interrupted": f"The training was asked to stop {where}.",
        "max_runtime_exceeded": f"The training took longer than {given.step.max_runtime_seconds} s and was ended {where}.",
    }[reason]
    error = StepError(reason, message, param="execution.max_runtime_seconds" if status == "failed" else None)
    folder.end(_result(given, teller, trainer, kind, status, error), teller.step)
    if reason == "paused":
        folder.obeyed()
    return error


def _result(
    given: Given, teller: Teller, trainer: Any, kind: str, status: Any, error: StepError | None = None
) -> Result:
    return Result(
        status=status,
        train_key=given.key,
        error=error.as_error() if error else None,
        steps=teller.step,
        trained_tokens=trainer.tokens_after(teller.step),
        train_loss=teller.loss,
        valid_loss=teller.valid_loss,
        valid_mean_token_accuracy=teller.valid_accuracy,
        seconds=round(teller.seconds(), 3),
        cpu_seconds=round(teller.cpu_seconds(), 3),
        gpu_seconds=round(teller.seconds(), 3) if teller.where.type == "cuda" else 0.0,
        peak_memory_bytes=peak_memory(teller.where),
        device=device_name(teller.where),
        threads=threads(),
        precision=kind,
        parent=given.parent[0] if given.parent else None,
        left_out=targets.left_out(trainer.model),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )


def _hand_over(folder: TrainFolder, out: Path) -> None:
    """Copy what the pipeline hands on; the train/ folder keeps its own."""
    product = folder.product
    shutil.rmtree(out / product.name, ignore_errors=True)
    shutil.copytree(product, out / product.name)
    for name in ("metrics.csv", "result.json"):
        write_atomic(out / name, (folder.path / name).read_bytes())


def _report(out: Path, resolved: Resolved, result: Result, taken_over: bool) -> None:
    lasted = time.strftime("%H:%M:%S", time.gmtime(result.seconds))
    parts = [f"Trained {result.steps:,} steps on {resolved.n_examples:,} examples in {lasted}"]
    if result.train_loss is not None:
        parts.append(f"training loss {result.train_loss:.3f}")
    if result.valid_loss is not None:
        parts.append(f"validation loss {result.valid_loss:.3f}")
    message = "; ".join(parts) + (" (taken over)" if taken_over else "") + "."
    write_report(out, "train", message, result.model_dump(mode="json", exclude={"error"}) | {"taken_over": taken_over})
