"""The table of mistakes in docs/api.md: each row is made against the served API, and answered as the row says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from scripts.make_docs import DOCS
from tests.app.conftest import DATASET, MODEL, ROWS, Service
from tests.app.jobs.factory import move

pytestmark = pytest.mark.db

ROW = re.compile(
    r"\| `(GET|POST|DELETE|PUT) ([^` ]+)`(?: `([^`]*)`)?(?: with `([^`]*)`)? \| (\d+) \| `(\w+)` \| `(\w+)` \| (?:`(.+)`)? ?\|"
)
GOOD: dict[str, dict[str, Any]] = {
    "/v1/fine_tuning/jobs": {"model": MODEL, "training_file": DATASET},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": MODEL, "prompt": "x"},
    "/v1/responses": {"model": MODEL, "input": "x"},
    "/v1/uploads": {"filename": "x", "purpose": "fine-tune", "bytes": 1},
    "/v1/webhook_endpoints": {"name": "n", "url": "http://127.0.0.1:5678/", "event_types": ["fine_tuning.job.failed"]},
}
"""What a row's body is laid over, by path."""


@dataclass(frozen=True)
class Mistake:
    """A row."""

    method: str
    path: str
    body: str | None
    header: str | None
    status: int
    type: str
    code: str
    param: str | None


def table() -> list[Mistake]:
    """The rows."""
    page = (DOCS / "api.md").read_text(encoding="utf-8").partition("## What a mistake is answered with")[2]
    lines = [line for line in page.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in lines]
    assert [line for line, match in zip(lines, found, strict=True) if match is None] == []
    return [
        Mistake(match[1], match[2], match[3], match[4], int(match[5]), match[6], match[7], match[8])
        for match in found
        if match is not None
    ]


@pytest.fixture(scope="module")
async def there(service: Service, db: Any) -> dict[str, str]:
    """Ids that rows speak of."""
    with service.http() as http:
        made = [http.post("/v1/fine_tuning/jobs", json=GOOD["/v1/fine_tuning/jobs"]).json()["id"] for _ in range(2)]
        http.post(f"/v1/fine_tuning/jobs/{made[0]}/cancel")
        upload = http.post("/v1/uploads", json=GOOD["/v1/uploads"]).json()["id"]
        http.post(f"/v1/uploads/{upload}/cancel")
        sent = {"idempotency-key": "mistakes"}
        http.post("/v1/fine_tuning/jobs", json={**GOOD["/v1/fine_tuning/jobs"], "suffix": "other"}, headers=sent)
        results = http.post("/v1/files", files={"file": ("r.csv", ROWS)}, data={"purpose": "fine-tune-results"})
    await move(db, made[1], "succeeded")
    return {
        "cancelled": made[0], "succeeded": made[1], "cancelled-upload": upload, "result-file": results.json()["id"],
        "base": MODEL,
    }  # fmt: skip


def filled(text: str, ids: dict[str, str]) -> str:
    """With the ids of what is there put in."""
    return re.sub(r"<([a-z-]+)>", lambda found: ids[found[1]], text)


@pytest.mark.parametrize("row", table(), ids=lambda row: f"{row.code}-{row.path.rpartition('/')[2][:20]}-{row.param}")
def test_a_mistake_is_answered_as_the_table_says(
    service: Service, there: dict[str, str], http: httpx.Client, row: Mistake
) -> None:
    path = filled(row.path, there)
    headers = {"content-type": "application/json"} if row.body else {}
    if row.header:
        name, _, value = row.header.partition(": ")
        headers[name] = value
    content = None
    if row.body is not None:
        try:
            over = json.loads(filled(row.body, there))
            content = json.dumps({**GOOD.get(path, {}), **over} if isinstance(over, dict) else over)
        except ValueError:
            content = row.body
    answer = http.request(row.method, path, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"], error["param"]) == (
        row.status, row.type, row.code, row.param,
    ), error  # fmt: skip


def test_the_table_knows_the_mistakes_people_make() -> None:
    assert len(table()) > 50
