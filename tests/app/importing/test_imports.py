"""/v1/imports: history of another service is kept as it was told, however often it is sent, and runs nothing."""

from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.db

IMPORTS = "/v1/imports"


def event(number: int) -> dict[str, object]:
    return {"id": f"ftevent-{number}", "created_at": 1_700_000_000 + number // 2, "message": f"Step {number}"}


def test_an_object_is_kept_once_and_what_is_newly_known_is_added(http: httpx.Client) -> None:
    told = {"id": "ftjob-there", "kind": "job", "object": {"id": "ftjob-there", "status": "running"}}
    first = http.post(IMPORTS, json=told).json()
    assert (first["complete"], first["job_id"], first["checkpoints"]) == (False, None, [])
    done = {"status": "succeeded", "fine_tuned_model": "ft:x"}
    again = http.post(IMPORTS, json={**told, "object": done, "checkpoints": [{"step_number": 3}], "complete": True})
    assert (again.json()["source"], again.json()["complete"]) == (done, True)
    third = http.post(IMPORTS, json={**told, "object": done, "job_id": "ftjob-here"}).json()
    assert (third["complete"], third["checkpoints"], third["job_id"]) == (True, [{"step_number": 3}], "ftjob-here")
    assert [row["id"] for row in http.get(IMPORTS, params={"kind": "job"}).json()["data"]].count("ftjob-there") == 1
    assert "ftjob-there" not in http.get("/v1/fine_tuning/jobs?limit=100").text
    other = http.post(IMPORTS, json={**told, "kind": "file"})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "kind")


def test_events_are_kept_once_by_their_id_and_come_newest_first(http: httpx.Client) -> None:
    http.post(IMPORTS, json={"id": "ftjob-told", "kind": "job", "object": {}})
    path = f"{IMPORTS}/ftjob-told/events"
    assert http.post(path, json={"events": [event(n) for n in range(5)]}).json()["kept"] == 5
    assert http.post(path, json={"events": [event(n) for n in range(3, 9)]}).json()["kept"] == 9
    seen, after = [], None
    while True:
        page = http.get(path, params={"limit": 4} | ({"after": after} if after else {})).json()
        seen += [each["id"] for each in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == [f"ftevent-{n}" for n in reversed(range(9))]
    wrong = http.post(path, json={"events": [{"id": "x"}]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "events[0]")


def test_what_is_forgotten_is_gone(http: httpx.Client) -> None:
    http.post(IMPORTS, json={"id": "file-there", "kind": "file", "object": {}, "file_id": "file-here"})
    assert http.delete(f"{IMPORTS}/file-there").json()["deleted"] is True
    gone = http.get(f"{IMPORTS}/file-there")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "import_not_found")
