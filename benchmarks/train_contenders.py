"""Who is compared: our trainer, TRL's SFTTrainer as it comes and at its best, and the founding plan's script.

All of them start from the same base with the same adapter drawn from the same seed, and supervise the same tokens of the same
examples, eight a step in the same order (packed rows aside), at the same constant learning rate. Each runs in a process of
its own; what is counted begins after the first step, which pays for everything that is done once.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train_data import LONGEST, SEED
from finetune.data.arrays import Examples

IGNORED = -100
BATCH = 8
LORA = {"r": 16, "alpha": 32}
Told = dict[str, Any]


def where_and_kind() -> tuple[Any, Any]:
    """Device and precision that our trainer chooses here."""
    from finetune.model import loading

    where = loading.device()
    return where, loading.precision(where)


def model(inputs: dict[str, Path], kind: str | None = None) -> Any:
    """Base and adapter, on the device; in what our trainer would hold the base in, or in `kind`."""
    from finetune.config import Lora
    from finetune.model import loading

    where, ours = where_and_kind()
    return loading.add_lora(loading.load_base(inputs["base"], where, kind or ours), Lora(**LORA), SEED)


def rows(inputs: dict[str, Path]) -> tuple[list[dict[str, list[int]]], np.ndarray]:
    """The examples in the order our sampler takes them, as input_ids and labels, and the trained tokens of each."""
    from finetune.train.batches import epoch_order

    examples = Examples(inputs["prepared"], "train")
    order = epoch_order(len(examples), SEED, 0)
    found = []
    for row in order:
        example = examples[row]
        labels = np.where(example.mask, example.tokens, IGNORED)
        found.append({"input_ids": example.tokens.tolist(), "labels": labels.tolist()})
    return found, examples.trained[order]


class Clock:
    """Notes CPU time, wall time and loss after every step; a callback of transformers' Trainer by duck's typing."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *_args, **_kwargs: None
        raise AttributeError(name)

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.marks.append((time.process_time(), time.monotonic()))

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def told(marks: list[tuple[float, float]], losses: list[float], trained: list[int]) -> Told:
    """What a run says of itself.

    Args:
        marks: CPU and wall seconds after every step.
        losses: Of every step.
        trained: Trained tokens of every step.
    """
    import torch

    cpu, wall = (end - begin for begin, end in zip(marks[0], marks[-1], strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens": sum(trained[1:]), "cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2), "losses": losses,
        "tokens_a_cpu_second": round(sum(trained[1:]) / cpu, 2), "peak_rss": memory,
        "peak_vram": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0, "steps": len(marks),
    }  # fmt: skip


def ours(inputs: dict[str, Path], folder: Path) -> Told:
    """The whole step FINE_TUNE, as the pipeline runs it."""
    from finetune.config import Lora
    from finetune.progress import read_lines
    from finetune.steps import TrainStep
    from finetune.train.step import run

    run(TrainStep(lora=Lora(**LORA), seed=SEED, state_dir=str(folder / "train")), inputs, folder)
    steps = [line for line in read_lines(folder / "train/progress.jsonl")[0] if line["event"] == "step"]
    tokens = [0, *(line["tokens"] for line in steps)]
    marks = [(line["cpu_seconds"], line["seconds"]) for line in steps]
    return told(marks, [line["loss"] for line in steps], np.diff(tokens).tolist())


def ours_packed(inputs: dict[str, Path], folder: Path) -> Told:
    """The same with several examples a line."""
    from finetune.progress import write_atomic
    from finetune.steps import Resolved

    prepared = folder / "prepared"
    shutil.copytree(inputs["prepared"], prepared)
    resolved = Resolved.model_validate_json((prepared / "resolved.json").read_bytes())
    write_atomic(prepared / "resolved.json", resolved.model_copy(update={"packing": True}).text())
    return ours({**inputs, "prepared": prepared}, folder)


def shared(folder: Path, **more: Any) -> dict[str, Any]:
    """The arguments that all others are given."""
    where, _ = where_and_kind()
    return {
        "output_dir": str(folder), "num_train_epochs": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "warmup_steps": 0, "weight_decay": 0.0, "save_strategy": "no", "logging_steps": 1, "report_to": "none",
        "disable_tqdm": True, "seed": SEED, "use_cpu": where.type == "cpu", "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": BATCH, **more,
    }  # fmt: skip


def trl(inputs: dict[str, Path], folder: Path, kind: str | None = None, **more: Any) -> Told:
    """TRL's SFTTrainer on the tokens as they are prepared."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    found, trained = rows(inputs)
    tokenizer = AutoTokenizer.from_pretrained(inputs["base"])
    tokenizer.pad_token = "<|endoftext|>"
    clock = Clock()
    config = SFTConfig(**shared(folder, max_length=LONGEST, **more))
    trainer = SFTTrainer(
        model(inputs, kind), args=config, train_dataset=Dataset.from_list(found), processing_class=tokenizer,
        callbacks=[clock],
    )  # fmt: skip
    packed = [sum(label != IGNORED for label in row["labels"]) for row in trainer.train_dataset]
    trainer.train()
    size = config.per_device_train_batch_size
    assert sum(packed) == trained.sum(), "not the same tokens are supervised"
    each = [sum(packed[begin : begin + size]) for begin in range(0, len(packed), size)]
    return told(clock.marks, clock.losses, each) | {"bf16": config.bf16, "checkpointing": bool(_checkpoints(config))}


def _checkpoints(config: Any) -> Any:
    return config.gradient_checkpointing or getattr(config, "activation_checkpointing", False)


def trl_default(inputs: dict[str, Path], folder: Path) -> Told:
    """As it comes: padded to the longest of a batch, activations computed twice, bfloat16.

    Where bfloat16 is only emulated it gets float32: with its default it would take more than ten times as long.
    """
    _, kind = where_and_kind()
    return trl(inputs, folder, **({} if kind == "bfloat16" else {"bf16": False}))


def trl_packed(inputs: dict[str, Path], folder: Path) -> Told:
    """At its best: packed rows, no gradient checkpointing, the precision that is quicker here."""
    _, kind = where_and_kind()
    return trl(
        inputs, folder, packing=True, gradient_checkpointing=False, bf16=kind == "bfloat16",
        per_device_train_batch_size=2,
    )  # fmt: skip


def script(inputs: dict[str, Path], folder: Path) -> Told:
    """The plan's: transformers' Trainer, every example padded to 512, eight a batch; its labels mended, an adapter on top."""
    import torch
    from transformers import Trainer, TrainingArguments

    found, trained = rows(inputs)
    _, kind = where_and_kind()

    def padded(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        def fill(values: list[int], by: int) -> list[int]:
            return values + [by] * (LONGEST - len(values))

        return {
            "input_ids": torch.tensor([fill(row["input_ids"], 0) for row in batch]),
            "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in batch]),
            "labels": torch.tensor([fill(row["labels"], IGNORED) for row in batch]),
        }

    clock = Clock()
    settings = TrainingArguments(**shared(folder, bf16=kind == "bfloat16", remove_unused_columns=False))
    Trainer(model(inputs), settings, data_collator=padded, train_dataset=found, callbacks=[clock]).train()
    each = [int(trained[begin : begin + BATCH].sum()) for begin in range(0, len(trained), BATCH)]
    return told(clock.marks, clock.losses, each)


def unsloth(inputs: dict[str, Path], folder: Path) -> Told:
    """Unsloth's model under TRL's trainer, where a GPU has it. Must be imported before all others."""
    from unsloth import FastLanguageModel

    loaded, _ = FastLanguageModel.from_pretrained(str(inputs["base"]), max_seq_length=LONGEST, load_in_4bit=False)
    made = FastLanguageModel.get_peft_model(loaded, r=16, lora_alpha=32, lora_dropout=0, random_state=SEED)
    globals()["model"] = lambda *_args: made
    return trl(inputs, folder, packing=True)


CONTENDERS: dict[str, Callable[[dict[str, Path], Path], Told]] = {
    "ours": ours,
    "ours_packed": ours_packed,
    "trl_packed": trl_packed,
    "trl_default": trl_default,
    "script": script,
    "unsloth": unsloth,
}


def main(name: str, inputs: dict[str, Path], folder: Path, threads: int) -> None:
    """Run one, and leave told.json in its folder."""
    import torch

    torch.set_num_threads(threads)
    said = CONTENDERS[name](inputs, folder)
    assert all(math.isfinite(loss) for loss in said["losses"])
    (folder / "told.json").write_text(json.dumps(said))
