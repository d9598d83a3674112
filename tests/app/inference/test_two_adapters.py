"""Two adapters over one base, by API, registry, S3 and a live engine: right answers by name and combined, promoted under load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from app.auth import key_hash
from app.db import Database
from app.models import Adapter, AdapterVersion, ApiKey, Project
from finetune.model.cache import file_sha256, fingerprint
from tests.app.conftest import BUCKET, Service, serving
from tests.finetune.inference.conftest import ROOT, TOKEN, Base, train_adapter, write_base, write_manifest

pytestmark = [
    pytest.mark.train,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

KNOWN = {"columns": ("key of orders?", "order_ref"), "figures": ("3 + 4 = ...", "seven")}
BETTER = "order_ref!"


@dataclass(frozen=True)
class Desk:
    """A project with two adapters, and the API that answers for them."""

    base: Base
    http: httpx.Client
    client: OpenAI

    def ask(self, model: str, question: str, **more: Any) -> Any:
        """A completion."""
        messages: Any = [{"role": "user", "content": question}]
        options = {"temperature": 0, "max_tokens": 16} | more
        return self.client.chat.completions.create(model=model, messages=messages, **options)

    def text(self, model: str, question: str) -> str:
        """Its text."""
        return str(self.ask(model, question).choices[0].message.content)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_base(tmp_path_factory.mktemp("two-base"), seed=0)


@pytest.fixture(scope="module")
async def versions(base: Base, service: Service, db: Database, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two versions of `columns` and one of `figures`, on S3 and in the registry as jobs leave them."""
    asked = {question for question, _ in KNOWN.values()}
    made = [
        ("columns", 1, *KNOWN["columns"]),
        ("columns", 2, KNOWN["columns"][0], BETTER),
        ("figures", 1, *KNOWN["figures"]),
    ]
    assert len(asked) == 2
    async with db.transaction() as session:
        session.add(Project(id="proj_two", name="two"))
        await session.flush()
        session.add(ApiKey(id="key_two", project_id="proj_two", hash=key_hash("lf-two"), scopes=["read", "write"]))
        for name, last in (("columns", 2), ("figures", 1)):
            session.add(Adapter(id=f"two_{name}", project_id="proj_two", name=name, last_version=last))
        await session.flush()
        for name, number, question, answer in made:
            prefix = tmp_path_factory.mktemp(f"{name}-{number}")
            train_adapter(prefix, base, answer, question=question)
            _keep_vectors(prefix, base, question)
            key = f"two/{name}-{number}/"
            for path in prefix.rglob("*.*"):
                service.s3.upload_file(str(path), BUCKET, key + path.relative_to(prefix).as_posix())
            told = base.source | {"parameters": 1, "template_sha256": "", "template": None}
            session.add(
                AdapterVersion(
                    id=f"adv_two_{name}_{number}", project_id="proj_two", adapter_id=f"two_{name}", version=number,
                    model=f"ft:tiny:two:{name}:{number}", base=told, uri=f"s3://{BUCKET}/{key}",
                    manifest_sha256=file_sha256(prefix / "manifest.json"),
                )
            )  # fmt: skip


def _keep_vectors(prefix: Path, base: Base, question: str) -> None:
    from transformers import AutoModelForCausalLM

    from finetune.data.tokenizer import load
    from finetune.inference import routing
    from finetune.train import questions

    model = AutoModelForCausalLM.from_pretrained(base.folder).eval()
    ids = [load(base.folder).ids(question[:-cut] if cut else question) for cut in range(3)]
    routing.write(prefix / "adapter" / "question_vectors.safetensors", questions.vectors(model, ids))
    write_manifest(prefix, base)


@pytest.fixture(scope="module")
def desk(base: Base, versions: None, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    settings = service.settings
    assert settings.s3_access_key is not None
    assert settings.s3_secret_key is not None
    environment = {
        "LLAMAFLOW_ENGINE_TOKEN": TOKEN,
        "LLAMAFLOW_CACHE_DIR": str(tmp_path_factory.mktemp("two-cache")),
        "AWS_ENDPOINT_URL": str(settings.s3_endpoint),
        "AWS_ACCESS_KEY_ID": settings.s3_access_key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value(),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "finetune", "serve", "--port", "0"]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            engine = process.stdout.readline().split()[-1]
            settings = settings.model_copy(update={"engine_url": engine, "engine_token": _secret(TOKEN)})
            with serving(settings) as url, httpx.Client(trust_env=False) as plain:
                key = {"authorization": "Bearer lf-two"}
                with httpx.Client(base_url=url, headers=key, timeout=60, trust_env=False) as http:
                    for name in KNOWN:
                        assert http.post(f"/v1/adapters/{name}/promote", json={"version": 1}).status_code == 200
                    client = OpenAI(
                        base_url=f"{url}/v1",
                        api_key="lf-two",
                        max_retries=0,
                        http_client=plain,
                        _strict_response_validation=True,
                    )
                    yield Desk(base, http, client)
        finally:
            process.terminate()
            assert process.wait(60) == 0


def _secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)


def test_each_name_and_the_combination_answer_rightly_and_the_base_stays_as_it_is(desk: Desk) -> None:
    before = fingerprint(desk.base.folder)
    for name, (question, answer) in KNOWN.items():
        assert desk.text(name, question) == answer
        told = desk.ask("columns+figures", question)
        assert told.choices[0].message.content == answer
        assert told.model_extra["llamaflow"]["adapter"] == name
        chunks = list(desk.ask("columns+figures", question, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
        assert chunks[-1].model_extra["llamaflow"]["adapter"] == name
    assert fingerprint(desk.base.folder) == before == desk.base.revision


def test_promotion_and_rollback_under_load_fail_no_request(desk: Desk) -> None:
    question, old = KNOWN["columns"]
    seen: list[str] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            try:
                seen.append(desk.text("columns", question))
            except Exception as problem:
                failed.append(problem)

    asking = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        for path, body, wanted in (("promote", {"version": 2}, BETTER), ("rollback", {}, old)) * 3:
            changed = desk.http.post(f"/v1/adapters/columns/{path}", json=body)
            assert changed.status_code == 200, changed.text
            assert desk.text("columns", question) == wanted
    finally:
        over.set()
        for thread in asking:
            thread.join()
    assert failed == []
    assert set(seen) <= {old, BETTER}


def test_a_merge_is_made_from_s3_to_s3_and_answers(desk: Desk) -> None:
    parts = [{"name": name} for name in KNOWN]
    made = desk.http.post("/v1/adapters/combine", json={"name": "merged", "adapters": parts, "method": "cat"})
    assert (made.status_code, made.json()["version"]) == (200, 1), made.text
    assert desk.ask("merged", "?", max_tokens=4).usage.completion_tokens <= 4
    refused = desk.http.post(
        "/v1/chat/completions", json={"model": "merged+figurs", "messages": [{"role": "user", "content": "a"}]}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "adapter_not_found")
