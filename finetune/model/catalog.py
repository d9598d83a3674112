"""The models file: which names a job may give in `model`, and where each base comes from. Torch-free; the service reads it too.

A name that is not in the file may still be a hub id, `id@revision`, or an S3 prefix. A local folder is reached only through
the file: by a name in it, or by a path below the file's `folder`; and by any absolute path where the pipeline is run by hand.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from finetune.config import S3_URI, Spec, nearest
from finetune.exit_codes import StepError
from finetune.steps import ModelSource

SHIPPED = Path(__file__).resolve().parent.parent / "models.toml"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class Entry(Spec):
    """One base of the models file."""

    name: str
    source: Literal["hub", "s3", "path", "package"] = "hub"
    location: str = Field("", description="Left out: the name.")
    revision: str | None = None
    template: str | None = None
    license: str | None = None
    description: str | None = None
    alias: str | None = Field(None, description="Another name of the file that this one stands for.")
    max_length: int | None = Field(None, ge=1, description="Tokens of an example that a job may ask for at most.")
    max_epochs: int | None = Field(None, ge=1, description="Epochs that a job may ask for at most.")

    def limits(self) -> dict[str, int] | None:
        """Of jobs on it, where there are any."""
        named = {"max_length": self.max_length, "max_epochs": self.max_epochs}
        return {name: most for name, most in named.items() if most is not None} or None

    def as_source(self, revision: str | None = None) -> ModelSource:
        """Where the base comes from, at `revision` if one is asked for."""
        return ModelSource(
            id=self.name,
            kind=self.source,
            location=self.location or self.name,
            revision=revision or self.revision,
            template=self.template,
        )


class Entries(dict[str, Entry]):
    """The entries of a models file by name.

    Attributes:
        folder: The folder below which a job may name a base by its path; None if it may not.
    """

    folder: Path | None = None


def load(path: Path | None = None) -> Entries:
    """The entries of a models file by name.

    Args:
        path: None for the file that comes with LlamaFlow.
    Raises:
        StepError: `model_not_found`: the file cannot be read; says which entry and why.
    """
    file = path or SHIPPED
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise StepError("model_not_found", f"The models file {file} cannot be read: {problem}.") from None
    tables = content.get("models", {})
    if not isinstance(tables, dict):
        raise StepError("model_not_found", f'The models file {file} has no tables [models."name"].')
    entries = Entries((name, _entry(file, name, table)) for name, table in tables.items())
    for name, entry in list(entries.items()):
        if entry.alias is not None:
            entries[name] = _stands_for(file, entry, entries)
    entries.folder = _folder(file, content.get("folder"))
    return entries


def _stands_for(file: Path, entry: Entry, entries: Mapping[str, Entry]) -> Entry:
    """An alias with all that its entry does not say taken from the one it stands for."""
    target = entries.get(entry.alias or "")
    if target is None or target.alias is not None:
        why = "is none of the file's names" if target is None else "is an alias itself"
        raise StepError("model_not_found", f"{file}: {entry.name}: alias {entry.alias!r} {why}.")
    if wrong := {"source", "location"} & entry.model_fields_set:
        raise StepError("model_not_found", f"{file}: {entry.name}: an alias has no {min(wrong)} of its own.")
    known = target.model_dump(exclude={"name", "alias"})
    known["location"] = target.location or target.name
    return Entry(**(known | entry.model_dump(exclude_unset=True)))


def resolve(model: str, entries: Mapping[str, Entry], *, allow_path: bool = False) -> ModelSource:
    """Where a base comes from.

    Args:
        model: A name of the file, `name@revision`, a hub id, `id@revision`, `s3://bucket/prefix/`, or a path.
        entries: Of the models file. With a `folder` of `Entries`, paths below it are taken.
        allow_path: Take an absolute path too: for runs by hand, never for requests.
    Raises:
        StepError: `model_not_found`, naming the nearest entry; `unsupported_operation` for `ft:…`, which only the service knows.
    """
    if model in entries:
        return entries[model].as_source()
    name, at, revision = model.rpartition("@") if "@" in model else (model, "", "")
    if at and not _is_revision(revision):
        raise StepError(
            "model_not_found",
            f"{revision!r} is no revision: a commit or a branch is expected after the @.",
            param="model",
        )
    if name in entries:
        return entries[name].as_source(revision or None)
    if name.startswith("s3://"):
        if S3_URI.fullmatch(name) is None:
            raise StepError(
                "model_not_found", f"{name!r} is no S3 prefix: s3://bucket/prefix/ is expected.", param="model"
            )
        return ModelSource(id=name, kind="s3", location=name.rstrip("/") + "/", revision=revision or None)
    if name.startswith("ft:"):
        raise StepError(
            "unsupported_operation", f"Going on from {name!r} is not offered here; give a base model.", param="model"
        )
    if name.startswith(("/", "file:///")):
        folder = getattr(entries, "folder", None)
        if not allow_path and not _below(name.removeprefix("file://"), folder):
            where = f"does not lie below {folder}" if folder else "is none of its names"
            raise StepError(
                "model_not_found",
                f"A local folder is used only through the models file: {name!r} {where}.",
                param="model",
            )
        return ModelSource(id=name, kind="path", location=name.removeprefix("file://"), revision=revision or None)
    if HUB_ID.fullmatch(name) is None or ".." in name or "--" in name:
        raise StepError("model_not_found", f"{model!r} is no model name. {_hint(name, entries)}", param="model")
    return ModelSource(id=name, kind="hub", location=name, revision=revision or None)


def _below(path: str, folder: Path | None) -> bool:
    """Whether a path leads, links followed, to something inside `folder`."""
    return folder is not None and folder.resolve() in Path(path).resolve().parents


def _folder(file: Path, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise StepError("model_not_found", f"The models file {file}: folder must be an absolute path, not {value!r}.")
    return Path(value)


def _is_revision(text: str) -> bool:
    return REVISION.fullmatch(text) is not None and ".." not in text and "//" not in text


def _hint(name: str, entries: Mapping[str, Entry]) -> str:
    near = nearest(name, list(entries))
    return (
        f"Did you mean {near!r}?"
        if near
        else "Give a Hugging Face id (org/name), id@revision, an S3 prefix, or a name of models.toml."
    )


def _entry(file: Path, name: str, table: object) -> Entry:
    if not isinstance(table, dict):
        raise StepError("model_not_found", f'The models file {file} has no table [models."{name}"].')
    unknown = [key for key in table if key not in Entry.model_fields or key == "name"]
    if unknown:
        near = nearest(unknown[0], list(Entry.model_fields))
        raise StepError(
            "model_not_found",
            f"{file}: {name}: there is no field {unknown[0]!r}" + (f"; did you mean {near!r}?" if near else "."),
        )
    try:
        return Entry(name=name, **table)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise StepError(
            "model_not_found", f"{file}: {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from None
