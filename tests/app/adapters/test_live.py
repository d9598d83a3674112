"""Promotion goes live: the real API with the real engine on a tiny model, versions changed under load, not one request failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from tests.app.conftest import BUCKET, Service, serving
from tests.finetune.inference.conftest import QUESTION, random_adapter, write_base

pytestmark = [
    pytest.mark.train,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

TOKEN = "live-engine"
VERSIONS = (1, 2, 3)
ASKING = 3


@dataclass
class Load:
    """Askers that go on until they are told to stop; what they were answered, by version, and what went wrong."""

    url: str
    answers: dict[int, str]
    heard: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, *, stream: bool) -> None:
        """Ask again and again."""
        with httpx.Client(base_url=self.url, headers=KEY, timeout=300, trust_env=False) as http:
            while not self.over.is_set():
                said = http.post("/v1/chat/completions", json=ASK | {"stream": stream})
                text = said.text
                version = next(
                    (number for number, answer in self.answers.items() if spoken(text, stream) == answer), None
                )
                with self._lock:
                    if said.status_code == 200 and version is not None:
                        self.heard[version] += 1
                    else:
                        self.wrong.append(f"{said.status_code} {text[:300]}")

    def until(self, version: int, times: int) -> None:
        """Wait until a version has answered so often since now."""
        before = self.heard[version]
        while self.heard[version] < before + times and not self.wrong:
            assert not self.over.wait(0.05)


KEY = {"authorization": "Bearer lf-alpha"}
ASK = {"model": "live", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 6}


def spoken(text: str, stream: bool) -> str:
    """The answer in a body."""
    if not stream:
        try:
            return str(json.loads(text)["choices"][0]["message"]["content"])
        except (ValueError, KeyError):
            return ""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    return "".join((json.loads(line)["choices"] or [{}])[0].get("delta", {}).get("content") or "" for line in lines)


@pytest.fixture(scope="module")
def api(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API with an engine behind it, and three versions of the adapter `live` on S3."""
    folder = tmp_path_factory.mktemp("live")
    base = write_base(folder / "base", seed=0)
    models = folder / "models.toml"
    models.write_text(f'[models."tiny"]\nsource = "path"\nlocation = "{base.folder}"\nrevision = "{base.revision}"\n')
    for version in VERSIONS:
        random_adapter(folder / str(version), base, seed=version)
        for path in (folder / str(version) / "adapter").iterdir():
            service.s3.upload_file(str(path), BUCKET, f"live/{version}/{path.name}")
    settings = service.settings
    env = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "LLAMAFLOW_ENGINE_TOKEN": TOKEN, "LLAMAFLOW_FP32": "1", "LLAMAFLOW_THREADS": "1",
        "LLAMAFLOW_CACHE_DIR": str(folder / "cache"), "LLAMAFLOW_MODELS_FILE": str(models),
        "AWS_ENDPOINT_URL_S3": str(settings.s3_endpoint),
        "AWS_ACCESS_KEY_ID": settings.s3_access_key.get_secret_value() if settings.s3_access_key else "",
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else "",
    }  # fmt: skip
    command = [sys.executable, "-m", "finetune", "serve", "--port", "0", "--max-adapters", "2"]
    engine = subprocess.Popen(command, env=env, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    url = engine.stdout.readline().split()[-1]
    try:
        with serving(
            settings.model_copy(update={"engine_url": url, "engine_token": SecretStr(TOKEN), "models_file": models})
        ) as served:
            yield served
    finally:
        engine.terminate()
        engine.wait(30)
        engine.stdout.close()


def test_promotion_and_rollback_under_load_fail_no_request(api: str) -> None:
    with httpx.Client(base_url=api, headers=KEY, timeout=300, trust_env=False) as http:
        answers = {}
        for version in VERSIONS:
            body = {"name": "live", "uri": f"s3://{BUCKET}/live/{version}/", "base": "tiny", "promote": version == 1}
            made = http.post("/v1/adapters/import", json=body)
            assert made.status_code == 200, made.text
            answers[version] = spoken(
                http.post("/v1/chat/completions", json=ASK | {"model": made.json()["model"]}).text, False
            )
        assert len(set(answers.values()) - {""}) == len(VERSIONS)
        load = Load(api, answers)
        askers = [threading.Thread(target=load.ask, kwargs={"stream": bool(number % 2)}) for number in range(ASKING)]
        for asker in askers:
            asker.start()
        try:
            load.until(1, 2)
            for version in (2, 3):
                assert (
                    http.post(
                        "/v1/adapters/live/promote", json={"version": version, "expected": version - 1}
                    ).status_code
                    == 200
                )
                load.until(version, ASKING + 1)
            for version in (2, 1):
                assert http.post("/v1/adapters/live/rollback", json={"expected": version + 1}).status_code == 200
                load.until(version, ASKING + 1)
        finally:
            load.over.set()
            for asker in askers:
                asker.join(120)
        assert load.wrong == []
        assert spoken(http.post("/v1/chat/completions", json=ASK).text, stream=False) == answers[1]
