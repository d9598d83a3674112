"""What the worker does on S3: looks at datasets, streams them, reads a manifest back, removes what a cancelled job uploaded.

Blocking calls, made in threads. Every failure is a StepError that names the object; `s3_unavailable` is the one worth waiting for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from app.files.paths import of_folder
from finetune.exit_codes import StepError
from finetune.plan import DATASET
from finetune.s3 import errors, head, listing, split
from finetune.steps import Pinned

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any


def pin(s3: S3Client, uri: str, param: str) -> list[Pinned]:
    """The objects an address means, as they are now: one, or each dataset file below a prefix that ends in `/`.

    What lies in a folder named by a job's id is that job's result, and no dataset unless the address names the job.

    Raises:
        StepError: `file_not_found`, `access_denied`, `s3_unavailable`.
    """
    if not uri.endswith("/"):
        found = [head(s3, uri, param=param)]
    else:
        rows = [row for row in listing(s3, uri, param=param) if of_folder(uri, row.uri)]
        found = [row for row in rows if row.uri.lower().endswith(DATASET)]
    if not found:
        raise StepError("file_not_found", f"There is no {', '.join(DATASET)} object below {uri}.", param=param)
    return [Pinned(uri=row.uri, etag=row.etag, size=row.size) for row in found]


def stream(s3: S3Client, pinned: Pinned, param: str) -> Iterator[bytes]:
    """The content of a pinned object, in chunks.

    Raises:
        StepError: `object_changed`, when it is another one by now; `access_denied`, `s3_unavailable`.
    """
    bucket, key = split(pinned.uri)
    with errors(pinned.uri, param=param):
        answer = s3.get_object(Bucket=bucket, Key=key, IfMatch=f'"{pinned.etag}"')
        with closing(answer["Body"]) as body:
            if answer["ETag"].strip('"') != pinned.etag:
                raise StepError("object_changed", f"{pinned.uri} changed while it was checked.", param=param)
            yield from body.iter_chunks(1 << 18)


def read(s3: S3Client, uri: str, limit: int = 16 << 20) -> bytes:
    """A small object whole.

    Raises:
        StepError: `manifest_mismatch` for one over `limit` bytes; `file_not_found`, `access_denied`, `s3_unavailable`.
    """
    bucket, key = split(uri)
    with errors(uri), closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body:
        content = body.read(limit + 1)
    if len(content) > limit:
        raise StepError("manifest_mismatch", f"{uri} is larger than {limit:,} bytes.")
    return content


def size(s3: S3Client, uri: str) -> int:
    """Bytes of an object, by one HEAD."""
    return head(s3, uri).size


def remove(s3: S3Client, prefix: str) -> int:
    """Remove every object below `prefix`, which ends in `/`, until a listing is empty.

    Returns:
        How many there were.
    """
    bucket, key = split(prefix)
    if not key.strip("/") or not key.endswith("/"):
        raise ValueError(f"{prefix!r} is no folder of a bucket")
    removed = 0
    while found := listing(s3, prefix):
        with errors(prefix):
            for row in found:
                s3.delete_object(Bucket=bucket, Key=split(row.uri)[1])
        removed += len(found)
    return removed
