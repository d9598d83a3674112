"""PREPARE_DATA: from the downloaded rows to token ids and masks, with every check that needs the tokenizer.

Reads prepare.json, data/ (with source.json), base (its tokenizer) and base.json; writes prepared/. The cache keeps it by the
content of all it reads, and the tokens of each file by what decides them. Ends with `invalid_file_format`,
`invalid_n_examples`, `special_tokens_in_text`, `overlength_examples`, `no_trainable_tokens` or `unsupported_model`, always
before a model is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from finetune import environment
from finetune.config import Data
from finetune.data import repeats, statistics
from finetune.data.arrays import Split, data_sha256
from finetune.data.formats import told
from finetune.data.intake import take_in
from finetune.data.omissions import prompt_surplus
from finetune.data.parallel import gather, processes
from finetune.data.problems import File
from finetune.data.resolve import resolve
from finetune.data.sealed import code_sha256, intact, place, seal
from finetune.data.shards import Shard, Task
from finetune.data.tokenizer import TextTokenizer, load
from finetune.estimate import device
from finetune.estimate import prepared as expectation
from finetune.estimate.result import sentence
from finetune.exit_codes import StepError
from finetune.model import packs
from finetune.model.cache import address, file_sha256, locked, making, touch
from finetune.progress import write_atomic, write_report
from finetune.steps import Base, PrepareStep, Resolved, Source

SPLITS: tuple[Split, ...] = ("train", "validation")


def run(step: PrepareStep, inputs: dict[str, Path], out: Path) -> None:
    """Prepare a dataset.

    Args:
        step: prepare.json.
        inputs: `data`, `base`, `base_info`.
        out: Gets prepared/.
    Raises:
        StepError: What is wrong with the dataset, with line numbers.
    """
    base = Base.model_validate_json(inputs["base_info"].read_bytes())
    if step.hyperparameters.packing:
        packs.require(inputs["base"])
    tokenizer = load(inputs["base"], base.template)
    files = dataset(inputs["data"])
    context = context_length(inputs["base"], tokenizer)
    room = step.room or device.room_here()
    key = address(
        code_sha256(),
        step.model_copy(update={"cache_dir": None}).text(),
        base.parameters,
        context,
        tokenizer.sha256,
        room.text(),
        *map(_content, files),
    )
    cache = environment.cache_dir(step.cache_dir)
    kept = cache / "prepared" / key
    with locked(cache, f"prepared {key}"):
        cached, tokenised = intact(kept), 0
        if not cached:
            with making(kept) as folder:
                task = partial(Task, base=inputs["base"], template=base.template, cache=cache)
                cut = partial(expectation.cut, step, base, inputs["base"], room)
                tokenised = prepare(step, base, tokenizer, files, context, folder, task, cut)
                seal(folder)
        touch(kept)
        place(kept, out / "prepared")
    found = json.loads((out / "prepared" / "statistics.json").read_text(encoding="utf-8"))
    message = found.pop("message") + (" (cached)" if cached else "") + "." + _warning(tokenizer)
    resolved = Resolved.model_validate_json((out / "prepared" / "resolved.json").read_bytes())
    if resolved.packing:
        packs.require(inputs["base"], resolved.longest)
    facts = expectation.facts(base, inputs["base"], resolved, found["bytes_a_token"])
    expected = expectation.by_hand(facts, step, base)
    print(f"{sentence(expected)}.", flush=True)
    told = {"facts": facts.model_dump(mode="json"), "estimate": expected.model_dump(mode="json")}
    write_report(out, "prepare", message, found | {"cached": cached, "files_tokenised": tokenised} | told)


def prepare(
    step: PrepareStep,
    base: Base,
    tokenizer: TextTokenizer,
    files: list[File],
    context: int | None,
    folder: Path,
    task: Callable[..., Task],
    cut: Callable[[int], dict[str, Any]],
) -> int:
    """Fill the empty `folder` with a prepared dataset.

    Args:
        step: What the user asked for.
        base: Its number of parameters decides the automatic learning rate.
        tokenizer: Of that base.
        files: The dataset.
        context: Tokens the base can take at most; None if it does not say.
        folder: Gets arrays, resolved.json, statistics.json, samples.jsonl, tokens.json and chat_template.jinja.
        task: Makes the task of tokenising a file.
        cut: What memory decides, by the tokens of the longest example.
    Returns:
        Files whose tokens were not in the cache.
    """
    asked = step.hyperparameters
    limit = min(asked.max_length, context or asked.max_length)
    data = {split: _told(files, split, step.data) for split in SPLITS}
    shards = folder / "shards"
    tasks = [
        task(file=file, data=data[file.split], target=shards / f"{number:04d}") for number, file in enumerate(files)
    ]
    made = gather(tasks, tokenizer, processes(tasks, tokenizer))
    taken = take_in(step.data, step.seed, limit, files, made, folder)
    shutil.rmtree(shards)
    train, validation = counted = (
        statistics.count(folder, "train", step.data),
        statistics.count(folder, "validation", step.data),
    )
    resolved = Resolved(
        **resolve(
            asked,
            n_examples=train.examples,
            parameters=base.parameters,
            technique=step.technique,
            method="dpo" if step.data.format == "preference" else "supervised",
        ),
        max_length=limit,
        n_examples=train.examples,
        n_validation=validation.examples,
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        longest=train.longest,
        dropped=sum(split.dropped.rows for split in taken),
        truncated=sum(split.truncated.rows for split in taken),
        data_sha256=data_sha256(folder),
        **cut(train.longest),
    )
    write_atomic(folder / "resolved.json", resolved.text())
    found = statistics.describe(folder, counted, taken, files, resolved.total_steps)
    _write_json(folder / "statistics.json", found | {"bytes_a_token": bytes_a_token(files, made)})
    _write_json(folder / "tokens.json", tokens(tokenizer))
    write_atomic(folder / "chat_template.jinja", tokenizer.template.source)
    statistics.write_lines(folder / "samples.jsonl", statistics.samples(folder, files, data))
    for split in SPLITS:
        repeats.path(folder, split).unlink()
    return sum(not shard.cached for shard in made)


def bytes_a_token(files: list[File], made: list[Shard]) -> float | None:
    """Bytes of text that make one token of the training rows; None if no text was read."""
    train = [shard for file, shard in zip(files, made, strict=True) if file.split == "train"]
    size, tokens_ = sum(shard.bytes for shard in train), sum(shard.tokens for shard in train)
    return round(size / tokens_, 4) if size and tokens_ else None


def _told(files: list[File], split: Split, data: Data) -> Data:
    """How the rows of a split are read: in the format its first row tells."""
    with ExitStack() as opened:
        return told((opened.enter_context(file.path.open("rb")) for file in files if file.split == split), data)


def tokens(tokenizer: TextTokenizer) -> dict[str, Any]:
    """tokens.json: what training and evaluation need to know of the tokenizer."""
    return {
        "pad_id": tokenizer.pad_id,
        "eos_ids": list(tokenizer.eos_ids),
        "vocab_size": tokenizer.vocab_size,
        "template_sha256": tokenizer.template.sha256,
    }


def dataset(data: Path) -> list[File]:
    """The files of a downloaded dataset, by data/source.json; without one, whatever lies in train/ and validation/."""
    if (data / "source.json").is_file():
        source = Source.model_validate_json((data / "source.json").read_bytes())
        return [File(data / file.name, file.uri, file.split, file.sha256) for file in source.files]
    found = [(path, split) for split in SPLITS for path in sorted((data / split).glob("*")) if path.is_file()]
    if not found:
        raise StepError("file_not_found", f"There is no dataset in {data}: neither source.json nor files in train/.")
    return [File(path, path.name, split, file_sha256(path)) for path, split in found]


def context_length(base: Path, tokenizer: TextTokenizer) -> int | None:
    """Tokens the base can take at most, by its config.json; None if that does not say.

    Raises:
        StepError: `unsupported_model`: there is no config.json, or the tokenizer can give ids the base does not have.
    """
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StepError("unsupported_model", "The model has no config.json that can be read.", param="model") from None
    rows = config.get("vocab_size")
    if isinstance(rows, int) and tokenizer.vocab_size > rows:
        told = f"The tokenizer has {tokenizer.vocab_size:,} tokens, the model only {rows:,}."
        raise StepError("unsupported_model", told, param="model")
    values = [config.get(name) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _warning(tokenizer: TextTokenizer) -> str:
    """What a user should know about chats with this template."""
    surplus = prompt_surplus(tokenizer.template)
    if not surplus:
        return ""
    told = (
        f"The model's chat template asks for an answer with {json.dumps(surplus)}, and leaves that out of the examples"
    )
    return f" {told}: give the base a template that does neither or both."


def _content(file: File) -> str:
    return f"{file.split} {file.sha256}"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
