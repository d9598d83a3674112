"""Files: uploads streamed to S3 and never to disk, objects registered, listed, read and deleted; nothing of another project."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
import tempfile
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.app.conftest import BUCKET, DATASET, ROWS, Service, job_body, until

pytestmark = pytest.mark.db

MEGABYTE = 1 << 20


def keys(service: Service, project: str = "alpha") -> set[str]:
    found = service.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"files/proj_{project}/").get("Contents", [])
    return {row["Key"] for row in found}


def test_the_official_client_uploads_waits_reads_and_deletes(client: OpenAI, service: Service) -> None:
    file = client.files.create(file=("train.jsonl", ROWS), purpose="fine-tune")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(ROWS),
        "train.jsonl",
        "fine-tune",
        "processed",
    )
    assert client.files.wait_for_processing(file.id).id == file.id
    assert client.files.content(file.id).read() == ROWS
    job = client.fine_tuning.jobs.create(model=job_body()["model"], training_file=file.id)
    assert job.training_file == file.id
    assert client.files.delete(file.id).deleted
    assert f"files/proj_alpha/{file.id}" not in keys(service)
    with pytest.raises(NotFoundError):
        client.files.retrieve(file.id)


def test_the_file_may_come_before_its_purpose_as_node_sends_it(http: httpx.Client) -> None:
    body = form(("file", "träin “x”.jsonl", ROWS), ("purpose", None, b"fine-tune"))
    file = http.post("/v1/files", content=body, headers={"content-type": FORM}).json()
    assert (file["filename"], file["status"]) == ("träin “x”.jsonl", "processed")


@pytest.mark.parametrize("sent", ["/home/me/train.jsonl", "..\\..\\train.jsonl", "C:\\data\\train.jsonl"])
def test_only_the_last_part_of_a_files_name_is_kept(http: httpx.Client, sent: str) -> None:
    body = form(("purpose", None, b"fine-tune"), ("file", sent, ROWS))
    assert http.post("/v1/files", content=body, headers={"content-type": FORM}).json()["filename"] == "train.jsonl"


def test_thirty_megabytes_are_streamed_and_never_lie_on_disk(
    client: OpenAI, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (b"0123456789abcdef" * (MEGABYTE // 16)) * 30

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a spool file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, forbidden)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_oublock
    file = client.files.create(file=("big.jsonl", content), purpose="fine-tune")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_oublock - before < 2 * MEGABYTE // 512
    stored = service.s3.get_object(Bucket=BUCKET, Key=f"files/proj_alpha/{file.id}")["Body"].read()
    assert hashlib.sha256(stored).digest() == hashlib.sha256(content).digest()


def test_a_file_over_the_limit_is_refused_by_bytes_seen_and_leaves_nothing(
    http: httpx.Client, service: Service
) -> None:
    before = keys(service)
    pieces = [form_head(("file", "big", b"")), *[b"x" * MEGABYTE] * 45, b"\r\n--b--\r\n"]
    answer = http.post("/v1/files", content=iter(pieces), headers={"content-type": FORM})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert keys(service) == before
    assert unfinished(service) == []


async def test_a_client_that_hangs_up_leaves_nothing_behind(service: Service) -> None:
    before = keys(service)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer lf-alpha\r\ncontent-type: {FORM}\r\n"
        "content-length: 30000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0)) as line:
        line.sendall(head.encode() + form_head(("file", "gone", b"")) + b"x" * (9 * MEGABYTE))
        await until(lambda: unfinished(service))
    await until(lambda: not unfinished(service))
    assert keys(service) == before


def unfinished(service: Service) -> list[Any]:
    return list(service.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


FORM = "multipart/form-data; boundary=b"


def form_head(*fields: tuple[str, str | None, bytes]) -> bytes:
    parts = []
    for name, filename, content in fields:
        named = f'; filename="{filename}"' if filename is not None else ""
        parts.append(f'--b\r\ncontent-disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content)
    return b"\r\n".join(parts)


def form(*fields: tuple[str, str | None, bytes]) -> bytes:
    return form_head(*fields) + b"\r\n--b--\r\n"


MISTAKES = (
    (FORM, form(("file", "x", ROWS)), "missing_required_parameter", "purpose"),
    (FORM, form(("purpose", None, b"fine-tune")), "missing_required_parameter", "file"),
    (FORM, form(("purpose", None, b"fintune"), ("file", "x", ROWS)), "invalid_value", "purpose"),
    (FORM, form(("file", "x", ROWS), ("purpose", None, b"batch")), "invalid_value", "purpose"),
    (FORM, form(("purpos", None, b"fine-tune"), ("file", "x", ROWS)), "unknown_parameter", "purpos"),
    (FORM, form(("purpose", None, b"fine-tune"), ("file", "x", ROWS), ("file", "y", ROWS)), "invalid_value", "file"),
    (FORM, form(("purpose", None, b"fine-tune"), ("file", "x", ROWS))[:-9], "invalid_multipart", None),
    (FORM, b"no form at all", "invalid_multipart", None),
    ("multipart/form-data", form(("purpose", None, b"fine-tune")), "invalid_multipart", None),
    ("application/json", b'{"s3_uri": "%s"}' % DATASET.encode(), "missing_required_parameter", "purpose"),
    ("application/json", b'{"s3_url": "x", "s3_uri": "%s", "purpose": "fine-tune"}' % DATASET.encode(), "unknown_parameter", "s3_url"),
    ("application/json", b'{"s3_uri": "s3://elsewhere/x", "purpose": "fine-tune"}', "path_not_allowed", "s3_uri"),
    ("application/json", b'{"s3_uri": "s3://llamaflow-data/none", "purpose": "fine-tune"}', "file_not_found", "s3_uri"),
    ("application/json", b'{"s3_uri": "s3://llamaflow-data/api/", "purpose": "fine-tune"}', "invalid_value", "s3_uri"),
    ("application/json", b'{"s3_uri": "', "invalid_json", None),
    ("text/plain", b"hello", "invalid_json", None),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "code", "param"), MISTAKES)
def test_a_mistake_in_an_upload_is_told(
    http: httpx.Client, kind: str, body: bytes, code: str, param: str | None
) -> None:
    answer = http.post("/v1/files", content=body, headers={"content-type": kind})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error


def test_a_registered_object_is_not_deleted_with_its_file(http: httpx.Client, service: Service) -> None:
    file = http.post("/v1/files", json={"s3_uri": DATASET, "purpose": "fine-tune"}).json()
    assert (file["bytes"], file["filename"], file["uri"]) == (len(ROWS), "train.jsonl", DATASET)
    assert http.delete(f"/v1/files/{file['id']}").json() == {"id": file["id"], "object": "file", "deleted": True}
    assert service.s3.head_object(Bucket=BUCKET, Key="api/train.jsonl")["ContentLength"] == len(ROWS)


def test_files_are_paged_in_both_orders_and_by_purpose(service: Service) -> None:
    with OpenAI(base_url=service.url + "/v1", api_key="lf-beta", max_retries=0) as beta:
        before = [file.id for file in beta.files.list(limit=2, order="asc")]
        made = [beta.files.create(file=(f"{n}.jsonl", ROWS), purpose="fine-tune").id for n in range(3)]
        csv = beta.files.create(file=("m.csv", b"step\n1\n"), purpose="fine-tune-results").id  # type: ignore[arg-type]
        every = [*before, *made, csv]
        assert [file.id for file in beta.files.list(limit=2, order="asc")] == every
        assert [file.id for file in beta.files.list(limit=2)] == every[::-1]
        results = beta.files.list(purpose="fine-tune-results").data
        assert results[0].id == csv
        assert {file.purpose for file in results} == {"fine-tune-results"}


def test_a_result_file_is_no_dataset(client: OpenAI) -> None:
    file = client.files.create(file=("m.csv", b"step\n1\n"), purpose="fine-tune-results")  # type: ignore[arg-type]
    with pytest.raises(BadRequestError, match="a dataset needs 'fine-tune'"):
        client.fine_tuning.jobs.create(**{**job_body(), "training_file": file.id})


def test_nothing_of_another_projects_files_can_be_seen_or_used(client: OpenAI, service: Service) -> None:
    file = client.files.create(file=("secret.jsonl", ROWS), purpose="fine-tune")
    with OpenAI(base_url=service.url + "/v1", api_key="lf-beta", max_retries=0) as beta:
        assert file.id not in [found.id for found in beta.files.list()]
        for call in (beta.files.retrieve, beta.files.content, beta.files.delete):
            with pytest.raises(NotFoundError):
                call(file.id)
        for name in (file.id, f"s3://{BUCKET}/files/proj_alpha/{file.id}"):
            with pytest.raises(BadRequestError):
                beta.fine_tuning.jobs.create(**{**job_body(), "training_file": name})
    assert client.files.content(file.id).read() == ROWS


async def test_uploads_at_the_same_time_do_not_mix(service: Service) -> None:
    contents = [bytes([65 + n]) * (9 * MEGABYTE) for n in range(3)]
    async with httpx.AsyncClient(
        base_url=service.url, headers={"authorization": "Bearer lf-alpha"}, timeout=60, trust_env=False
    ) as http:

        async def there_and_back(content: bytes) -> bytes:
            sent = await http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x", content)})
            return (await http.get(f"/v1/files/{sent.json()['id']}/content")).content

        assert await asyncio.gather(*map(there_and_back, contents)) == contents
