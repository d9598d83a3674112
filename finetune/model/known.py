"""Whether a base is a causal language model that transformers knows, by its config.json, before its weights are fetched.

Reads transformers' own table from its source, for importing it would bring torch. Where the table cannot be read, the base is
let through: loading it says the same, only later.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from functools import lru_cache
from pathlib import Path

from finetune.exit_codes import StepError

TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
PLACE = Path("models") / "auto" / "modeling_auto.py"


def require(config: Path) -> None:
    """Refuse a base that could not be loaded.

    Args:
        config: Its config.json.
    Raises:
        StepError: `unsupported_model`: no JSON object, a type of model that is not known, or one that is no causal
            language model. Code that comes with a model is never run.
    """
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise StepError("unsupported_model", "The base's config.json is no JSON object.", param="model")
    kind, known = told.get("model_type"), causal_language_models()
    if known is None or kind in known:
        return
    code = "; it brings code of its own, which is never run" if "auto_map" in told else ""
    message = f"The base's model type {kind!r} is no causal language model that transformers knows{code}."
    raise StepError("unsupported_model", message, param="model")


@lru_cache(maxsize=1)
def causal_language_models() -> frozenset[str] | None:
    """The types of model that transformers loads as causal language models; None if its table cannot be read."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return None
    try:
        tree = ast.parse((Path(found.origin).parent / PLACE).read_text(encoding="utf-8"))
        tables = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_table(node)]
        rows = ast.literal_eval(tables[0].args[0]) if isinstance(tables[0], ast.Call) else []
        return frozenset(name for name, _ in rows) or None
    except (OSError, ValueError, SyntaxError, IndexError):
        return None


def _is_table(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == TABLE for target in node.targets)
