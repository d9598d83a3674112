"""The steps' S3: one client, every failure as a StepError that names bucket and key, and the few calls the steps make.

Works with any S3 that signs with v4 and takes path-style addresses. Knows objects, nothing of datasets or models.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from finetune.config import S3_URI
from finetune.environment import s3_access
from finetune.exit_codes import StepError
from finetune.steps import S3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as S3Client
else:
    S3Client = Any

CONNECT_SECONDS = 5
READ_SECONDS = 60
CHUNK = 1 << 20

NOT_FOUND = {"NoSuchBucket", "NoSuchKey", "NotFound", "404", "InvalidBucketName"}
CHANGED = {"PreconditionFailed", "412"}
BUSY = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "Throttling",
    "TooManyRequests",
    "OperationAborted",
}


@dataclass(frozen=True)
class Object:
    """One object of a listing or a HEAD: its uri, ETag without quotes, and bytes."""

    uri: str
    etag: str
    size: int


def client(s3: S3, *, attempts: int = 4) -> S3Client:
    """The client for a step file's `s3`: signature v4, path style, bounded waits.

    Args:
        s3: Endpoint and region win over the credentials file's, those over the environment's.
        attempts: Tries of one call, with growing pauses.
    Raises:
        StepError: `access_denied` for unreadable or half credentials, `s3_unavailable` for an endpoint that is no URL.
    """
    access = s3_access(s3.credentials_file)
    endpoint = s3.endpoint or access.endpoint
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        # servers other than AWS often refuse the trailing checksums that boto3 would add; sha256 is compared by ourselves
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={} if endpoint and is_near(endpoint) else None,
    )
    region = s3.region if s3.region != S3().region else access.region or s3.region
    try:
        session = boto3.session.Session(
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            aws_session_token=access.session_token,
        )
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (ValueError, BotoCoreError) as problem:
        raise StepError("s3_unavailable", f"The S3 settings cannot be used: {problem}.") from None


@contextmanager
def opened(s3: S3, *, attempts: int = 4) -> Iterator[S3Client]:
    """`client`, for as long as it is used: its connections are closed then."""
    made = client(s3, attempts=attempts)
    try:
        yield made
    finally:
        made.close()


def is_near(endpoint: str) -> bool:
    """Whether an endpoint is this machine or a private address: such a call must not go through a proxy."""
    host = urlsplit(endpoint).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".internal", ".local")) or "." not in host
    return address.is_loopback or address.is_private


def split(uri: str, *, param: str | None = None) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        StepError: `file_not_found`, when it is no such address.
    """
    match = S3_URI.fullmatch(uri)
    if match is None:
        raise StepError("file_not_found", f"{uri!r} is no S3 address: s3://bucket/key is expected.", param=param)
    return match["bucket"], match["key"]


@contextmanager
def errors(uri: str, *, param: str | None = None) -> Iterator[None]:
    """Turn what boto3 raises inside into a StepError about `uri`."""
    try:
        yield
    except (ClientError, BotoCoreError) as problem:
        raise as_step_error(problem, uri, param=param) from problem


def as_step_error(problem: ClientError | BotoCoreError, uri: str, *, param: str | None = None) -> StepError:
    """What a failed call means for the user: missing, refused, changed, or S3 not answering."""
    if isinstance(problem, NoCredentialsError | PartialCredentialsError):
        return StepError(
            "access_denied",
            f"There are no S3 credentials for {uri}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            param=param,
        )
    if not isinstance(problem, ClientError):
        return StepError("s3_unavailable", f"S3 did not answer for {uri}: {problem}", param=param)
    code = str(problem.response.get("Error", {}).get("Code", ""))
    said = str(problem.response.get("Error", {}).get("Message", ""))
    status = int(problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    bucket, key = split(uri, param=param)
    if code == "NoSuchBucket":
        return StepError("file_not_found", no_bucket(bucket, uri), param=param)
    if code in NOT_FOUND or status == 404:
        return StepError(
            "file_not_found",
            f"There is no object {key!r} in bucket {bucket!r} ({uri}).",
            param=param,
        )
    if code in CHANGED or status == 412:
        return StepError(
            "object_changed", f"{uri} changed after the job was checked. Submit the job again.", param=param
        )
    if code in BUSY or status >= 500 or status == 429:
        return StepError("s3_unavailable", f"S3 did not answer for {uri}: {status} {code}", param=param)
    return StepError(
        "access_denied",
        f"S3 refused access to {uri}: {status} {code} {said}".rstrip()
        + ". Check the credentials and the bucket policy.",
        param=param,
    )


def head(s3: S3Client, uri: str, *, param: str | None = None) -> Object:
    """The object at `uri`, by one HEAD. Where it is missing a second one tells whether the bucket is."""
    bucket, key = split(uri, param=param)
    try:
        with errors(uri, param=param):
            answer = s3.head_object(Bucket=bucket, Key=key)
    except StepError as problem:
        if problem.code.name == "file_not_found" and not has_bucket(s3, bucket):
            raise StepError("file_not_found", no_bucket(bucket, uri), param=param) from problem
        raise
    return Object(uri, answer["ETag"].strip('"'), int(answer["ContentLength"]))


def has_bucket(s3: S3Client, bucket: str) -> bool:
    """Whether a bucket is there; True where that is not told."""
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as problem:
        return problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404
    except BotoCoreError:
        return True
    return True


def no_bucket(bucket: str, uri: str) -> str:
    """The sentence for a bucket that is missing."""
    return f"There is no bucket {bucket!r} on S3 ({uri})."


def listing(s3: S3Client, prefix: str, *, param: str | None = None, limit: int = 10_000) -> list[Object]:
    """The objects below a prefix `s3://bucket/dir/`, by name; directory markers are left out.

    Raises:
        StepError: `unsupported_operation` for more than `limit` objects; those of `as_step_error`.
    """
    bucket, key = split(prefix, param=param)
    found: list[Object] = []
    with errors(prefix, param=param):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
            rows = page.get("Contents", [])
            found += [
                Object(f"s3://{bucket}/{row['Key']}", row["ETag"].strip('"'), int(row["Size"]))
                for row in rows
                if not row["Key"].endswith("/")
            ]
            if len(found) > limit:
                raise StepError(
                    "unsupported_operation",
                    f"{prefix} has more than {limit:,} objects. Name a narrower prefix.",
                    param=param,
                )
    return sorted(found, key=lambda row: row.uri)


def fetch(
    s3: S3Client, uri: str, target: Path, *, etag: str | None = None, size: int | None = None, param: str | None = None
) -> tuple[str, Object]:
    """Write an object to a file, refusing one that is not the pinned one.

    Args:
        uri: The object.
        target: Written in place; the caller renames.
        etag: What it must be, without quotes; None takes what is there.
        size: Bytes it must have.
    Returns:
        sha256 of the content, and the object as it was answered.
    Raises:
        StepError: `object_changed`, and those of `as_step_error`.
    """
    bucket, key = split(uri, param=param)
    digest, written = hashlib.sha256(), 0
    condition: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag else {}
    with errors(uri, param=param):
        answer = s3.get_object(Bucket=bucket, Key=key, **condition)
        seen = Object(uri, answer["ETag"].strip('"'), int(answer["ContentLength"]))
        if (etag and seen.etag != etag) or (size is not None and seen.size != size):
            raise StepError(
                "object_changed", f"{uri} changed after the job was checked. Submit the job again.", param=param
            )
        with target.open("wb") as file:
            for chunk in answer["Body"].iter_chunks(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                written += len(chunk)
    if written != seen.size:
        raise StepError("s3_unavailable", f"{uri} broke off after {written:,} of {seen.size:,} bytes.", param=param)
    return digest.hexdigest(), seen


def put(s3: S3Client, source: Path, uri: str) -> None:
    """Upload a file to `uri`, large ones in parts."""
    bucket, key = split(uri)
    with errors(uri):
        try:
            s3.upload_file(str(source), bucket, key, ExtraArgs={"ContentType": content_type(source.name)})
        except boto3.exceptions.S3UploadFailedError as problem:
            cause = problem.__context__
            if isinstance(cause, ClientError | BotoCoreError):
                raise cause from None
            raise StepError("s3_unavailable", f"S3 did not take {uri}: {problem}") from problem


def content_type(name: str) -> str:
    """The media type a file is stored under, by its ending."""
    known = {
        ".json": "application/json",
        ".csv": "text/csv",
        ".txt": "text/plain",
        ".md": "text/markdown",
        ".zip": "application/zip",
        ".gz": "application/gzip",
    }
    return known.get(Path(name).suffix, "application/octet-stream")
