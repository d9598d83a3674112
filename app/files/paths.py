"""Which S3 addresses a project may name: below its allowed prefixes, never another project's uploads or results. Pure.

A folder named by a job's id is that job's: only its project reads below it, and nobody sends other results there. Case does
not tell folders apart, for there are stores where it does not.
"""

from __future__ import annotations

import re

from app.errors import BadRequest
from finetune.config import S3_URI

JOB_FOLDER = re.compile(r"ftjob-[a-z0-9]{24}", re.IGNORECASE)


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
    if param == "output.path" and jobs_in(uri):
        raise BadRequest(
            f"{uri} lies in the folder of a job. Name a folder that is no job's; the result gets one of its own in it.",
            code="path_not_allowed",
            param=param,
        )
    key, project_id = key.casefold(), project_id.casefold()
    home, folder = _split(uploads.casefold(), param)
    inside = _below(bucket, key, home, folder) and not _below(bucket, key, home, f"{folder.rstrip('/')}/{project_id}")
    around = bucket == home and key.endswith("/") and _below(home, folder, bucket, key)
    if inside or ((around or key == "") and bucket == home and param != "output.path"):
        raise BadRequest(
            f"{uri} holds uploads, which are named by their id (file-…), not by their address.",
            code="path_not_allowed",
            param=param,
        )
    return uri


def jobs_in(uri: str) -> set[str]:
    """The ids of jobs whose folders an address leads into."""
    return {part for part in uri.split("/") if JOB_FOLDER.fullmatch(part)}


def of_folder(uri: str, found: str) -> bool:
    """Whether an object below a folder is part of what the folder's address means: results of jobs that it does not name are not."""
    return jobs_in(found) <= jobs_in(uri)


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
