"""Whether the entries of a models file can be trained on: what is wrong, and what is only unwise."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.data.template import Template, TemplateError
from finetune.exit_codes import StepError
from finetune.model import catalog, hub

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Remark:
    """One thing about one entry."""

    name: str
    level: Literal["error", "warning"]
    what: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.level}: {self.name}: {self.what}"


def check(entries: dict[str, catalog.Entry], *, online: bool, token: str | None = None) -> Iterator[Remark]:
    """What there is to say about each entry.

    Args:
        entries: Of a models file.
        online: Ask the hub whether its models and revisions are there.
        token: Of the hub.
    """
    for name, entry in entries.items():
        for level, what in (*_here(entry), *(_there(entry, token) if online and entry.source == "hub" else ())):
            yield Remark(name, level, what)


Found = Iterator[tuple[Literal["error", "warning"], str]]


def _here(entry: catalog.Entry) -> Found:
    place = entry.location or entry.name
    if entry.source == "hub":
        if catalog.HUB_ID.fullmatch(place) is None or "/" not in place:
            yield "error", f"{place!r} is no id of the hub (org/name); say where it comes from in location"
        if COMMIT.fullmatch(entry.revision or "") is None:
            yield "warning", "revision is no commit: what is trained on may change; pin it to 40 hex characters"
    elif entry.source == "path" and not (Path(place) / "config.json").is_file():
        yield "error", f"{place} holds no config.json"
    elif entry.source == "package" and importlib.util.find_spec(place.replace("-", "_")) is None:
        yield "error", f"the Python package {place} is not installed"
    elif entry.source == "s3" and not place.startswith("s3://"):
        yield "error", f"{place!r} is no S3 prefix: s3://bucket/prefix/ is expected"
    if entry.template is not None:
        try:
            Template(entry.template)
        except TemplateError as problem:
            yield "error", f"template: {problem}"
    if entry.license is None:
        yield "warning", "license is not said: who uses the model is bound by it"


def _there(entry: catalog.Entry, token: str | None) -> Found:
    try:
        commit, names = hub.resolve(entry.as_source(), token)
    except StepError as problem:
        yield "error", problem.message
        return
    if "config.json" not in names:
        yield "error", "it has no config.json"
    if entry.revision != commit:
        yield "warning", f'revision = "{commit}" is what it is now'
