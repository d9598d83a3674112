"""The model card as the hub's own library reads it, made of a manifest, without a path or an address in it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune import steps
from finetune.config import Lora
from finetune.export.card import card
from tests.finetune.export.conftest import RESOLVED

pytestmark = pytest.mark.train

COMMIT = "c" * 40
STATISTICS = {
    "train": {"examples": 5, "tokens": 100, "share_masked": 0.5, "tokens_a_row": {"mean": 20.0, "median": 19.0, "p95": 31.0}},
    "duplicates": 2, "leaked": 1,
}  # fmt: skip


def manifest(**fields: Any) -> steps.Manifest:
    base = {"id": "org/small", "kind": "hub", "location": "org/small", "revision": COMMIT, "parameters": 1_500_000}
    result = {
        "steps": 5, "trained_tokens": 50, "train_loss": 0.25, "seconds": 61.0, "cpu_seconds": 118.0, "versions": {"torch": "2.9"},
    }  # fmt: skip
    file = {"name": "train/1", "split": "train", "uri": "s3://secret-bucket/rows.jsonl", "etag": None, "size": 9}
    given = {
        "job": "ftjob-1", "suffix": 'desk: "é"', "created_at": 1, "code_version": "0.1.0", "image": None, "files": [],
        "base": base | {"template_sha256": "", **fields.pop("base", {})},
        "dataset": {"files": [file | {"sha256": "0" * 64}]},
        "config": {"lora": Lora(r=8, use_dora=True).model_dump(mode="json"), "training_file": "s3://secret-bucket/rows.jsonl"},
        "resolved": RESOLVED.model_dump(mode="json") | fields.pop("resolved", {}),
        "result": {"status": "succeeded", "train_key": "k"} | result,
        "evaluation": {"rows": 4, "loss": 0.5, "base_loss": 2.5, "token_accuracy": 0.75},
        "statistics": STATISTICS,
    }  # fmt: skip
    return steps.Manifest.model_validate(given | fields)


def test_the_hub_reads_base_library_tags_and_metrics() -> None:
    made = ModelCard(card(manifest()))
    data = made.data.to_dict()
    assert (data["base_model"], data["library_name"], data["pipeline_tag"]) == ("org/small", "peft", "text-generation")
    assert {"lora", "llamaflow"} <= set(data["tags"])
    results = made.data.eval_results
    assert results is not None
    assert [(each.metric_type, each.metric_value) for each in results] == [("loss", 0.5), ("accuracy", 0.75)]
    assert made.data.model_name == 'desk: "é": LoRA adapter'


def test_a_person_reads_data_numbers_and_how_it_is_loaded() -> None:
    text = ModelCard(card(manifest())).text
    for words in (
        "| Examples | 5, and 0 held out for validation |",
        "| Repeated examples | 2 |",
        "| Held-out examples also in training | 1 |",
        "| Tokens an example | median 19, 95 % below 31 |",
        "| loss | 0.5000 | 2.5000 |",
        "rank 8, alpha 32, dropout 0, DoRA",
        "61 s; 118 CPU s, 0 GPU s",
        f'from_pretrained("org/small", revision="{COMMIT}")',
    ):
        assert words in text
    assert "secret-bucket" not in card(manifest())


@pytest.mark.parametrize(
    ("kind", "id_", "shown"),
    [("path", "/srv/models/tiny", "tiny"), ("s3", "s3://secret-bucket/bases/tiny/", "tiny"), ("package", "org/x", "org/x")],
)  # fmt: skip
def test_a_base_that_is_not_on_the_hub_is_named_without_its_place(kind: str, id_: str, shown: str) -> None:
    text = card(manifest(base={"kind": kind, "id": id_, "revision": "d" * 64}))
    assert ModelCard(text).data.to_dict()["base_model"] == shown
    assert "secret-bucket" not in text
    assert "/srv" not in text
    assert "revision=" not in text


def test_a_whole_model_is_loaded_without_peft_and_nothing_held_out_is_said() -> None:
    made = manifest(evaluation=None, statistics=None, resolved={"technique": "full"})
    data = ModelCard(card(made, whole=True)).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert "model-index" not in data
    assert "peft" not in card(made, whole=True)
