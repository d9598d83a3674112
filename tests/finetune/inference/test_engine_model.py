"""A base in memory: the same numbers to the bit whatever adapters are there, greedy answers as transformers gives them, LRU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from finetune.data.row import Message
from finetune.exit_codes import StepError
from finetune.inference.adapters import AdapterFiles, obtain
from finetune.inference.engine import Engine, Options
from finetune.inference.generation import Generation
from finetune.inference.model import LoadedBase
from finetune.inference.prompt import tokenizer_of
from finetune.inference.request import AdapterSource, parse
from finetune.inference.sampling import Sampling
from finetune.model.cache import describe
from finetune.steps import S3, ModelSource

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

PROMPT = torch.tensor([[1, 50, 7, 200, 9, 33, 120]])


@pytest.fixture
def files(base: Any, tmp_path: Path) -> Callable[[Path], AdapterFiles]:
    """An adapter's checked files."""

    def take(prefix: Path) -> AdapterFiles:
        given = AdapterSource(
            id=prefix.name, uri=f"{prefix.as_uri()}/adapter/", manifest_uri=f"{prefix.as_uri()}/manifest.json"
        )
        known = describe(ModelSource(**base.source), base.folder, base.revision)
        return obtain(given, known, S3(), tmp_path / "cache", allow_local=True)

    return take


@pytest.fixture
def loaded(base: Any) -> LoadedBase:
    """The base in memory, with room for one adapter."""
    return LoadedBase(base.folder, max_adapters=1, max_bytes=1 << 30)


def scores(loaded: LoadedBase) -> torch.Tensor:
    """Of the token after `PROMPT`."""
    return loaded.forward(PROMPT, DynamicCache(config=loaded.model.config)).clone()


def test_the_base_is_the_same_to_the_bit_with_adapters_loaded(
    loaded: LoadedBase, files: Callable[[Path], AdapterFiles], adapter: Path, second_adapter: Path
) -> None:
    alone = scores(loaded)
    for prefix in (adapter, second_adapter):
        loaded.use(files(prefix))
        assert not torch.equal(scores(loaded), alone)
        loaded.use(None)
        assert torch.equal(scores(loaded), alone)


def test_the_longest_unused_adapter_goes_first(
    loaded: LoadedBase, files: Callable[[Path], AdapterFiles], adapter: Path, second_adapter: Path
) -> None:
    first, second = files(adapter), files(second_adapter)
    loaded.use(first)
    wanted = scores(loaded)
    loaded.use(second)
    assert loaded.adapters == [second.key]
    loaded.use(first)
    assert loaded.adapters == [first.key]
    assert torch.equal(scores(loaded), wanted)


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(
    loaded: LoadedBase, files: Callable[[Path], AdapterFiles], adapter: Path
) -> None:
    alone, good = scores(loaded), files(adapter)
    bad = AdapterFiles("wrong", good.folder, None, good.lora | {"r": 4}, good.size)
    for _ in range(2):
        with pytest.raises(StepError, match="does not fit its base"):
            loaded.use(bad)
        assert torch.equal(scores(loaded), alone)
    loaded.use(good)
    assert loaded.adapters == [good.key]


def test_greedy_answers_are_those_of_transformers(base: Any, loaded: LoadedBase) -> None:
    tokenizer = tokenizer_of(base.folder, None)
    prompt = tokenizer.prompt([Message("user", "Hello")])
    reference = AutoModelForCausalLM.from_pretrained(base.folder, dtype=loaded.model.dtype)
    ids = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=256)[
        0, len(prompt) :
    ]
    seen: list[int] = []
    generation = Generation(
        loaded, prompt, Sampling(temperature=0), count=1, limit=24, ends=frozenset(tokenizer.eos_ids),
        decode=lambda ids: seen.extend(ids[len(seen) :]) or "", stops=(),
    )  # fmt: skip
    while not generation.finished:
        generation.step()
    assert seen == ids.tolist()


async def test_an_idle_base_is_dropped_and_comes_back(base: Any, tmp_path: Path) -> None:
    engine = Engine(Options(cache=tmp_path, idle_seconds=0.05))
    engine.start()
    try:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 2,
            "llamaflow": {"base": base.source},
        }
        for _ in range(2):
            answering = await engine.submit(parse(body))
            while await answering.next(20) is not None and answering.generation and not answering.generation.finished:
                pass
            engine.release(answering)
            await asyncio.to_thread(wait_until_dropped, engine)
    finally:
        engine.close()


def wait_until_dropped(engine: Engine) -> None:
    """Wait until no base is in memory."""
    deadline = time.monotonic() + 20
    while engine.status()["loaded_base"] is not None:
        assert time.monotonic() < deadline
