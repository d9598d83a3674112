"""Settings as the variables they are read from: how the supervisor hands them to its parts, with what it started filled in."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from app.settings import Settings, child_environment

PASSED_ON = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE",
    "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
    "LLAMAFLOW_DEVICE", "LLAMAFLOW_THREADS", "LLAMAFLOW_FP32", "LLAMAFLOW_STUB_SECONDS", "LLAMAFLOW_STUB_FAULT",
    "LLAMAFLOW_STUB_UPLOAD", "LLAMAFLOW_STUB_LINE", "LLAMAFLOW_UPLOAD_PATIENCE",
)  # fmt: skip
"""What the parts, or the trainer below them, read besides the settings."""


def for_part(settings: Settings, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a part: an allow-list, the settings, then `extra`."""
    return child_environment(as_variables(settings) | (extra or {}), keep=(*PASSED_ON, *settings.task_env))


def as_variables(settings: Settings) -> dict[str, str]:
    """Every setting that is not at its default, by the name of its variable; folders absolute."""
    found = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value is not None and (value != info.default or isinstance(value, Path)):
            found[variable(name, info)] = _text(value)
    return found


def variable(name: str, info: FieldInfo) -> str:
    """The variable a setting is read from (the first, where there are several)."""
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return alias if isinstance(alias, str) else f"LLAMAFLOW_{name.upper()}"


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value)
