"""What is wrong with a request, in sentences: the field by its dotted path, what it must be, what it was, the nearest known name.

Reads pydantic's errors and the model's JSON schema; the sentences of one field become one. Pure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from app.errors import BadRequest
from finetune.config import S3_URI, nearest

Path = tuple[str | int, ...]
Schema = dict[str, Any]

MAX_SENTENCES = 5
SHOWN_CHARACTERS = 80
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
PATTERNS = {
    S3_URI.pattern: "an S3 address such as s3://bucket/prefix/",
    r"^[a-z0-9-]{1,64}$": "1 to 64 of a-z, 0-9 and -",
    r"^[a-z0-9_]{1,32}$": "1 to 32 of a-z, 0-9 and _",
    r"^\d{1,6} ?(MB|GB|TB)$": 'an amount such as "16 GB"',
    r"^[^\x00-\x1f\x7f\s]+$": "text without spaces or control characters",
    r"^[^\x00-\x1f\x7f:/]+$": "text without colons, slashes or control characters",
}
QUERY = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "int_parsing": "must be a whole number",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "literal_error": "must be {expected}",
    "missing": "is required",
}


def refuse(errors: list[Any], body: Any, model: Any) -> BadRequest:
    """The refusal of a request.

    Args:
        errors: Pydantic's, each `loc` beginning with body, query, path or header.
        body: As it came: decoded JSON, or the text or bytes that are no JSON.
        model: The body's model; None where the route has none.
    Returns:
        One sentence a field, joined; with several, each also in `errors`.
    """
    found: dict[str, tuple[str, str, str | None]] = {}
    for error in errors:
        message, code, param = _sentence(error, body, model)
        found.setdefault(param or message, (message, code, param))
    first, *more = found.values()
    shown = [message for message, _, _ in found.values()]
    rest = f"; and {len(shown) - MAX_SENTENCES} more" if len(shown) > MAX_SENTENCES else ""
    each = [{"message": message, "param": param, "code": code} for message, code, param in found.values()]
    return BadRequest(
        "; ".join(shown[:MAX_SENTENCES]) + rest, code=first[1], param=first[2], errors=each if more else None
    )


def _sentence(error: Any, body: Any, model: Any) -> tuple[str, str, str | None]:
    kind, loc = str(error["type"]), tuple(error["loc"])
    if kind == "json_invalid":
        return _bad_json(str(body or ""), int(loc[-1]), error["ctx"]["error"]), "invalid_json", None
    if not loc or loc[0] != "body":
        return _query(error, ".".join(map(str, loc[1:])))
    if loc == ("body",) and kind != "value_error":
        return _no_object(kind, body), "invalid_json", None
    schema = _schema(model)
    if kind == "extra_forbidden":
        path = _located((*_walk(schema, loc[1:-1])[0], loc[-1]), body)
        return _unknown(schema, loc[1:-1], path), "unknown_parameter", _dotted(path)
    clean, node = _walk(schema, loc[1:])
    if kind == "value_error" and not clean:
        message = str(error["ctx"]["error"])
        named = re.match(r"([\w.\[\]]+) (is|must|has)\b", message)
        return message, "invalid_value", named[1] if named else None
    path = _located(clean, body)
    if kind == "missing":
        return f"{_dotted(path)} is required", "missing_required_parameter", _dotted(path)
    given = _dig(body, path, error.get("input"))
    return f"{_dotted(path)} must be {describe(node)}, not {_shown(given)}", "invalid_value", _dotted(path)


def _bad_json(text: str, position: int, why: str) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"The body is no valid JSON: {why} at line {line}, column {column}"


def _no_object(kind: str, body: Any) -> str:
    if kind == "missing" or body in (None, b"", ""):
        return "There is no body; a JSON object is expected"
    if isinstance(body, bytes):
        return "The body must be JSON, sent with the header content-type: application/json"
    return f"The body must be a JSON object, not {_shown(body)}"


def _query(error: Any, name: str) -> tuple[str, str, str | None]:
    pattern = QUERY.get(str(error["type"]))
    what = pattern.format(**error.get("ctx", {})) if pattern else f"cannot be used: {error['msg']}"
    given = "" if error["type"] == "missing" else f", not {_shown(error.get('input'))}"
    code = "missing_required_parameter" if error["type"] == "missing" else "invalid_value"
    return f"{name} {what}{given}", code, name


def _unknown(schema: Schema, parent: Path, path: Path) -> str:
    """The sentence for a name that is not known, with the nearest one that is, here or one level below."""
    name, home = str(path[-1]), path[:-1]
    known = _fields(schema, _walk(schema, parent)[1])
    below = {field: f"{group}.{field}" for group, node in known.items() for field in _fields(schema, node) if not home}
    near = below.get(name) or nearest(name, list(known)) or below.get(nearest(name, list(below)) or "")
    where = f" in {_dotted(home)}" if home else ""
    hint = f"; did you mean {near!r}?" if near else f"; known are {', '.join(sorted(known))}"
    return f"unknown field {name!r}{where}{hint}"


@lru_cache(maxsize=32)
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema() if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _deref(schema: Schema, node: Schema) -> Schema:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _branches(schema: Schema, node: Schema) -> list[Schema]:
    node = _deref(schema, node)
    return [leaf for branch in node["anyOf"] for leaf in _branches(schema, branch)] if "anyOf" in node else [node]


def _fields(schema: Schema, node: Schema) -> dict[str, Schema]:
    return {name: sub for branch in _branches(schema, node) for name, sub in branch.get("properties", {}).items()}


def _walk(schema: Schema, loc: Path) -> tuple[Path, Schema]:
    """The field a pydantic location means, without the names of union branches, and its schema."""
    path: Path = ()
    node = schema
    for part in loc:
        step = _step(schema, node, part)
        if step is not None:
            path, node = (*path, part), step
    return path, _deref(schema, node)


def _step(schema: Schema, node: Schema, part: str | int) -> Schema | None:
    for branch in _branches(schema, node):
        if isinstance(part, int) and "items" in branch:
            return dict(branch["items"])
        if part in branch.get("properties", {}):
            return dict(branch["properties"][part])
        if isinstance(branch.get("additionalProperties"), dict) and part != "[key]":
            return dict(branch["additionalProperties"])
    return None


def _located(path: Path, body: Any) -> Path:
    """Where in the body a field was really given: options may stand inside `method.<type>.hyperparameters`."""
    if not isinstance(body, dict) or not path or _has(body, path):
        return path
    method = body.get("method")
    kind = str(method.get("type", "supervised")) if isinstance(method, dict) else ""
    inside: Path = ("method", kind, "hyperparameters", *(path[1:] if path[0] == "hyperparameters" else path))
    return inside if _has(body, inside) else path


_ABSENT = object()


def _has(body: Any, path: Path) -> bool:
    return _dig(body, path, _ABSENT) is not _ABSENT


def _dig(body: Any, path: Path, otherwise: Any) -> Any:
    for part in path:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return body


def _dotted(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def describe(node: Schema) -> str:
    """What a value must be, in words: `"auto" or a whole number from 1 to 50`."""
    if "anyOf" in node:
        branches = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
        branches.sort(key=lambda branch: "const" not in branch and "enum" not in branch)
        return " or ".join(describe(branch) for branch in branches)
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        *most, last = [json.dumps(value) for value in node["enum"]]
        return f"{', '.join(most)} or {last}" if most else last
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(node)
    if kind == "string":
        return PATTERNS.get(node.get("pattern", ""), "text") + _length(node, "characters")
    if kind == "array":
        return f"a list of {describe(node.get('items', {})).removeprefix('a ')}" + _length(node, "entries")
    words = {"boolean": "true or false", "null": "null"}
    return words.get(str(kind), "an object" + _length(node, "pairs"))


def _range(node: Schema) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = (
        (low, "of at least"),
        (above, "above"),
        (high, "of at most"),
        (below, "below"),
    )
    found = [f"{word} {value:g}" for value, word in words if value is not None]
    return f" {' and '.join(found)}" if found else ""


def _length(node: Schema, unit: str) -> str:
    low = node.get("minLength") or node.get("minItems")
    high = node.get("maxLength") or node.get("maxItems") or node.get("maxProperties")
    if low and high:
        return f" of {low} to {high:,} {unit}"
    return f" of at most {high:,} {unit}" if high else ""


def unstorable(value: Any, path: str = "") -> None:
    """Refuse text that no database holds, wherever it stands.

    Raises:
        BadRequest: `invalid_value`: a NUL character, or half of a surrogate pair.
    """
    if isinstance(value, str):
        if UNSTORABLE.search(value):
            raise BadRequest(
                f"{path or 'The body'} holds a character that cannot be stored (NUL or half of a surrogate pair).",
                code="invalid_value",
                param=path or None,
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            unstorable(str(key), path)
            unstorable(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            unstorable(inner, f"{path}[{index}]")


def ambiguous(body: bytes) -> None:
    """Refuse JSON that not every reader takes alike. What is no JSON at all is left to the route, which says where.

    Raises:
        BadRequest: `invalid_json`: a name given twice in one object, NaN or Infinity, a number of thousands of digits, or
            nesting without end.
    """
    try:
        json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return
    except (ValueError, RecursionError):
        raise BadRequest(
            "The body is no valid JSON: it is nested far too deeply, or holds a number of thousands of digits.",
            code="invalid_json",
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise BadRequest(f"The body is ambiguous: {_shown(twice)} is given twice in one object.", code="invalid_json")
    return found


def _no_number(name: str) -> Any:
    raise BadRequest(f"The body is no valid JSON: {name} is no number that JSON knows.", code="invalid_json")
