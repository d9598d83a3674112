"""The second engine against a server that replays vLLM's HTTP: adapters loaded, unloaded and found lost, several servers, refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.errors import ApiError, BadRequest, Conflict, NotFound, TooMany, Unavailable
from app.inference.engines import Served
from app.inference.vllm import VllmEngine
from app.inference.vllm_adapters import Adapters
from finetune.model.peft_folder import Imported
from finetune.steps import Manifest, ModelSource
from tests.app.inference.vllm_server import Vllm, error

pytestmark = pytest.mark.unit

BASE = ModelSource(id="small", kind="hub", location="org/base", revision="a" * 40)
BODY: dict[str, Any] = {"model": "kpi", "messages": [{"role": "user", "content": "a"}], "temperature": 0}
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


@dataclass
class Objects:
    """What the storage has: address → content."""

    content: dict[str, bytes]

    async def read(self, uri: str) -> tuple[Any, AsyncIterator[bytes]]:
        """As Storage reads."""

        async def chunks() -> AsyncIterator[bytes]:
            yield self.content[uri]

        return type("Found", (), {"size": len(self.content[uri])})(), chunks()

    def close(self) -> None:
        """Nothing to close."""

    def served(self, name: str, base: ModelSource = BASE) -> Served:
        """An adapter that lies here."""
        prefix = f"s3://bucket/{name}/"
        files = [
            Manifest.File(path=f"adapter/{file}", sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            for file, content in FILES.items()
        ]
        manifest = Imported(created_at=1, base=base, source="here", lora={"r": 1}, files=files).text().encode()
        self.content |= {f"{prefix}adapter/{file}": content for file, content in FILES.items()}
        self.content[f"{prefix}manifest.json"] = manifest
        told = {"id": name, "uri": f"{prefix}adapter/", "manifest_uri": f"{prefix}manifest.json"}
        return Served(BASE, told | {"manifest_sha256": hashlib.sha256(manifest).hexdigest()})


@pytest.fixture
def objects() -> Objects:
    return Objects({})


@pytest.fixture
def servers() -> Iterator[list[Vllm]]:
    started = [Vllm("org/base"), Vllm("org/base")]
    yield started
    for server in started:
        server.stop()


@pytest_asyncio.fixture
async def engine(servers: list[Vllm], objects: Objects, tmp_path: Path) -> AsyncIterator[VllmEngine]:
    folder = tmp_path / "adapters"
    adapters = Adapters(objects, folder, str(folder), most=2)  # type: ignore[arg-type]
    made = VllmEngine([server.url for server in servers], "vllm-token", adapters, max_adapters=2)
    yield made
    await made.close()


async def test_the_base_answers_under_the_name_that_was_asked_for(engine: VllmEngine, servers: list[Vllm]) -> None:
    answer = await engine.complete(BODY, Served(BASE))
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("kpi", "Olá")
    assert [chat for server in servers for chat in server.chats()] == [BODY | {"model": "served"}]


async def test_an_adapter_is_brought_loaded_once_and_asked_where_it_is(
    engine: VllmEngine, servers: list[Vllm], objects: Objects
) -> None:
    served = objects.served("kpi")
    for _ in range(3):
        assert (await engine.complete(BODY, served))["model"] == "kpi"
    [loaded] = [(name, path) for server in servers for name, path in server.loaded.items()]
    assert (Path(loaded[1]) / "adapter_model.safetensors").read_bytes() == FILES["adapter_model.safetensors"]
    assert [chat["model"] for server in servers for chat in server.chats()] == [loaded[0]] * 3


async def test_a_stream_is_passed_on_with_the_name_that_was_asked_for(engine: VllmEngine, objects: Objects) -> None:
    stream = await engine.stream(BODY | {"stream": True}, objects.served("kpi"))
    content = b"".join([piece async for piece in stream])
    await stream.close()
    *chunks, end = [line.removeprefix("data: ") for line in content.decode().strip().split("\n\n")]
    assert end == "[DONE]"
    assert {json.loads(chunk)["model"] for chunk in chunks} == {"kpi"}
    assert "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Olá"


async def test_an_adapter_that_a_restarted_server_lost_is_loaded_again(
    engine: VllmEngine, servers: list[Vllm], objects: Objects
) -> None:
    served = objects.served("kpi")
    await engine.complete(BODY, served)
    for server in servers:
        server.loaded.clear()
    assert (await engine.complete(BODY, served))["model"] == "kpi"


async def test_the_longest_unused_adapter_makes_room(engine: VllmEngine, servers: list[Vllm], objects: Objects) -> None:
    servers[1].stop()
    for name in ("one", "two", "three"):
        await engine.complete(BODY, objects.served(name))
    paths = [path for path, _ in servers[0].asked if path != "/v1/chat/completions"]
    assert paths == ["/v1/load_lora_adapter"] * 2 + ["/v1/unload_lora_adapter", "/v1/load_lora_adapter"]
    assert len(servers[0].loaded) == 2


async def test_another_server_answers_when_one_is_gone_and_none_is_said_so(
    engine: VllmEngine, servers: list[Vllm]
) -> None:
    for _ in range(2):
        await engine.complete(BODY, Served(BASE))
    servers[0].stop()
    for _ in range(3):
        assert await engine.complete(BODY, Served(BASE))
    servers[1].stop()
    with pytest.raises(Unavailable) as refused:
        await engine.complete(BODY, Served(BASE))
    assert (refused.value.code, refused.value.retry_after) == ("engine_unavailable", 3)


@pytest.mark.parametrize(
    ("status", "told", "kind", "code"),
    [
        (400, "This model's maximum context length is 8 tokens.", BadRequest, "invalid_value"),
        (429, "Too many requests.", TooMany, "queue_full"),
        (500, "Internal.", ApiError, "engine_error"),
    ],
)
async def test_its_refusals_are_this_services_own(
    engine: VllmEngine, servers: list[Vllm], status: int, told: str, kind: type[ApiError], code: str
) -> None:
    for server in servers:
        server.refuse = status, error(told, "BadRequestError", status)
    for asking in (engine.complete, engine.stream):
        with pytest.raises(kind) as refused:
            await asking(BODY, Served(BASE))
        assert refused.value.code == code


async def test_what_it_cannot_do_is_said(engine: VllmEngine, objects: Objects) -> None:
    with pytest.raises(NotFound, match="served are: served") as unknown:
        await engine.complete(BODY, Served(replace_base(location="org/other", id="other")))
    assert unknown.value.code == "model_not_served"
    with pytest.raises(BadRequest, match="embedded engine"):
        await engine.complete(BODY, Served(BASE, combination={"members": []}))
    with pytest.raises(BadRequest, match="merges no adapters"):
        await engine.merge({})


async def test_a_changed_or_foreign_adapter_is_refused_and_leaves_nothing(
    engine: VllmEngine, objects: Objects, tmp_path: Path
) -> None:
    changed = objects.served("changed")
    objects.content["s3://bucket/changed/adapter/adapter_model.safetensors"] = b"other"
    foreign = objects.served("foreign", replace_base(revision="b" * 40))
    unrecorded = objects.served("unrecorded")
    unrecorded = replace(unrecorded, adapter=(unrecorded.adapter or {}) | {"manifest_sha256": "0" * 64})
    for served in (changed, foreign, unrecorded):
        with pytest.raises(Conflict) as refused:
            await engine.complete(BODY, served)
        assert refused.value.code == "manifest_mismatch"
    assert list((tmp_path / "adapters").glob("*")) == []


def replace_base(**fields: Any) -> ModelSource:
    """The base, in part another one."""
    return BASE.model_copy(update=fields)
