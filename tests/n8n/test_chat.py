"""Workflow 5: n8n's current OpenAI and AI Agent nodes ask the service, which model being said by an expression."""

from __future__ import annotations

import pytest

from tests.conformance.engine import EchoEngine
from tests.n8n.canvas import WORKFLOWS, Canvas
from tests.n8n.conftest import Place, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]

CHAT = workflow_id("5-chat")
TRIGGER = Canvas.read(WORKFLOWS / "5-chat.json").nodes["Chat"]["webhookId"]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


async def test_the_openai_node_asks_a_model_of_a_job(place: Place) -> None:
    trained = await place.call("llamaflow-submit", training_file="s3://llamaflow-data/train.jsonl", suffix="kpi")
    for model in (MODEL, "kpi", trained.json()["model"]):
        answer = await place.call("llamaflow-chat", question="one two three", model=model)
        assert (answer.status_code, answer.json()) == (200, {"ok": True, "model": model, "answer": "one two three"})
        assert (await place.execution(CHAT)).status == "success"


async def test_a_model_that_is_not_there_is_named(place: Place) -> None:
    """The sentence is the OpenAI node's own: it keeps nothing of what was answered."""
    answer = await place.call("llamaflow-chat", question="one", model="nobody")
    said = answer.json()
    assert (answer.status_code, said["ok"], said["model"]) == (502, False, "nobody"), answer.text
    assert said["message"] == "The resource you are requesting could not be found"


async def test_the_agent_answers_and_remembers(place: Place, engine: EchoEngine) -> None:
    said = []
    for text in ("one two three", "four five"):
        body = {"action": "sendMessage", "sessionId": "s-1", "chatInput": text}
        answer = await place.site.post(f"/webhook/{TRIGGER}/chat", json=body)
        assert answer.status_code == 200, answer.text
        said.append(answer.json()["output"])
        assert (await place.execution(CHAT)).status == "success"
    assert said == ["one two three", "four five"]
    asked = [message["content"] for message in engine.asked[-1]["messages"] if message["role"] != "system"]
    assert asked == ["one two three", "one two three", "four five"]
