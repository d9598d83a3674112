"""The service as `make up` runs it and the real small model: a dataset goes into n8n's webhook, a model comes out that n8n asks."""

from __future__ import annotations

import asyncio

import pytest

from app.demo import dataset
from app.embedded.background import start
from app.settings import Settings
from tests.app.worker.services import SECRET
from tests.n8n.conftest import KEY, Site

pytestmark = [pytest.mark.n8n, pytest.mark.slow, pytest.mark.timeout(3600)]


async def test_a_real_training_by_workflows_alone(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    state = tmp_path_factory.mktemp("state")
    for name, text in {"api_key": KEY, "webhook_secret": SECRET}.items():
        (state / name).write_text(text)
    shared = Settings()
    own = Settings(state_dir=state, tools_dir=shared.tools, cache_dir=shared.cache)
    allowed = f"127.0.0.1:{site.n8n.port}"
    variables = {"LLAMAFLOW_PORT": str(site.port), "LLAMAFLOW_WEBHOOK_ALLOW": allowed}
    running = await asyncio.to_thread(start, own, variables)
    try:
        assert (running.api_key, running.webhook_secret) == (KEY, SECRET)
        rows = dataset.jsonl(dataset.training_rows())
        answer = await site.post(
            "/webhook/llamaflow-submit", files={"file": ("train.jsonl", rows)}, data={"suffix": "real", "n_epochs": "2"}
        )
        said = answer.json()
        assert (answer.status_code, said["ok"]) == (200, True), answer.text
        question = dataset.exam()[0]
        told = await site.call("llamaflow-chat", question=question.text, model="real")
        assert (told.status_code, told.json()["model"]) == (200, "real"), told.text
        assert told.json()["answer"]
    finally:
        await asyncio.to_thread(running.stop)
