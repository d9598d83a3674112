"""`python -m finetune estimate --job job.json`: what a job will take, without running it. No torch.

The job is the body of a request, with files of this machine or S3 addresses. Where the base lies here or in the cache, its
own tokenizer counts tokens and checks rows as PREPARE_DATA does; nothing is fetched but the beginning of the dataset.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from finetune import environment, plan, s3, steps
from finetune.config import JobSpec
from finetune.estimate import device, lengths, reckon, sample, shape
from finetune.estimate.result import Estimate, sentence
from finetune.exit_codes import StepError
from finetune.local import read_job, validate
from finetune.model.catalog import load, resolve
from finetune.model.fetch import at_hand


def main(argv: list[str]) -> int:
    """Print an estimate as JSON, and a sentence on standard error.

    Args:
        argv: `--job FILE`.
    Returns:
        0, or the exit status that the job would end with, if it would fail.
    Raises:
        StepError: `invalid_step_file`, `file_not_found`, `model_not_found`, those of S3.
    """
    parser = argparse.ArgumentParser(prog="python -m finetune estimate", description="What a job will take.")
    parser.add_argument("--job", type=Path, required=True, help="the job: a JSON object as a request has it")
    given = parser.parse_args(argv)
    spec = validate(given.job, read_job(given.job))
    found = of_job(spec, given.job.resolve().parent)
    print(found.model_dump_json(indent=1))
    if found.error is None:
        print(f"{sentence(found)}.", file=sys.stderr)
        return 0
    raise StepError(found.error.code, found.error.message, param=found.error.param, lines=found.error.lines)


def of_job(spec: JobSpec, folder: Path) -> Estimate:
    """What a job takes on this machine, or on the devices it asks for.

    Args:
        spec: The job.
        folder: Where its relative paths begin.
    """
    access = steps.S3()
    base = base_of(spec, folder)
    train = sample.take(parts(spec.training_file, access, folder, "training_file"), spec.data)
    validation = None
    if spec.validation_file:
        held = sample.take(parts(spec.validation_file, access, folder, "validation_file"), spec.data)
        validation = held, measure(spec, held, base)
    known = reckon.Known(
        device.of_job(spec.execution),
        shape.of_folder(base) if base is not None else shape.of_name(spec.model),
        prices=environment.prices(),
        currency=environment.currency(),
    )
    try:
        reckon.require(spec, base)
        return reckon.estimate(spec, train, measure(spec, train, base), validation, known)
    except StepError as refused:
        found = reckon.estimate(spec, train, lengths.by_bytes(train, spec.data), None, known)
        return found.model_copy(update={"error": reckon.as_problem(refused)})


def base_of(spec: JobSpec, folder: Path) -> Path | None:
    """The base's folder, if it can be read without fetching it."""
    if (folder / spec.model).is_dir():
        return folder / spec.model
    source = resolve(spec.model, load(environment.models_file()), allow_path=True)
    return at_hand(source, environment.cache_dir())


def measure(spec: JobSpec, rows: sample.Sample, base: Path | None) -> lengths.Lengths:
    """Lengths of rows: by the base's tokenizer if there is one at hand."""
    if base is None:
        return lengths.by_bytes(rows, spec.data)
    from finetune.data.prepare import context_length
    from finetune.data.tokenizer import load as tokenizer_of

    tokenizer = tokenizer_of(base)
    limit = min(spec.hyperparameters.max_length, context_length(base, tokenizer) or spec.hyperparameters.max_length)
    return lengths.by_tokenizer(rows, spec.data, tokenizer, limit)


def parts(named: str, access: steps.S3, folder: Path, param: str) -> list[sample.Part]:
    """The files an address means."""
    pins = plan.pin(named, access, folder, param)
    client = s3.client(access) if named.startswith("s3://") else None
    return [sample.Part(pin.uri, pin.size or 0, lambda pin=pin: _open(pin, client)) for pin in pins]  # type: ignore[misc]


def _open(pin: steps.Pinned, client: s3.S3Client | None) -> Iterator[bytes]:
    if client is None:
        with Path(unquote(urlsplit(pin.uri).path)).open("rb") as file:
            yield from iter(lambda: file.read(sample.CHUNK), b"")
        return
    bucket, key = s3.split(pin.uri)
    with s3.errors(pin.uri):
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        try:
            yield from body.iter_chunks(sample.CHUNK)
        finally:
            body.close()
