"""What leaves with an adapter or a model names its base, and no place where that lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from finetune import steps
from finetune.config import Lora
from finetune.model import loading
from finetune.train.adapter import write_card, write_weights
from tests.finetune.export.conftest import RESOLVED

pytestmark = pytest.mark.train

RESULT = steps.Result(status="succeeded", train_key="k", steps=5, train_loss=0.25, seconds=61.0, cpu_seconds=99.0)


def named(kind: str, id_: str) -> steps.Base:
    """A base that is called so."""
    given = {"id": id_, "kind": kind, "location": id_, "revision": "d" * 40, "parameters": 1000, "template_sha256": ""}
    return steps.Base.model_validate(given)


@pytest.mark.parametrize(
    ("kind", "id_", "shown"),
    [
        ("s3", "s3://secret-bucket/bases/tiny/", "tiny"),
        ("path", "/srv/secret-folder/tiny", "tiny"),
        ("hub", "org/tiny", "org/tiny"),
        ("package", "org/tiny", "org/tiny"),
    ],
)
def test_an_adapters_folder_names_its_base_without_its_place(
    kind: str, id_: str, shown: str, base: Path, tmp_path: Path
) -> None:
    model = loading.add_lora(loading.load_base(base, torch.device("cpu"), "float32"), Lora(r=4), 0)
    write_weights(model, named(kind, id_), tmp_path)
    write_card(tmp_path, named(kind, id_), RESOLVED, Lora(r=4), RESULT)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == shown
    assert config["revision"] == ("d" * 40 if kind == "hub" else None)
    assert ModelCard((tmp_path / "README.md").read_text()).data.to_dict()["base_model"] == shown
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes()


def test_a_card_before_the_upload_is_the_same_however_long_the_training_took(tmp_path: Path) -> None:
    texts = []
    for seconds in (61.0, 62.0):
        write_card(
            tmp_path, named("hub", "org/tiny"), RESOLVED, Lora(r=8), RESULT.model_copy(update={"seconds": seconds})
        )
        texts.append((tmp_path / "README.md").read_text())
    assert texts[0] == texts[1]
    assert "rank 8, alpha 32" in texts[0]
    assert "| Time |" not in texts[0]
    write_card(tmp_path, named("hub", "org/tiny"), RESOLVED, None, RESULT)
    whole = ModelCard((tmp_path / "README.md").read_text())
    assert whole.data.to_dict()["library_name"] == "transformers"
