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
from finetune.inference.answering import Done
from finetune.inference.engine import Engine, Options
from finetune.inference.generation import Answer, Batch, Reading, read_together
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


def scores(loaded: LoadedBase, *mixes: tuple[str, ...]) -> torch.Tensor:
    """Of the token after `PROMPT`, in a batch with a row for each mix."""
    ids = PROMPT.repeat(max(1, len(mixes)), 1)
    return loaded.forward(ids, DynamicCache(config=loaded.model.config), mixes or None).clone()


def test_the_base_is_the_same_to_the_bit_with_adapters_loaded(
    base: Any, files: Callable[[Path], AdapterFiles], adapter: Path, second_adapter: Path
) -> None:
    loaded = LoadedBase(base.folder, max_adapters=2, max_bytes=1 << 30)
    one, three = scores(loaded), scores(loaded, (), (), ())
    first, second = files(adapter), files(second_adapter)
    loaded.load([first, second])
    assert not torch.equal(scores(loaded, (first.key,)), one)
    assert torch.equal(scores(loaded), one)
    mixed = scores(loaded, (first.key,), (), (second.key,))
    assert torch.equal(mixed[1], three[1])
    assert not torch.equal(mixed[0], three[0])
    assert torch.equal(scores(loaded, (), (), ()), three)


def test_a_mixed_batch_computes_what_pefts_own_does(
    base: Any, files: Callable[[Path], AdapterFiles], adapter: Path, second_adapter: Path
) -> None:
    loaded = LoadedBase(base.folder, max_adapters=2, max_bytes=1 << 30)
    first, second = files(adapter), files(second_adapter)
    loaded.load([first, second])
    mine = scores(loaded, (first.key,), (), (second.key,), (first.key,))
    peft = loaded._peft
    peft.base_model.enable_adapter_layers()
    loaded._stacked.choose(None)
    with torch.inference_mode():
        names = [first.key, "__base__", second.key, first.key]
        theirs = peft(input_ids=PROMPT.repeat(4, 1), adapter_names=names).logits[:, -1]
    assert loaded.precision == "float32"
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_the_longest_unused_adapter_goes_first_and_none_in_use(
    loaded: LoadedBase, files: Callable[[Path], AdapterFiles], adapter: Path, second_adapter: Path
) -> None:
    first, second = files(adapter), files(second_adapter)
    loaded.load([first])
    wanted = scores(loaded, (first.key,))
    assert not loaded.has_room([second], {first.key})
    loaded.load([second], in_use={first.key})
    assert loaded.adapters == [first.key, second.key]
    loaded.load([second])
    assert loaded.adapters == [second.key]
    loaded.load([first])
    assert loaded.adapters == [first.key]
    assert torch.equal(scores(loaded, (first.key,)), wanted)


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(
    loaded: LoadedBase, files: Callable[[Path], AdapterFiles], adapter: Path
) -> None:
    alone, good = scores(loaded), files(adapter)
    bad = AdapterFiles("wrong", good.folder, None, good.lora | {"r": 4}, good.size)
    for _ in range(2):
        with pytest.raises(StepError, match="does not fit its base"):
            loaded.load([bad])
        assert torch.equal(scores(loaded), alone)
    loaded.load([good])
    assert loaded.adapters == [good.key]


def test_greedy_answers_are_those_of_transformers(base: Any, loaded: LoadedBase) -> None:
    tokenizer = tokenizer_of(base.folder, None)
    prompt = tokenizer.prompt([Message("user", "Hello")])
    reference = AutoModelForCausalLM.from_pretrained(base.folder, dtype=loaded.model.dtype)
    ids = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=256)[
        0, len(prompt) :
    ]
    seen: list[int] = []
    answer = Answer(
        0, Sampling(temperature=0), limit=24, ends=frozenset(tokenizer.eos_ids),
        decode=lambda ids: seen.extend(ids[len(seen) :]) or "", stops=(),
    )  # fmt: skip
    batch, reading = Batch(loaded), Reading(prompt, (), [answer])
    batch.begin([reading], *read_together(loaded, [reading]))
    while batch.rows:
        batch.step()
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
            while not isinstance(await answering.next(20), Done):
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
