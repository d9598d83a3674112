"""/v1/uploads through the official client: parts in any order become one file; what does not fit is refused, and nothing stays behind."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI
from sqlalchemy import text

from app.db import Database
from app.files import uploads
from tests.app.conftest import ROWS, Service

pytestmark = pytest.mark.db

THIRDS = [ROWS[:100], ROWS[100:200], ROWS[200:]]


def begin(client: OpenAI, content: bytes = ROWS) -> str:
    return client.uploads.create(
        filename="../train.jsonl", purpose="fine-tune", bytes=len(content), mime_type="text/jsonl"
    ).id


def left(service: Service, upload: str) -> list[str]:
    listed = service.s3.list_objects_v2(Bucket="llamaflow-data", Prefix=f"files/proj_alpha/{upload}/")
    return [row["Key"] for row in listed.get("Contents", [])]


def test_the_clients_own_helper_uploads_a_file_in_parts(client: OpenAI, service: Service, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(ROWS)
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=100, md5=hashlib.md5(ROWS).hexdigest()
    )
    assert (done.status, done.filename, done.bytes) == ("completed", "train.jsonl", len(ROWS))
    assert done.file is not None
    assert client.files.content(done.file.id).read() == ROWS
    assert (done.file.status, done.file.purpose) == ("processed", "fine-tune")
    assert left(service, done.id) == []
    job = client.fine_tuning.jobs.create(model="HuggingFaceTB/SmolLM2-135M-Instruct", training_file=done.file.id)
    assert job.training_file == done.file.id
    client.fine_tuning.jobs.cancel(job.id)


def test_the_order_is_the_one_asked_for_and_completing_twice_makes_one_file(client: OpenAI) -> None:
    upload = begin(client)
    ids = {at: client.uploads.parts.create(upload, data=THIRDS[at]).id for at in (2, 0, 1)}
    order = [ids[at] for at in range(3)]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: client.uploads.complete(upload, part_ids=order), range(3)))
    files = {upload.file.id for upload in done if upload.file}
    assert len(files) == 1
    assert client.files.content(files.pop()).read() == ROWS
    with pytest.raises(ConflictError, match="completed"):
        client.uploads.parts.create(upload, data=b"late")
    with pytest.raises(ConflictError, match="completed"):
        client.uploads.cancel(upload)


def test_a_large_part_goes_through_in_pieces(client: OpenAI) -> None:
    content = bytes(range(256)) * (80 << 10)
    upload = begin(client, content)
    part = client.uploads.parts.create(upload, data=content).id
    done = client.uploads.complete(upload, part_ids=[part], md5=hashlib.md5(content).hexdigest().upper())
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content


@pytest.mark.parametrize(
    ("parts", "more", "said"),
    [
        ([0, 1], {}, "were announced"),
        ([0, 1, 2, 2], {}, "twice"),
        ([0, 1, 2], {"md5": "0" * 32}, "have the md5"),
        ([0, 1, 9], {}, "has no part"),
        ([], {}, "were announced"),
    ],
)
def test_parts_that_are_not_the_file_are_refused_and_can_be_mended(
    client: OpenAI, parts: list[int], more: dict[str, Any], said: str
) -> None:
    upload = begin(client)
    ids = [client.uploads.parts.create(upload, data=third).id for third in THIRDS]
    with pytest.raises(BadRequestError, match=said):
        client.uploads.complete(upload, part_ids=[ids[at] if at < 3 else "part_none" for at in parts], **more)
    assert client.uploads.complete(upload, part_ids=ids).status == "completed"


def test_a_cancelled_upload_leaves_nothing_and_stays_cancelled(client: OpenAI, service: Service) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload, data=ROWS).id
    assert len(left(service, upload)) == 1
    assert [client.uploads.cancel(upload).status for _ in range(2)] == ["cancelled", "cancelled"]
    assert left(service, upload) == []
    with pytest.raises(ConflictError, match="cancelled"):
        client.uploads.complete(upload, part_ids=[part])


async def test_one_that_took_too_long_is_expired(client: OpenAI, db: Database) -> None:
    upload = begin(client)
    async with db.transaction() as session:
        past = {"past": datetime.now(UTC) - timedelta(hours=1), "id": upload}
        await session.execute(text("update uploads set expires_at = :past where id = :id"), past)
    with pytest.raises(ConflictError, match="expired"):
        client.uploads.parts.create(upload, data=ROWS)


def test_another_project_sees_none_of_it(client: OpenAI, service: Service) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload, data=ROWS).id
    with OpenAI(base_url=f"{service.url}/v1", api_key="lf-beta", max_retries=0) as other:
        for call in (
            lambda: other.uploads.parts.create(upload, data=b"x"),
            lambda: other.uploads.complete(upload, part_ids=[part]),
            lambda: other.uploads.cancel(upload),
        ):
            with pytest.raises(NotFoundError):
                call()
    assert client.uploads.complete(upload, part_ids=[part]).status == "completed"


def test_what_is_too_large_or_no_part_is_refused(
    client: OpenAI, http: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 64)
    upload = begin(client)
    refused = [
        http.post("/v1/uploads", json={"filename": "f", "purpose": "fine-tune", "bytes": 1 << 60}),
        http.post(f"/v1/uploads/{upload}/parts", files={"data": ("blob", ROWS)}),
        http.post(f"/v1/uploads/{upload}/parts", files={"file": ("blob", b"x")}),
        http.post(f"/v1/uploads/{upload}/parts", json={"data": "x"}),
        http.post("/v1/uploads", json={"filename": "f", "purpose": "vision", "bytes": 1}),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [
        (413, "request_too_large"),
        (413, "request_too_large"),
        (400, "unknown_parameter"),
        (400, "invalid_multipart"),
        (400, "invalid_value"),
    ]
    assert left(service, upload) == []
