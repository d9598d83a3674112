"""What `llamaflow recreate` does: jobs that were imported, made again here on open bases, each once.

The body of a job is made from what OpenAI told of it and from the files that were brought; which base stands for which of
OpenAI's models is said by the caller, or by an alias of that name in the models file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.client import Client, ServiceError
from app.importing.bring import FINAL, imports

POLL_SECONDS = 2.0
SUPERVISED = ("n_epochs", "batch_size", "learning_rate_multiplier")
METHODS: dict[str, tuple[str, ...]] = {"supervised": SUPERVISED, "dpo": (*SUPERVISED, "beta")}
MAX_SEED = 2**31 - 1
METADATA = 14
"""Pairs of the old job that are kept: two are added, and sixteen may be had."""


@dataclass(frozen=True)
class Line:
    """What became of one imported job.

    Attributes:
        old: Its model there; None if it made none.
        job: The job here; None if it could not be made.
        status: Of the job here, or `not recreated`.
        new: Its model here; None as long as there is none.
        why: What stands in the way.
    """

    source: str
    old: str | None
    job: str | None
    status: str
    new: str | None
    why: str | None = None

    def __str__(self) -> str:
        """For people: old model → new model."""
        told = self.new or (f"{self.job} ({self.status})" if self.job else f"{self.status}: {self.why}")
        return f"{self.old or self.source} → {told}"


class NotRecreated(Exception):
    """An imported job that cannot be made again; says why."""


def body_of(job: dict[str, Any], files: Mapping[str, str], bases: Mapping[str, str]) -> dict[str, Any]:
    """The request that makes an imported job again.

    Args:
        job: As OpenAI told it.
        files: Id of a file there → id here.
        bases: OpenAI's model → what is trained here; one that is missing is taken by its own name.
    Raises:
        NotRecreated: Its method is not offered, a file of it was not imported, or it went on from a fine-tuned model.
    """
    method = job.get("method") or {}
    kind = method.get("type") or "supervised"
    if kind not in METHODS:
        raise NotRecreated(f"the method {kind} is not offered here")
    model = str(job.get("model") or "")
    if model.startswith("ft:") and model not in bases:
        raise NotRecreated(f"it went on from {model}: say what stands for that with --map")
    asked = ((method.get(kind) or {}).get("hyperparameters")) or job.get("hyperparameters") or {}
    hyperparameters = {name: asked[name] for name in METHODS[kind] if asked.get(name) is not None}
    body: dict[str, Any] = {
        "model": bases.get(model, model),
        "training_file": _file(job["training_file"], files),
        "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        "metadata": dict(list((job.get("metadata") or {}).items())[:METADATA]) | _origin(job),
    }
    if job.get("validation_file"):
        body["validation_file"] = _file(job["validation_file"], files)
    if suffix := job.get("user_provided_suffix") or _suffix(job.get("fine_tuned_model")):
        body["suffix"] = suffix
    if isinstance(job.get("seed"), int) and 0 <= job["seed"] <= MAX_SEED:
        body["seed"] = job["seed"]
    return body


def recreate(
    client: Client, chosen: set[str] | None, bases: Mapping[str, str], *, wait: bool, say: Callable[[Line], None]
) -> list[Line]:
    """Make imported jobs again, those that were not yet, and say what became of all.

    Args:
        client: The service.
        chosen: Their ids at OpenAI, or the ids of their models there; None for every one that succeeded.
        bases: See body_of.
        wait: Follow each to its end.
        say: Gets each line when it is known.
    Raises:
        ServiceError: The service is away.
    """
    files = {row["id"]: row["file_id"] for row in imports(client, "file") if row["file_id"]}
    rows = list(_chosen(imports(client, "job"), chosen))
    found = {row["id"] for row in rows} | {row["source"].get("fine_tuned_model") for row in rows}
    lines = [
        Line(name, None, None, "not recreated", None, "no such job was imported: run llamaflow import-openai")
        for name in sorted((chosen or set()) - found)
    ]
    for line in lines:
        say(line)
    made = [(row, *_made(client, row, files, bases)) for row in rows]
    for row, job, why in made:
        line = _line(row, _ended(client, job) if wait and job is not None else job, why)
        lines.append(line)
        say(line)
    return lines


def _chosen(rows: Iterator[dict[str, Any]], chosen: set[str] | None) -> Iterator[dict[str, Any]]:
    for row in rows:
        told = row["source"]
        if chosen is None and told.get("status") == "succeeded":
            yield row
        if chosen is not None and {row["id"], told.get("fine_tuned_model")} & chosen:
            yield row


def _made(
    client: Client, row: dict[str, Any], files: Mapping[str, str], bases: Mapping[str, str]
) -> tuple[dict[str, Any] | None, str | None]:
    """The job here, made now or before; or why there is none."""
    if row["job_id"]:
        return client.call("GET", f"/fine_tuning/jobs/{row['job_id']}"), None
    try:
        body = body_of(row["source"], files, bases)
    except NotRecreated as problem:
        return None, str(problem)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    try:
        headers = {"idempotency-key": f"recreate-{row['id']}-{digest}"}
        job = client.call("POST", "/fine_tuning/jobs", json=body, headers=headers)
    except ServiceError as problem:
        return None, str(problem)
    told = {"id": row["id"], "kind": "job", "object": row["source"], "job_id": job["id"]}
    client.call("POST", "/imports", json=told)
    return job, None


def _ended(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    while job["status"] not in FINAL:
        time.sleep(POLL_SECONDS)
        job = client.call("GET", f"/fine_tuning/jobs/{job['id']}")
    return job


def _line(row: dict[str, Any], job: dict[str, Any] | None, why: str | None) -> Line:
    old = row["source"].get("fine_tuned_model")
    if job is None:
        return Line(row["id"], old, None, "not recreated", None, why)
    return Line(row["id"], old, job["id"], job["status"], job["fine_tuned_model"])


def _file(number: str, files: Mapping[str, str]) -> str:
    if number not in files:
        raise NotRecreated(f"its file {number} was not brought: run llamaflow import-openai")
    return files[number]


def _suffix(model: str | None) -> str | None:
    """The suffix in `ft:base:organization:suffix:id`."""
    parts = (model or "").split(":")
    return parts[3] or None if len(parts) == 5 else None


def _origin(job: dict[str, Any]) -> dict[str, str]:
    told = {"openai_job": job.get("id"), "openai_model": job.get("fine_tuned_model")}
    return {name: str(value)[:512] for name, value in told.items() if value}
