"""An upload on its way from the request to S3: parsed as it comes, never on disk, at most two parts in memory.

Limits are counted by bytes seen. Whatever goes wrong, the unfinished upload on S3 is thrown away.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Self

from anyio import CancelScope
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ApiError, BadRequest
from app.files.schemas import PURPOSES
from app.files.storage import Multipart, Storage
from app.limits import too_large
from finetune.config import nearest

PART_BYTES = 8 << 20
FIELD_BYTES = 64 << 10
MAX_FIELDS = 32
FILE_FIELDS = ("file", "purpose")
PART_FIELDS = ("data",)


@dataclass(frozen=True)
class Uploaded:
    """What arrived: the object on S3, and what the form said about it."""

    filename: str
    purpose: str
    size: int
    sha256: str
    etag: str


@dataclass
class Form:
    """The parser's side: collects small fields, hands on the file's bytes. Not awaited, so it only fills buffers.

    Attributes:
        known: Names of fields; the first is the file's.
    """

    known: tuple[str, ...]
    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)
    ended: bool = False
    _name: str | None = None
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: str = ""

    def parser(self, content_type: str) -> MultipartParser:
        """The push parser that fills this form.

        Raises:
            BadRequest: `invalid_multipart`: the content type names no boundary.
        """
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise _broken("the content-type header names no boundary")
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._named,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    @property
    def purpose(self) -> str | None:
        """The field `purpose`, once all of it has come."""
        if "purpose" not in self.fields or (self._name == "purpose" and not self.ended):
            return None
        return self.fields["purpose"].decode("utf-8", "replace").strip()

    def _begin(self) -> None:
        self._name, self._disposition = None, ""
        self._header.clear()
        self._value.clear()

    def _header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = self._value.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _named(self) -> None:
        options = parse_options_header(self._disposition.encode("utf-8").decode("latin-1"))[1]
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name not in self.known:
            near = nearest(self._name, list(self.known))
            only = "known are" if len(self.known) > 1 else "known is only"
            hint = f"; did you mean {near!r}?" if near else f"; {only} {' and '.join(self.known)}"
            raise BadRequest(f"unknown field {self._name!r}{hint}", code="unknown_parameter", param=self._name)
        if self._name == self.known[0]:
            if self.filename is not None:
                raise BadRequest(
                    f"{self._name} is given twice; upload one at a time.", code="invalid_value", param=self._name
                )
            self.filename = safe_filename(options.get(b"filename", b"").decode("utf-8", "replace"))
        elif len(self.fields) < MAX_FIELDS:
            self.fields[self._name] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self.known[0]:
            self.content += data[start:end]
        elif self._name is not None:
            value = self.fields[self._name]
            value += data[start:end]
            if len(value) > FIELD_BYTES:
                raise too_large(FIELD_BYTES, f"The field {self._name}")

    def _end(self) -> None:
        self.ended = True


async def receive(
    chunks: AsyncIterable[bytes], content_type: str, storage: Storage, uri: str, *, max_bytes: int
) -> Uploaded:
    """Stream a multipart form's file to S3.

    Args:
        chunks: The request's body.
        content_type: Its header.
        uri: Where the object is to lie.
        max_bytes: Of the file.
    Raises:
        BadRequest: `invalid_multipart`, a missing or wrong field.
        TooLarge: The file is over `max_bytes`.
        Unavailable: S3 does not answer.
    """
    form = Form(FILE_FIELDS)
    async with Sink(storage, uri, max_bytes) as sink, _whole(form, chunks, content_type, sink):
        purpose = _check_purpose(form.purpose)
        if form.filename is None:
            raise BadRequest(
                "file is required: a form field with the file.", code="missing_required_parameter", param="file"
            )
        return Uploaded(form.filename, purpose, sink.size, sink.digest.hexdigest(), await sink.finish())


async def receive_part(
    chunks: AsyncIterable[bytes], content_type: str, storage: Storage, uri: str, *, max_bytes: int
) -> int:
    """Stream the `data` of a multipart form to S3; its bytes. Arguments and errors as those of `receive`."""
    form = Form(PART_FIELDS)
    async with Sink(storage, uri, max_bytes) as sink, _whole(form, chunks, content_type, sink):
        if form.filename is None:
            raise BadRequest(
                "data is required: a form field with the part.", code="missing_required_parameter", param="data"
            )
        await sink.finish()
        return sink.size


@asynccontextmanager
async def _whole(form: Form, chunks: AsyncIterable[bytes], content_type: str, sink: Sink) -> AsyncIterator[None]:
    """Read a form to its end, its file into `sink`; its parser's complaints are the request's, also within the block."""
    try:
        parser = form.parser(content_type)
        async for chunk in chunks:
            parser.write(chunk)
            await sink.take(form.content)
            if form.purpose is not None:
                _check_purpose(form.purpose)  # a wrong one ends the upload before the rest is sent
        if not form.ended:
            raise _broken("it ends before its last boundary")
        yield
    except FormParserError as problem:
        raise _broken(str(problem)) from problem


class Sink:
    """The S3 side: a small file is one PUT, a larger one is sent in parts as they fill.

    `async with`: what was not finished when the block ends, however it does, is thrown away.
    """

    def __init__(self, storage: Storage, uri: str, max_bytes: int) -> None:
        self._storage, self._uri, self._max = storage, uri, max_bytes
        self._multipart: Multipart | None = None
        self._buffer = bytearray()
        self.size = 0
        self.digest = hashlib.sha256()

    async def take(self, content: bytearray) -> None:
        """Take what has come of the file, and empty `content`."""
        self.size += len(content)
        if self.size > self._max:
            raise too_large(self._max, "A file")
        self.digest.update(content)
        self._buffer += content
        content.clear()
        while len(self._buffer) >= PART_BYTES:
            if self._multipart is None:
                self._multipart = await self._storage.begin(self._uri)
            await self._multipart.add(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    async def finish(self) -> str:
        """Make the object; its ETag."""
        if self._multipart is None:
            return await self._storage.put(self._uri, bytes(self._buffer))
        if self._buffer:
            await self._multipart.add(bytes(self._buffer))
        etag = await self._multipart.complete()
        self._multipart = None
        return etag

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        if self._multipart is not None:
            with CancelScope(shield=True), suppress(ApiError):  # what went wrong before is what is told
                await self._multipart.abort()


def _check_purpose(purpose: str | None) -> str:
    """The purpose, if it is one that files may have."""
    if purpose is None:
        raise BadRequest("purpose is required, such as fine-tune.", code="missing_required_parameter", param="purpose")
    if purpose not in PURPOSES:
        raise BadRequest(
            f"purpose must be {' or '.join(PURPOSES)}, not {purpose[:80]!r}", code="invalid_value", param="purpose"
        )
    return purpose


def safe_filename(given: str) -> str:
    """The last part of a name as sent, without control characters; clients escape quotes as %22."""
    name = PurePosixPath(given.replace("\\", "/").replace("%22", '"')).name
    return "".join(letter for letter in name if letter.isprintable())[:255] or "upload"


def _broken(why: str) -> BadRequest:
    return BadRequest(f"The multipart body cannot be read: {why}.", code="invalid_multipart")
