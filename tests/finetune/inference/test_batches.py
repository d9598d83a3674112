"""Many requests over different adapters in one batch: each gets what it gets alone, joins late, ends alone, and may hang up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from finetune.inference import rows
from finetune.inference.request import parse
from tests.finetune.inference.asking import answered, body, running, texts, until
from tests.finetune.inference.conftest import random_adapter

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]


@pytest.fixture(scope="module")
def adapters(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of different kinds and shapes."""
    shapes: dict[str, dict[str, Any]] = {
        "plain": {},
        "wide": {"r": 8, "target_modules": ["q_proj", "down_proj"]},
        "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
        "dora": {"use_dora": True},
    }
    return {
        name: random_adapter(tmp_path_factory.mktemp(name), base, seed, **lora)
        for seed, (name, lora) in enumerate(shapes.items())
    }


async def test_a_mixed_batch_gives_each_request_what_it_gets_alone(
    base: Any, adapters: dict[str, Path], tmp_path: Path
) -> None:
    asked = [
        body(base),
        body(base, adapters["plain"], question="Another, longer question? " * 9, max_tokens=40),
        body(base, adapters["wide"], temperature=1, seed=5, n=3),
        body(base, adapters["rslora"], question="?", max_tokens=3),
        body(base, adapters["dora"], temperature=0.7, top_p=0.9, seed=2),
        body(base, adapters["plain"], temperature=1, seed=9, frequency_penalty=1, max_tokens=60),
    ]
    async with running(tmp_path, together=1) as engine:
        alone = [await texts(engine, one) for one in asked]
    async with running(tmp_path, together=16, window=0.5) as engine:
        assert await asyncio.gather(*(texts(engine, one) for one in asked)) == alone
    assert len({found[0] for found in alone}) == len(alone)


async def test_a_request_joins_those_under_way_and_is_done_before_them(
    base: Any, adapters: dict[str, Path], tmp_path: Path
) -> None:
    async with running(tmp_path) as engine:
        alone = await texts(engine, body(base, adapters["plain"]))
        long = await engine.submit(parse(body(base, max_tokens=50_000, temperature=1, seed=1)))
        await long.next(60)
        late = await texts(engine, body(base, adapters["plain"]))
        assert engine.status()["batches"] == [1], "the first still goes on"
        assert late == alone
        engine.release(long)


async def test_a_row_leaves_its_batch_when_nobody_waits_any_more(
    base: Any, adapters: dict[str, Path], tmp_path: Path
) -> None:
    async with running(tmp_path, window=0.5) as engine:
        alone = await texts(engine, body(base, adapters["wide"], max_tokens=400))
        staying = asyncio.ensure_future(texts(engine, body(base, adapters["wide"], max_tokens=400)))
        gone = await engine.submit(parse(body(base, adapters["plain"], n=2, max_tokens=50_000, temperature=1, seed=3)))
        assert await gone.next(60)
        engine.release(gone)
        assert await staying == alone
        await until(engine, lambda status: not status["computing"])
        assert engine.status()["batches"] == []


async def test_more_adapters_than_there_is_room_for_take_turns(
    base: Any, adapters: dict[str, Path], tmp_path: Path
) -> None:
    names = ("plain", "wide", "rslora", "plain")
    async with running(tmp_path, max_adapters=1, window=0.1) as engine:
        alone = {name: await texts(engine, body(base, adapters[name])) for name in names}
        found = await asyncio.gather(*(texts(engine, body(base, adapters[name])) for name in names))
        assert found == [alone[name] for name in names]
        assert len(engine.status()["adapters"]) == 1


async def test_batches_that_hold_too_little_go_on_in_turn(base: Any, adapters: dict[str, Path], tmp_path: Path) -> None:
    asked = [body(base, adapters["plain"], question="x" * size) for size in (10, 200, 30, 3000)]
    async with running(tmp_path) as engine:
        alone = [await texts(engine, one) for one in asked]
    async with running(tmp_path, batch_tokens=300, window=0.2) as engine:
        assert await asyncio.gather(*(texts(engine, one) for one in asked)) == alone


async def test_unloading_waits_for_the_answers_under_way(base: Any, adapters: dict[str, Path], tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        whole = asyncio.ensure_future(answered(engine, body(base, adapters["plain"], max_tokens=100)))
        await until(engine, lambda status: bool(status["computing"]))
        await engine.unload()
        assert whole.done() or engine.status()["loaded_base"] is None
        found, answering = await whole
        assert found[0]
        assert 0 < answering.tokens <= 100


def test_rows_of_a_sliding_window_are_joined_and_left_exactly() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=64, sliding_window=8, initializer_range=0.3,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    prompts = [torch.randint(0, 64, (1, size)) for size in (3, 21, 9)]
    assert rows.can_be_joined(model)

    def read(ids: torch.Tensor, cache: Any, lengths: list[int] | None = None) -> torch.Tensor:
        mask = rows.masked(lengths, rows.width(cache) + ids.shape[1], ids.device) if lengths else None
        place: dict[str, Any] = {}
        if mask is not None and lengths is not None:
            place = {"attention_mask": mask, "position_ids": torch.tensor(lengths)[:, None] - 1}
        with torch.no_grad():
            return model(ids, past_key_values=cache, use_cache=True, **place).logits[:, -1]

    caches = [DynamicCache(config=config) for _ in prompts]
    for ids, cache in zip(prompts, caches, strict=True):
        read(ids, cache)
    together = DynamicCache(config=config)
    read(prompts[0], together)
    for ids in prompts[1:]:
        other = DynamicCache(config=config)
        read(ids, other)
        rows.join(together, other)
    lengths, staying = [3, 21, 9], [0, 1, 2]
    for step in range(14):
        token = torch.tensor([[step + row] for row in staying])
        lengths = [length + 1 for length in lengths]
        alone = torch.cat([read(token[at : at + 1], caches[row]) for at, row in enumerate(staying)])
        assert torch.allclose(read(token, together, lengths), alone, atol=1e-4)
        if step == 5:
            rows.keep(together, [0, 2], lengths[2])
            lengths, staying = [lengths[0], lengths[2]], [0, 2]
