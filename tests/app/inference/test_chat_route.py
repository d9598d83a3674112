"""POST /v1/chat/completions as a client sees it: names found or not, answers passed on as they come, hang-ups passed on too."""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any

import httpx
import pytest
from openai import InternalServerError, NotFoundError, OpenAI

from app.auth import key_hash
from app.db import Database
from app.models import Adapter, AdapterVersion, ApiKey, Checkpoint, Job, Project
from tests.app.conftest import MODEL
from tests.app.inference.peer import EVENTS, Peer, event

pytestmark = pytest.mark.db

BASE = {"id": "org/hub-base", "kind": "hub", "location": "org/hub-base", "revision": "a" * 40, "template": None}
FT = "ft:org/hub-base:chat:kpi:chatroute"
PREFIX = "s3://llamaflow-data/model/ftjob-chatroute/"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}


@pytest.fixture(scope="module", autouse=True)
async def models(db: Database) -> None:
    """A project with a trained model that has a name and a checkpoint, and a name without a promoted version."""
    project = Project(id="proj_chat", name="chat")
    allowed = ApiKey(id="key_chat", project_id=project.id, hash=key_hash("lf-chat"), scopes=["read"])
    job = Job(
        id="ftjob-chatroute", project_id="proj_chat", api_key_id="key_chat", status="running", spec={}, model="org/hub-base",
        base=BASE, training_file="s3://b/k", seed=1, request_hash="", fine_tuned_model=FT,
    )  # fmt: skip
    adapter = Adapter(
        id="adapter_chatroute", project_id="proj_chat", name="chat-kpi", promoted_version=1, last_version=1
    )
    empty = Adapter(id="adapter_empty", project_id="proj_chat", name="chat-empty")
    version = AdapterVersion(
        id="adv_chatroute", project_id="proj_chat", adapter_id=adapter.id, version=1, job_id=job.id, model=FT,
        base=BASE | {"parameters": 1, "template_sha256": ""}, uri=PREFIX, manifest_sha256="f" * 64,
    )  # fmt: skip
    point = Checkpoint(
        id="ftckpt_chatroute",
        project_id="proj_chat",
        job_id=job.id,
        step_number=20,
        metrics={},
        uri=PREFIX + "checkpoints/step-20/",
    )
    async with db.transaction() as session:
        session.add(project)
        await session.flush()
        session.add(allowed)
        await session.flush()
        session.add_all([job, adapter, empty])
        await session.flush()
        session.add_all([version, point])


def asked(api: str, peer: Peer, model: str) -> dict[str, Any]:
    """What the engine is told when somebody asks `model`."""
    seen: queue.Queue[dict[str, Any]] = queue.Queue()

    def answer() -> None:
        body, connection = peer.accept()
        seen.put(body)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    reply = httpx.post(f"{api}/v1/chat/completions", json={"model": model, **ASK}, headers=key("chat"), trust_env=False)
    assert (reply.status_code, reply.json()) == (200, {})
    return seen.get(timeout=20)


def key(project: str) -> dict[str, str]:
    """A project's header."""
    return {"authorization": f"Bearer lf-{project}"}


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        (FT, "adapter/"),
        ("chat-kpi", "adapter/"),
        (f"{FT}:ckpt-step-20", "checkpoints/step-20/"),
        ("ftckpt_chatroute", "checkpoints/step-20/"),
    ],
)
def test_every_name_of_a_trained_model_leads_to_its_files(api: str, peer: Peer, model: str, folder: str) -> None:
    told = asked(api, peer, model)
    assert told["model"] == model
    assert told["llamaflow"]["base"] == BASE
    adapter = told["llamaflow"]["adapter"]
    assert (adapter["uri"], adapter["manifest_uri"], adapter["manifest_sha256"]) == (
        PREFIX + folder,
        PREFIX + "manifest.json",
        "f" * 64,
    )


@pytest.mark.parametrize(("model", "kind"), [(MODEL, "package"), ("org/hub-base", "hub")])
def test_a_base_is_asked_without_an_adapter(api: str, peer: Peer, model: str, kind: str) -> None:
    told = asked(api, peer, model)["llamaflow"]
    assert (told["adapter"], told["base"]["kind"], told["base"]["id"]) == (None, kind, model)


@pytest.mark.parametrize(
    ("project", "model", "said"),
    [
        ("chat", FT[:-1] + "x", f"Did you mean '{FT}'?"),
        ("chat", "HuggingFaceTB/SmolLM2-135M-instruct", f"Did you mean '{MODEL}'?"),
        ("chat", "chat-empty", "No version of the adapter 'chat-empty' is promoted"),
        ("chat", f"{FT}:ckpt-step-21", "does not exist here"),
        ("beta", FT, "GET /v1/models lists what there is."),
        ("beta", "chat-kpi", "does not exist here"),
        ("beta", "org/hub-base", "does not exist here"),
    ],
)
def test_an_unknown_model_is_404_and_names_a_near_one(api: str, project: str, model: str, said: str) -> None:
    with (
        OpenAI(base_url=f"{api}/v1", api_key=f"lf-{project}", max_retries=0) as client,
        pytest.raises(NotFoundError) as refused,
    ):
        client.chat.completions.create(model=model, **ASK)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert said in refused.value.message


def test_an_event_reaches_the_client_before_the_next_is_made_and_its_hang_up_reaches_the_engine(
    api: str, peer: Peer
) -> None:
    body = {"model": MODEL, "stream": True, **ASK}
    with httpx.Client(trust_env=False) as http:
        opened: queue.Queue[tuple[dict[str, Any], socket.socket]] = queue.Queue()

        def begin() -> None:
            told, connection = peer.accept()
            connection.sendall(EVENTS + event(b"1"))
            opened.put((told, connection))

        threading.Thread(target=begin, daemon=True).start()
        with http.stream("POST", f"{api}/v1/chat/completions", json=body, headers=key("gamma"), timeout=20) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            pieces = reply.iter_raw()
            assert next(pieces) == b"data: 1\n\n"
            told, connection = opened.get(timeout=20)
            assert told["stream"] is True
            connection.sendall(event(b"2"))
            assert next(pieces) == b"data: 2\n\n"
        with connection:
            assert connection.recv(1) == b"", "the service hung up on the engine"


def test_a_whole_answer_nobody_waits_for_is_given_up(api: str, peer: Peer) -> None:
    body = {"model": MODEL, **ASK}
    asking = threading.Thread(target=give_up_soon, args=(f"{api}/v1/chat/completions", body), daemon=True)
    asking.start()
    _, connection = peer.accept()
    with connection:
        assert connection.recv(1) == b""
    asking.join(20)


def give_up_soon(url: str, body: dict[str, Any]) -> None:
    """Ask and hang up after a second."""
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, headers=key("chat"), timeout=1, trust_env=False)


def test_without_an_engine_the_answer_is_503_with_a_time_to_wait(client: OpenAI) -> None:
    with pytest.raises(InternalServerError) as refused:
        client.chat.completions.create(model=MODEL, **ASK)
    assert (refused.value.status_code, refused.value.code) == (503, "engine_unavailable")
    assert refused.value.response.headers["retry-after"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"n": 9}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"model": "a\x00b"}, "model"),
    ],
)
def test_a_mistake_is_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": MODEL, **ASK} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
