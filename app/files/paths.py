"""Which S3 addresses a project may name: below its allowed prefixes, and never another project's uploads. Pure."""

from __future__ import annotations

from app.errors import BadRequest
from finetune.config import S3_URI


def allow(uri: str, *, prefixes: list[str], uploads: str, project_id: str, param: str) -> str:
    """Let `uri` pass, or say why not.

    Args:
        uri: What a request names; one that ends in `/` is a folder.
        prefixes: The project's, each `s3://bucket/` or `s3://bucket/folder/`.
        uploads: Where every project's uploads lie, each below its own id.
        project_id: Whose request it is.
        param: The field it came in.
    Returns:
        `uri`, unchanged.
    Raises:
        BadRequest: `invalid_value`, `path_not_allowed`.
    """
    bucket, key = _split(uri, param)
    if not any(_below(bucket, key, *_split(prefix, param)) for prefix in prefixes):
        raise BadRequest(
            f"{uri} is outside what this project may use ({', '.join(prefixes)}). "
            "Copy it there, or have the operator add its prefix to LLAMAFLOW_PATH_ALLOW.",
            code="path_not_allowed",
            param=param,
        )
    home, folder = _split(uploads, param)
    inside = _below(bucket, key, home, folder) and not _below(bucket, key, home, f"{folder.rstrip('/')}/{project_id}")
    around = bucket == home and key.endswith("/") and _below(home, folder, bucket, key)
    if inside or ((around or key == "") and bucket == home and param != "output.path"):
        raise BadRequest(
            f"{uri} holds uploads, which are named by their id (file-…), not by their address.",
            code="path_not_allowed",
            param=param,
        )
    return uri


def _split(uri: str, param: str) -> tuple[str, str]:
    match = S3_URI.fullmatch(uri)
    if match is None:
        raise BadRequest(
            f"{param} must be an S3 address such as s3://bucket/key, not {uri!r}.", code="invalid_value", param=param
        )
    key = match["key"]
    if any(part in (".", "..") for part in key.split("/")) or "//" in f"/{key}":
        raise BadRequest(
            f"{param} must not have empty, '.' or '..' parts: {uri!r}.", code="path_not_allowed", param=param
        )
    return match["bucket"], key


def _below(bucket: str, key: str, home: str, folder: str) -> bool:
    """Whether an object lies in a folder: whole names count, so `data-secret/x` is not below `data`."""
    folder = folder.rstrip("/")
    return bucket == home and (folder == "" or key.rstrip("/") == folder or key.startswith(folder + "/"))
