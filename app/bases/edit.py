"""A new entry in a models file: written at its end, so that what stands there, comments too, stays as it is."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from finetune.exit_codes import StepError
from finetune.model import catalog


def add(file: Path, name: str, fields: dict[str, Any]) -> catalog.Entry:
    """Add an entry; a file that is not there yet begins as a copy of the one that comes with LlamaFlow.

    Args:
        file: The operator's models file.
        name: What requests say.
        fields: Of catalog.Entry.
    Returns:
        The entry as it is read back.
    Raises:
        StepError: The name is taken, or the file with the entry would not be one: nothing is written then.
    """
    before = (file if file.exists() else catalog.SHIPPED).read_text(encoding="utf-8")
    if name in (catalog.load(file) if file.exists() else catalog.load()):
        raise StepError("model_not_found", f"{file} has {name!r} already. Change it there.")
    lines = [f"[models.{_text(name)}]", *(f"{key} = {_text(value)}" for key, value in fields.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(before.rstrip("\n") + "\n\n" + "\n".join(lines) + "\n")
        entry = catalog.load(Path(made))[name]
        Path(made).chmod(0o644)
        Path(made).replace(file)
    except StepError as problem:
        raise StepError(problem.code.name, problem.message.replace(made, str(file))) from None
    finally:
        Path(made).unlink(missing_ok=True)
    return entry


def _text(value: Any) -> str:
    """A value as TOML writes it, which for text and numbers is as JSON does."""
    return json.dumps(value, ensure_ascii=False)
