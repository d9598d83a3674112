"""Several adapters for one request: routed by the question, mixed by token as peft's arrow does, merged; and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from transformers import AutoModelForCausalLM, DynamicCache

from finetune.data.tokenizer import load
from finetune.exit_codes import StepError
from finetune.inference import merging, routing
from finetune.inference.adapters import AdapterFiles, obtain
from finetune.inference.errors import EngineError
from finetune.inference.model import LoadedBase
from finetune.inference.request import AdapterSource, parse
from finetune.model.cache import describe
from finetune.steps import S3, ModelSource
from finetune.train import questions
from tests.finetune.inference.asking import answered, body, running, several, texts
from tests.finetune.inference.conftest import adapter_source, random_adapter

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

ASKED = {
    "letters": ["abc", "abd", "bcd", "cab"],
    "digits": ["1234", "4321", "2345", "9876"],
}
PROMPT = torch.tensor([[1, 50, 7, 200, 9, 33, 120]])


@pytest.fixture(scope="module")
def members(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters with vectors of their questions, and one without."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base.folder).eval(), load(base.folder)
    made = {}
    for seed, (name, asked) in enumerate(ASKED.items()):
        vectors = questions.vectors(model, [tokenizer.ids(text) for text in asked])
        made[name] = random_adapter(tmp_path_factory.mktemp(name), base, seed, vectors)
    made["bare"] = random_adapter(tmp_path_factory.mktemp("bare"), base, 7)
    made["dora"] = random_adapter(tmp_path_factory.mktemp("dora"), base, 8, use_dora=True)
    return made


@pytest.fixture
def files(base: Any, members: dict[str, Path], tmp_path: Path) -> dict[str, AdapterFiles]:
    """The adapters' checked files."""
    known = describe(ModelSource(**base.source), base.folder, base.revision)
    return {
        name: obtain(AdapterSource(**adapter_source(prefix, name)), known, S3(), tmp_path / "cache", allow_local=True)
        for name, prefix in members.items()
    }


async def test_a_question_goes_to_the_adapter_whose_questions_lie_nearest(
    base: Any, members: dict[str, Path], tmp_path: Path
) -> None:
    both = several(members["letters"], members["digits"])
    async with running(tmp_path) as engine:
        for name, question in (("letters", "bca"), ("digits", "3456")):
            found, answering = await answered(engine, body(base, combination=both, question=question))
            assert found == await texts(engine, body(base, members[name], question=question))
            told = answering.settled.told if answering.settled else None
            assert told is not None
            assert (told["method"], told["adapter"]) == ("route", members[name].name)
            assert told["score"] == max(told["scores"].values()) >= told["threshold"]


async def test_a_question_that_is_near_to_none_goes_to_the_base(
    base: Any, members: dict[str, Path], tmp_path: Path
) -> None:
    strict = several(members["letters"], members["digits"], threshold=1.0)
    async with running(tmp_path) as engine:
        found, answering = await answered(engine, body(base, combination=strict, question="Küste?"))
        assert found == await texts(engine, body(base, question="Küste?"))
        assert answering.settled is not None
        assert answering.settled.told is not None
        assert answering.settled.told["adapter"] is None
        assert engine.status()["adapters"] == []


async def test_without_vectors_each_token_chooses_and_route_is_refused(
    base: Any, members: dict[str, Path], tmp_path: Path
) -> None:
    pair = members["letters"], members["bare"]
    async with running(tmp_path) as engine:
        _, answering = await answered(engine, body(base, combination=several(*pair)))
        assert answering.settled is not None
        assert answering.settled.told == {"method": "arrow", "adapters": [one.name for one in pair]}
        for asked, told in (
            (several(*pair, method="route"), "without question vectors"),
            (several(members["letters"], members["dora"], method="arrow"), "DoRA"),
        ):
            with pytest.raises(EngineError, match=told) as refused:
                await answered(engine, body(base, combination=asked))
            assert (refused.value.status, refused.value.code) == (400, "unsupported_operation")


def test_one_adapter_is_no_combination(base: Any, members: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="at least 2") as refused:
        parse(body(base, combination=several(members["letters"])))
    assert refused.value.param == "llamaflow.combination.members"


def test_arrow_computes_what_pefts_own_does(base: Any, files: dict[str, AdapterFiles]) -> None:
    mine = LoadedBase(base.folder, max_adapters=4, max_bytes=1 << 30)
    chosen = [files["letters"], files["digits"]]
    mine.load([*chosen, files["bare"]])
    mix = tuple(one.key for one in chosen)
    rows = [mix, (), (files["bare"].key,)]
    scores = mine.forward(PROMPT.repeat(3, 1), DynamicCache(config=mine.model.config), rows)
    reference = create_arrow_model(
        base_model=AutoModelForCausalLM.from_pretrained(base.folder),
        task_specific_adapter_paths=[str(one.folder) for one in chosen],
        arrow_config=ArrowConfig(top_k=2, rng_seed=0),
    ).eval()
    with torch.no_grad():
        theirs = reference(PROMPT).logits[0, -1]
    assert torch.allclose(scores[0], theirs, atol=1e-3)
    alone = mine.forward(PROMPT, DynamicCache(config=mine.model.config), [(files["bare"].key,)])
    assert torch.allclose(scores[2], alone[0], atol=1e-4)


def test_cat_adds_up_what_its_members_add(base: Any, files: dict[str, AdapterFiles], tmp_path: Path) -> None:
    merging.merge([files["letters"], files["digits"]], [0.5, 2.0], "cat", 0.5, tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), str(tmp_path)).eval()
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    made = layer.get_delta_weight("default")
    other = LoadedBase(base.folder, max_adapters=4, max_bytes=1 << 30)
    other.load([files["letters"], files["digits"]])
    mine = other._peft.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    wanted = 0.5 * mine.get_delta_weight(files["letters"].key) + 2.0 * mine.get_delta_weight(files["digits"].key)
    assert torch.allclose(made, wanted, atol=1e-5)
    vectors = routing.read(tmp_path / "question_vectors.safetensors")
    assert vectors.shape[0] == sum(len(asked) for asked in ASKED.values())


def test_ties_makes_an_adapter_of_the_same_rank_and_dora_is_refused(
    base: Any, files: dict[str, AdapterFiles], tmp_path: Path
) -> None:
    merging.merge([files["letters"], files["bare"]], [1.0, 1.0], "ties", 0.5, tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), str(tmp_path))
    assert model.peft_config["default"].r == 4
    with pytest.raises(StepError, match="DoRA"):
        merging.merge([files["letters"], files["dora"]], [1.0, 1.0], "cat", 0.5, tmp_path)


def test_vectors_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, content in (("cut", b"\x08\x00"), ("text", b"not safetensors at all, whatever its name")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StepError, match="cannot be read") as refused:
            routing.read(tmp_path / name)
        assert refused.value.code.name == "manifest_mismatch"
