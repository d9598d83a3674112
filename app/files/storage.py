"""The service's S3: its one client, and for the API calls in threads of their own; every failure is an ApiError that names bucket and key.

Signature v4, path style, bounded waits. Knows objects, nothing of files or jobs; who may name which address stands in paths.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError, PartialCredentialsError

from app.errors import ApiError, BadRequest, Unavailable
from app.settings import Settings
from finetune.config import S3_URI
from finetune.s3 import is_near

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef
else:
    S3Client = Any

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 32
CHUNK = 1 << 18
CONNECT_SECONDS = 3
READ_SECONDS = 30
MISSING = {"NoSuchBucket", "NoSuchKey", "NotFound", "404", "InvalidBucketName"}
OWN_KEYS = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "InvalidSecurity"}


@dataclass(frozen=True)
class Object:
    """An object as S3 tells it: its address, ETag without quotes, and bytes."""

    uri: str
    etag: str
    size: int


class Storage:
    """The service's S3.

    Args:
        settings: Endpoint, region and keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._client = connect(settings)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")

    async def call(
        self, what: str, param: str | None, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a blocking S3 call about the address `what` in a thread.

        Raises:
            BadRequest: `file_not_found`, `path_forbidden`.
            Unavailable: `s3_unavailable`.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))
        except (ClientError, BotoCoreError, HTTPClientError, OSError) as problem:
            raise refusal(problem, what, param) from problem

    async def head(self, uri: str, *, param: str | None = None) -> Object:
        """The object at `uri`, by one HEAD; where it is missing, a second one tells whether the bucket is."""
        bucket, key = split(uri)
        try:
            answer = await self.call(uri, param, self._client.head_object, Bucket=bucket, Key=key)
        except BadRequest as problem:
            if problem.code == "file_not_found":
                await self.bucket(bucket, uri=uri, param=param)
            raise
        return Object(uri, answer["ETag"].strip('"'), int(answer["ContentLength"]))

    async def bucket(self, bucket: str, *, uri: str | None = None, param: str | None = None) -> None:
        """Make sure that a bucket is there."""
        try:
            await self.call(uri or f"s3://{bucket}/", param, self._client.head_bucket, Bucket=bucket)
        except BadRequest as problem:
            if problem.code != "file_not_found":
                raise
            named = f" ({uri})" if uri else ""
            raise BadRequest(
                f"There is no bucket {bucket!r} on S3{named}.", code=problem.code, param=param
            ) from problem

    async def some(self, prefix: str, *, limit: int = 10, param: str | None = None) -> list[str]:
        """The first keys below a prefix, markers of folders left out."""
        bucket, key = split(prefix)
        list_them = partial(self._client.list_objects_v2, Bucket=bucket, Prefix=key, MaxKeys=limit)
        answer = await self.call(prefix, param, list_them)
        return [row["Key"] for row in answer.get("Contents", []) if not row["Key"].endswith("/")]

    async def put(self, uri: str, body: bytes) -> str:
        """Write a small object; its ETag."""
        bucket, key = split(uri)
        answer = await self.call(uri, None, self._client.put_object, Bucket=bucket, Key=key, Body=body)
        return answer["ETag"].strip('"')

    async def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is fine."""
        bucket, key = split(uri)
        await self.call(uri, None, self._client.delete_object, Bucket=bucket, Key=key)

    async def clear(self, prefix: str) -> None:
        """Remove every object below a prefix that ends in `/`, until a listing is empty."""
        bucket, key = split(prefix)
        if not key.strip("/") or not key.endswith("/"):
            raise ValueError(f"{prefix!r} is no folder of a bucket")
        list_them = partial(self._client.list_objects_v2, Bucket=bucket, Prefix=key)
        while found := (await self.call(prefix, None, list_them)).get("Contents", []):
            for row in found:
                await self.delete(f"s3://{bucket}/{row['Key']}")

    async def part(self, uri: str, start: int, length: int) -> bytes:
        """Up to `length` bytes of the object at `uri` from `start` on, which must lie in it."""
        bucket, key = split(uri)

        def fetch() -> bytes:
            asked = f"bytes={start}-{start + length - 1}"
            return self._client.get_object(Bucket=bucket, Key=key, Range=asked)["Body"].read(length)

        return await self.call(uri, None, fetch)

    async def read(self, uri: str) -> tuple[Object, AsyncIterator[bytes]]:
        """The object at `uri` and its content in chunks."""
        bucket, key = split(uri)
        answer = await self.call(uri, None, self._client.get_object, Bucket=bucket, Key=key)
        body = answer["Body"]

        async def chunks() -> AsyncIterator[bytes]:
            try:
                while chunk := await self.call(uri, None, body.read, CHUNK):
                    yield chunk
            finally:
                body.close()

        return Object(uri, answer["ETag"].strip('"'), int(answer["ContentLength"])), chunks()

    def presigned(self, operation: str, uri: str, seconds: int, **parameters: Any) -> str:
        """An address that does one `operation` (get_object, put_object) on one object for a while, without credentials."""
        bucket, key = split(uri)
        given = {"Bucket": bucket, "Key": key, **parameters}
        return self._client.generate_presigned_url(operation, Params=given, ExpiresIn=seconds)

    async def begin(self, uri: str) -> Multipart:
        """Start an upload in parts. End it by `complete` or `abort`."""
        bucket, key = split(uri)
        answer = await self.call(uri, None, self._client.create_multipart_upload, Bucket=bucket, Key=key)
        return Multipart(self, self._client, uri, answer["UploadId"])

    def close(self) -> None:
        """Give the threads back; calls under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Multipart:
    """An upload in parts, each 5 MiB or more but the last. Nothing is visible at the address until `complete`."""

    def __init__(self, storage: Storage, client: S3Client, uri: str, upload_id: str) -> None:
        self._storage, self._client, self.uri, self._id = storage, client, uri, upload_id
        self._bucket, self._key = split(uri)
        self._parts: list[CompletedPartTypeDef] = []

    async def add(self, body: bytes) -> None:
        """Upload the next part."""
        number = len(self._parts) + 1
        send = partial(self._client.upload_part, Bucket=self._bucket, Key=self._key, UploadId=self._id)
        answer = await self._storage.call(self.uri, None, partial(send, PartNumber=number, Body=body))
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    async def complete(self) -> str:
        """Make the object of its parts; its ETag."""
        end = partial(self._client.complete_multipart_upload, Bucket=self._bucket, Key=self._key, UploadId=self._id)
        answer = await self._storage.call(self.uri, None, partial(end, MultipartUpload={"Parts": self._parts}))
        return answer["ETag"].strip('"')

    async def abort(self) -> None:
        """Throw the parts away."""
        end = partial(self._client.abort_multipart_upload, Bucket=self._bucket, Key=self._key, UploadId=self._id)
        await self._storage.call(self.uri, None, end)


def connect(settings: Settings) -> S3Client:
    """The client for the settings' endpoint. One a process: making it takes a while, and threads may share it."""
    keys = (settings.s3_access_key, settings.s3_secret_key, settings.s3_session_token)
    plain = [key.get_secret_value() if key is not None else None for key in keys]
    return _client(settings.s3_endpoint, settings.s3_region, *plain)


@lru_cache(maxsize=4)
def _client(endpoint: str | None, region: str, access: str | None, secret: str | None, token: str | None) -> S3Client:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 2, "mode": "standard"},
        max_pool_connections=THREADS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={} if endpoint and is_near(endpoint) else None,
    )
    session = boto3.session.Session(aws_access_key_id=access, aws_secret_access_key=secret, aws_session_token=token)
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        BadRequest: `invalid_value`: it is no such address.
    """
    match = S3_URI.fullmatch(uri)
    if match is None:
        raise BadRequest(f"{uri!r} is no S3 address: s3://bucket/key is expected.", code="invalid_value")
    return match["bucket"], match["key"]


def refusal(problem: Exception, uri: str, param: str | None) -> ApiError:
    """What a failed call means for the user: missing, refused, or S3 not answering."""
    if isinstance(problem, NoCredentialsError | PartialCredentialsError):
        return _unavailable(
            "The service has no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for it."
        )
    if not isinstance(problem, ClientError):
        return _unavailable(f"S3 does not answer ({uri}). Try again in a moment.")
    code = str(problem.response.get("Error", {}).get("Code", ""))
    status = int(problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    bucket, key = split(uri)
    if code in OWN_KEYS:
        return _unavailable(
            f"S3 does not accept the service's own credentials ({code}). Tell whoever runs the service."
        )
    if code == "NoSuchBucket":
        return BadRequest(f"There is no bucket {bucket!r} on S3 ({uri}).", code="file_not_found", param=param)
    if code in MISSING or status == 404:
        hint = "" if key.endswith("/") or "." in key else " To name a folder, end it with /."
        return BadRequest(
            f"There is no object {key!r} in bucket {bucket!r} ({uri}).{hint}", code="file_not_found", param=param
        )
    if status in (401, 403):
        return BadRequest(
            f"S3 refused access to {uri} ({status}). The service's S3 credentials must be allowed to use it.",
            code="path_forbidden",
            param=param,
        )
    if 400 <= status < 500 and status not in (408, 429):
        return BadRequest(f"S3 refused {uri}: {status} {code}.", code="s3_refused", param=param)
    return _unavailable(f"S3 does not answer ({uri}: {status} {code}). Try again in a moment.")


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, code="s3_unavailable", retry_after=5)
