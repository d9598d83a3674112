"""What users write is text, everywhere: it comes back as it was or is refused, and no shell, Groovy, SQL, path or terminal takes it for more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from app.models import File, Job
from app.worker import folder
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, until
from tests.fault.doors import HUB, JOBS, ROW, doors, make_project
from tests.fault.scene import Behave, Workers

pytestmark = pytest.mark.fault

MARK = "pwned-by-a-test"
CORPUS = (
    f"$(touch {MARK})", f"`touch {MARK}`", f"; touch {MARK} #", f"x' ; touch {MARK} ; '", f'x" && touch {MARK} && "',
    f"| touch {MARK}", f"\\$(touch {MARK})", "$IFS", "-rf", "--help", "*", "~root", "$HOME", "!!", "\\", "'", '"',
    f"${{'touch {MARK}'.execute()}}", f"${{new File('{MARK}').createNewFile()}}", "${params}", "$params.steps", "${1/0}",
    "'''", '"""', "/*", "{{7*7}}", "#{7*7}", "<%= 7*7 %>", "${jndi:ldap://127.0.0.1/x}", "%s%n%x", "{0.__class__}", "{text.__class__}",
    "'; drop table jobs; --", "' or '1'='1", '"; select pg_sleep(9); --', "\\'; --", "$1", ":name", "%(id)s",
    "../../../../etc/passwd", "..\\..\\windows", "/etc/passwd", "file:///etc/passwd", "s3://other/x", "a/../../b", "%2e%2e%2f", "a//b", ".", "..", "C:\\x",
    "a\r\nx-injected: 1", "a\nb", "a\tb", "a%0d%0ab", "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\x7f", "\x08\x08", "a\x00b",
    "\u202etxt.exe", "\u2066\u2069", "\ufeffbom", "\u200b", "\u2028\u2029", "e\u0301", "\U0001f600", "\ufffe", "İıß", "\u0000",
    "<script>alert(1)</script>", "javascript:alert(1)", "__proto__", "constructor", "null", "true", "NaN", "1e999", "0x10", " ", "a" * 600, "ÿ" * 5000,
)  # fmt: skip
SHORT = CORPUS[::10]
FIELDS: tuple[str, ...] = (
    "suffix", "model", "training_file", "validation_file", "seed", "technique", "preset", "callback_url", "metadata.key",
    "metadata.*", "output.path", "output.register_as", "output.archive", "execution.profile", "execution.gpu_type", "execution.memory",
    "data.text_template", "data.format", "evaluation.prompts[]", "evaluation.metrics[]", "lora.target_modules[]", "hyperparameters.lr_scheduler",
    "hyperparameters.n_epochs", "method.type", "method.supervised.hyperparameters.*", "callback_events[]", "*",
)  # fmt: skip
"""Every text of a job: a dotted path; `[]` one entry of a list, `*` the name itself."""


def with_text(field: str, value: str, base: dict[str, Any]) -> dict[str, Any]:
    """A body with `value` in one of its texts."""
    body: dict[str, Any] = json.loads(json.dumps(base))
    *path, last = field.split(".")
    place = body
    for part in path:
        place = place.setdefault(part, {})
    if last == "*":
        place[value] = "x"
    elif last.endswith("[]"):
        place[last[:-2]] = [value]
    else:
        place[last] = value
    return body


@pytest_asyncio.fixture
async def http(stored: World) -> AsyncIterator[httpx.AsyncClient]:
    await make_project(stored, "nasty", "lf-nasty")
    async with doors(stored, "lf-nasty") as (client,):
        yield client


async def uploaded(http: httpx.AsyncClient) -> str:
    form = {"files": {"file": ("t.jsonl", ROW * 12)}, "data": {"purpose": "fine-tune"}}
    return str((await http.post("/v1/files", **form)).json()["id"])


def text_of(job: dict[str, Any], spec: dict[str, Any], field: str) -> Any:
    """What became of a text: as the job shows it, or as it is kept for the run."""
    if field in ("suffix", "model", "training_file", "callback_url"):
        return job[field]
    if field.startswith("metadata"):
        return job["metadata"] if field.endswith("*") else job["metadata"]["key"]
    group, _, name = field.partition(".")
    found = spec[group][name.removesuffix("[]")] if name else spec[group]
    return found[0] if field.endswith("[]") else found


async def check_job(world: World, http: httpx.AsyncClient, field: str, value: str, base: dict[str, Any]) -> bool:
    """Post a nasty text in one field: it is kept letter for letter, or refused with 400; whether it was kept."""
    answer = await http.post(
        JOBS, content=json.dumps(with_text(field, value, base)), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (201, 400), (field, value, answer.text)
    if answer.status_code == 400:
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
        return False
    job = answer.json()
    assert (await http.get(f"{JOBS}/{job['id']}")).json() == job
    kept = text_of(job, (await world.get(job["id"])).spec, field)
    assert kept == ({value: "x"} if field == "metadata.*" else value) or (field, value) in HARMLESS, (
        field,
        value,
        kept,
    )
    await http.post(f"{JOBS}/{job['id']}/cancel")
    return True


HARMLESS: set[tuple[str, str]] = set()
"""Taken for something else on purpose."""


async def check_everywhere(world: World, http: httpx.AsyncClient, corpus: tuple[str, ...]) -> None:
    base = {"model": HUB, "training_file": await uploaded(http)}
    taken: set[str] = set()
    for field in FIELDS:
        for value in corpus:
            if await check_job(world, http, field, value, base):
                taken.add(field)
    assert {"suffix", "metadata.key", "metadata.*", "data.text_template", "evaluation.prompts[]"} <= taken
    for value in corpus:
        await check_elsewhere(world, http, value)
    async with world.database.transaction() as db:
        assert (await db.execute(select(func.count()).select_from(Job))).scalar_one() > len(taken)
    assert [path for path in (Path.cwd(), world.settings.state_dir) for _ in path.rglob(MARK)] == []


async def check_elsewhere(world: World, http: httpx.AsyncClient, value: str) -> None:
    """A nasty text in names of files, in addresses, queries and headers: kept, refused, or not found; never a 500, nothing injected."""
    escaped = quote(value.encode("utf-8", "surrogatepass"), safe="")
    gets = [f"{JOBS}/{escaped}", f"{JOBS}/x/logs?stage={escaped}&tail={escaped}", f"{JOBS}?after={escaped}", f"{JOBS}?metadata[{escaped}]={escaped}",
            f"/v1/files/{escaped}", f"/v1/files?purpose={escaped}", f"/v1/models/{escaped}", f"/v1/adapters/{escaped}"]  # fmt: skip
    for path in gets:
        answer = await http.get(path)
        assert answer.status_code in (200, 400, 404, 405, 431), (path, answer.text)
        assert "x-injected" not in answer.headers
    sent = json.dumps({"s3_uri": f"s3://llamaflow-data/{value}", "purpose": "fine-tune"})
    registered = await http.post("/v1/files", content=sent, headers={"content-type": "application/json"})
    assert registered.status_code in (200, 400), (value, registered.text)
    chat = json.dumps({"model": value, "messages": [{"role": value, "content": value}]})
    answer = await http.post("/v1/chat/completions", content=chat, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404, 503), (value, answer.text)
    if value.isascii() and value.isprintable():
        headers = {"idempotency-key": value, "x-request-id": value, "openai-organization": value}
        answer = await http.post(JOBS, json={"model": HUB}, headers=headers)
        assert answer.status_code == 400
        assert "\n" not in answer.headers["x-request-id"]
    form = {"files": {"file": (value, ROW * 12)}, "data": {"purpose": "fine-tune"}}
    answer = await http.post("/v1/files", **form)
    assert answer.status_code in (200, 400), (value, answer.text)
    if answer.status_code == 200:
        await check_file(world, http, answer.json())


async def check_file(world: World, http: httpx.AsyncClient, made: dict[str, Any]) -> None:
    name, file_id = made["filename"], made["id"]
    assert name.isprintable()
    assert not set(name) & {"/", "\\"}
    content = await http.get(f"/v1/files/{file_id}/content")
    assert content.content == ROW * 12
    assert content.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    async with world.database.transaction() as db:
        row = await db.get_one(File, file_id)
        assert row.uri == f"{world.settings.files_prefix}{row.project_id}/{file_id}"


async def test_nasty_text_is_kept_as_it_is_or_refused(stored: World, http: httpx.AsyncClient) -> None:
    await check_everywhere(stored, http, SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_all_nasty_text_is_kept_as_it_is_or_refused(stored: World, http: httpx.AsyncClient) -> None:
    await check_everywhere(stored, http, CORPUS)


async def test_nasty_text_passes_through_a_whole_run_as_text(
    stored: World, receiver: Receiver, stub_tasks: Behave, workers: Workers, http: httpx.AsyncClient
) -> None:
    """Each text a job may have holds shell, Groovy and SQL at once; a real Nextflow runs it, and nothing of it is run."""
    stub_tasks(seconds="0")
    evil = f"$(touch ${{IFS}}{MARK})`touch {MARK}`${{'touch {MARK}'.execute()}}'\"; touch {MARK} #"
    key = f"inj/{evil}.jsonl"
    await asyncio.to_thread(stored.put, key, ROW * 12)
    place = f"s3://llamaflow-data/base/{evil.replace(' ', '')}/"
    await asyncio.to_thread(stored.put, place.removeprefix("s3://llamaflow-data/") + "config.json", b"{}")
    body = {
        "model": place,
        "training_file": f"s3://llamaflow-data/{key}",
        "suffix": f"`touch {MARK}`$(touch {MARK})${{1}}'\"",
        "metadata": {f"{evil[:50]}": evil, "sql": "'; drop table jobs; --", "escape": "\x1b[2J\r\n\u202e"},
        "callback_url": f"{receiver.url}?q=$(touch%20{MARK})`{MARK}`",
        "data": {"format": "messages", "text_template": evil + "{text}\r\n\x1b[31m"},
        "evaluation": {"prompts": [evil, "\x1b]0;x\x07", "${params.steps}", "'''\n\"\"\"\\"]},
        "output": {"path": f"s3://llamaflow-data/out/{evil}/", "register_as": "-rf"},
        "execution": {"gpu_type": "..", "memory": "1 GB"},
        "lora": {"target_modules": ["..", "__class__"]},
    }
    answer = await http.post(JOBS, json=body, headers={"idempotency-key": evil})
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    workers()
    job = await until(lambda: stored.is_over(job_id), 240)
    assert (job.status, job.error) == ("succeeded", None)
    shown = (await http.get(f"{JOBS}/{job_id}")).json()
    assert {name: shown[name] for name in ("model", "training_file", "suffix", "metadata", "callback_url")} == {
        name: body[name] for name in ("model", "training_file", "suffix", "metadata", "callback_url")
    }
    assert shown["adapter"]["name"] == "-rf"
    assert shown["output"]["uri"] == f"{body['output']['path']}{job_id}/"  # type: ignore[index]
    root = folder.of(stored.settings, job_id).root
    assert (
        json.loads((root / "steps" / "evaluate.json").read_text())["evaluation"]["prompts"]
        == body["evaluation"]["prompts"]
    )  # type: ignore[index]
    assert await asyncio.to_thread(stored.keys, f"out/{evil}/{job_id}/manifest.json")

    async def told() -> bool:
        return bool(receiver.received)

    await until(told, 30)
    assert json.loads(receiver.received[0].body)["data"]["id"] == job_id
    logs = await http.get(f"{JOBS}/{job_id}/logs")
    assert logs.status_code == 200
    for below in (stored.settings.state_dir, Path.cwd() / "app", Path.cwd() / "pipeline", Path.home()):
        found = (
            [path for path in below.glob("**/*" + MARK + "*") if path.name == MARK]
            if below != Path.home()
            else [below / MARK]
        )
        assert not any(path.exists() for path in found)
    assert not (Path.cwd() / MARK).exists()
