"""FINE_TUNE: from prepared examples and a base to a LoRA adapter.

Reads train.json, prepared/, base, base.json; writes adapter/, metrics.csv and result.json, all of them copies of what the
train/ folder (state_dir) holds, so that an attempt that finds the training done ends at once. Ends with `loss_diverged`,
`out_of_memory`, `paused`, `interrupted`, `max_runtime_exceeded` or `unsupported_model`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer, load
from finetune.evaluate.answers import read_questions
from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.progress import write_atomic, write_report
from finetune.steps import Base, Resolved, Result, TrainStep
from finetune.train import adapter
from finetune.train.batches import CPU_TOKENS, GPU_TOKENS
from finetune.train.folder import TrainFolder, step_of, train_key
from finetune.train.remote import folder_of
from finetune.train.tell import Teller, peak_memory
from finetune.train.trainer import SupervisedTrainer, arguments
from finetune.train.watch import Watch

SAMPLES = 2
"""Held-out questions answered at every validation."""


@dataclass(frozen=True)
class Given:
    """What a training starts from."""

    step: TrainStep
    prepared: Path
    base_folder: Path
    base: Base
    resolved: Resolved
    tokenizer: TextTokenizer
    pad_id: int
    key: str


def run(step: TrainStep, inputs: dict[str, Path], out: Path) -> None:
    """Train, or take over what was trained.

    Args:
        step: train.json.
        inputs: `prepared`, `base`, `base_info`; `access` where the task shares no disk with the service.
        out: Gets adapter/, metrics.csv, result.json; also train/, if the step names no state_dir.
    """
    given = _read(step, inputs)
    folder = folder_of(step, inputs, out, given.key)
    with folder.owned():
        folder.claim(given.key)
        done = folder.finished()
        taken_over = done is not None
        if done is None:
            folder.begin()
            done = train(given, folder)
        else:
            print("This training is done already: its result is taken over.", flush=True)
        _hand_over(folder, out)
    _report(out, given.resolved, done, taken_over)


def train(given: Given, folder: TrainFolder) -> Result:
    """Train from the newest checkpoint, or from the beginning, to the end.

    Args:
        given: What to train.
        folder: Owned; it gets checkpoints, adapter/ and result.json, the latter also when the training stops early.
    Raises:
        StepError: The training failed or was stopped; result.json says the same.
    """
    loading.use_threads()
    where = loading.device()
    kind = loading.precision(where)
    resumed = next(reversed(folder.checkpoints()), None)
    teller = Teller(folder, given.resolved.total_steps, given.resolved.n_epochs, where)
    watch = Watch(folder, teller.seconds, given.step.max_runtime_seconds)
    with watch.listening():
        model = loading.add_lora(loading.load_base(given.base_folder, where, kind), given.step.lora, given.step.seed)
        trainer = _trainer(given, folder, model, teller, watch, where)
        teller.start(step_of(resumed) if resumed else None, precision=kind, device=str(where), pid=os.getpid())
        try:
            if watch.signalled:  # while the base was loaded
                watch.reason = "interrupted"
            else:
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except StepError as error:
            folder.end(_result(given, teller, trainer, kind, "failed", error), teller.step)
            raise
    if watch.reason is not None:
        raise _stopped(given, folder, teller, trainer, kind)
    result = _result(given, teller, trainer, kind, "succeeded")
    with folder.making("adapter") as beside:
        adapter.write_weights(trainer.model, given.base, beside)
        adapter.write_tokenizer(given.base_folder, given.tokenizer.template.source, beside)
        adapter.write_card(beside, given.base, given.resolved, given.step.lora, result)
    folder.end(result, teller.step)
    return result


def _read(step: TrainStep, inputs: dict[str, Path]) -> Given:
    prepared = inputs["prepared"]
    base = Base.model_validate_json(inputs["base_info"].read_bytes())
    resolved = Resolved.model_validate_json((prepared / "resolved.json").read_bytes())
    template = (prepared / "chat_template.jinja").read_text(encoding="utf-8")
    return Given(
        step=step,
        prepared=prepared,
        base_folder=inputs["base"],
        base=base,
        resolved=resolved,
        tokenizer=load(inputs["base"], template),
        pad_id=int(json.loads((prepared / "tokens.json").read_text(encoding="utf-8"))["pad_id"]),
        key=train_key(step, base, resolved),
    )


def _trainer(
    given: Given, folder: TrainFolder, model: Any, teller: Teller, watch: Watch, where: torch.device
) -> SupervisedTrainer:
    return SupervisedTrainer(
        model,
        arguments(folder, given.resolved, given.step.seed, where),
        write=lambda model, place: adapter.write_weights(model, given.base, place),
        folder=folder,
        resolved=given.resolved,
        splits=(Examples(given.prepared, "train"), Examples(given.prepared, "validation")),
        pad_id=given.pad_id,
        budget=CPU_TOKENS if where.type == "cpu" else GPU_TOKENS,
        teller=teller,
        watch=watch,
        ask=(read_questions(given.prepared / "samples.jsonl", given.tokenizer, SAMPLES), given.tokenizer),
    )


def _stopped(
    given: Given, folder: TrainFolder, teller: Teller, trainer: SupervisedTrainer, kind: loading.Precision
) -> StepError:
    """Leave word of a training that was stopped; its checkpoint is written."""
    reason = trainer.watch.reason or "interrupted"
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
    given: Given, teller: Teller, trainer: SupervisedTrainer, kind: str, status: Any, error: StepError | None = None
) -> Result:
    return Result(
        status=status,
        train_key=given.key,
        error=error.as_error() if error else None,
        steps=teller.step,
        trained_tokens=trainer.sampler.trained_before(teller.step, trainer.trained),
        train_loss=teller.loss,
        valid_loss=teller.valid_loss,
        valid_mean_token_accuracy=teller.valid_accuracy,
        seconds=round(teller.seconds(), 3),
        cpu_seconds=round(teller.cpu_seconds(), 3),
        gpu_seconds=round(teller.seconds(), 3) if teller.where.type == "cuda" else 0.0,
        peak_memory_bytes=peak_memory(teller.where),
        precision=kind,
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")},
    )


def _hand_over(folder: TrainFolder, out: Path) -> None:
    """Copy what the pipeline hands on; the train/ folder keeps its own."""
    shutil.rmtree(out / "adapter", ignore_errors=True)
    shutil.copytree(folder.adapter, out / "adapter")
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
