"""PREPARE_DATA: from the downloaded rows to token ids and masks, with every check that needs the tokenizer.

Reads prepare.json, data/ (with source.json), base (its tokenizer) and base.json; writes prepared/, kept in the cache by the
content of all it reads. Ends with `invalid_file_format`, `invalid_n_examples`, `special_tokens_in_text`,
`overlength_examples`, `no_trainable_tokens` or `unsupported_model`, always before a model is loaded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune import environment
from finetune.data import statistics
from finetune.data.arrays import Examples, Split, data_sha256
from finetune.data.intake import take_in
from finetune.data.problems import File
from finetune.data.resolve import resolve
from finetune.data.tokenizer import TextTokenizer, load
from finetune.exit_codes import StepError
from finetune.model.cache import address, file_sha256, locked, making, touch
from finetune.progress import write_atomic, write_report
from finetune.steps import Base, PrepareStep, Resolved, Source

VERSION = 2
"""Of what this step makes from equal inputs; raised when that changes, so that the cache forgets."""


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
    tokenizer = load(inputs["base"], base.template)
    files = dataset(inputs["data"])
    context = context_length(inputs["base"], tokenizer)
    key = address(
        VERSION,
        step.model_copy(update={"cache_dir": None}).text(),
        base.parameters,
        context,
        tokenizer.sha256,
        *map(_content, files),
    )
    cache = environment.cache_dir(step.cache_dir)
    kept = cache / "prepared" / key
    with locked(cache, f"prepared {key}"):
        cached = kept.is_dir()
        if not cached:
            with making(kept) as folder:
                prepare(step, base, tokenizer, files, context, folder)
        touch(kept)
        place(kept, out / "prepared")
    found = json.loads((out / "prepared" / "statistics.json").read_text(encoding="utf-8"))
    message = found.pop("message") + (" (cached)" if cached else "") + "."
    write_report(out, "prepare", message, found | {"cached": cached})


def prepare(
    step: PrepareStep, base: Base, tokenizer: TextTokenizer, files: list[File], context: int | None, folder: Path
) -> None:
    """Fill the empty `folder` with a prepared dataset.

    Args:
        step: What the user asked for.
        base: Its number of parameters decides the automatic learning rate.
        tokenizer: Of that base.
        files: The dataset.
        context: Tokens the base can take at most; None if it does not say.
        folder: Gets arrays, resolved.json, statistics.json, samples.jsonl, tokens.json and chat_template.jinja.
    """
    asked = step.hyperparameters
    limit = min(asked.max_length, context or asked.max_length)
    taken = take_in(step.data, step.seed, limit, tokenizer, files, folder)
    train, validation = Examples(folder, "train"), Examples(folder, "validation")
    sides = [train, Examples(folder, "train.rejected")]
    resolved = Resolved(
        **resolve(asked, n_examples=len(train), parameters=base.parameters),
        max_length=limit,
        n_examples=len(train),
        n_validation=len(validation),
        tokens=sum(len(side.tokens) for side in sides),
        trained_tokens=sum(int(side.trained.sum()) for side in sides),
        longest=max(int(side.lengths.max(initial=0)) for side in sides),
        dropped=sum(split.dropped for split in taken),
        truncated=sum(split.truncated for split in taken),
        data_sha256=data_sha256(folder),
    )
    write_atomic(folder / "resolved.json", resolved.text())
    _write_json(folder / "statistics.json", statistics.describe(train, validation, taken, resolved))
    _write_json(folder / "tokens.json", tokens(tokenizer))
    write_atomic(folder / "chat_template.jinja", tokenizer.template.source)
    statistics.write_lines(folder / "samples.jsonl", statistics.samples(validation, taken[1].origins, step.data))
    for path in folder.iterdir():
        path.chmod(0o444)  # tasks get hard links to it: none of them may change what another reads


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
    splits: tuple[Split, ...] = ("train", "validation")
    found = [(path, split) for split in splits for path in sorted((data / split).glob("*")) if path.is_file()]
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


def place(kept: Path, target: Path) -> None:
    """Have the files of a cached folder in `target` too: by hard links, or copies where the file system has none."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(kept.iterdir()):
        try:
            (target / path.name).hardlink_to(path)
        except OSError:
            shutil.copyfile(path, target / path.name)


def _content(file: File) -> str:
    return f"{file.split} {file.sha256}"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
