"""Which types of model can be loaded is read from transformers' source, and is what transformers says itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.exit_codes import StepError
from finetune.model import known


@pytest.mark.train
def test_the_table_read_is_that_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert known.causal_language_models() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.unit
def test_reading_it_imports_neither_transformers_nor_torch() -> None:
    code = "import sys; from finetune.model import known; assert 'llama' in known.causal_language_models(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5"}, "'t5' is no causal language model that transformers knows."),
        (
            {"model_type": "own", "auto_map": {}},
            "'own' is no causal language model that transformers knows; it brings code",
        ),
        ({}, "None is no causal language model"),
        ([], "no JSON object"),
    ],
)
def test_what_cannot_be_loaded_is_refused(config: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StepError, match=said) as caught:
        known.require(tmp_path / "config.json")
    assert (caught.value.code.name, caught.value.param) == ("unsupported_model", "model")


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma3_text", "phi3", "deepseek_v3", "gpt_neox"])
def test_families_that_are_trained_are_let_through(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    known.require(tmp_path / "config.json")
