"""Questions found in prepared tokens, and their vectors: what the base alone makes of them, padding or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.encode import Example
from finetune.data.row import Message
from finetune.data.tokenizer import load
from finetune.inference import routing
from finetune.train import questions
from tests.finetune.inference.conftest import write_base, write_tokenizer

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]


@pytest.mark.parametrize(
    ("turns", "asked"),
    [
        (["What is é?"], "What is é?"),
        (["One?", "1", "And two?"], "And two?"),
        (["<b>user</b>\nassistant"], "<b>user</b>\nassistant"),
    ],
)
def test_the_question_of_an_example_is_the_last_one_before_its_answer(
    tmp_path: Path, turns: list[str], asked: str
) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load(tmp_path)
    talk = [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(turns)]
    before, answer = tokenizer.prompt(talk), tokenizer.ids("Yes.<|im_end|>")
    tokens = np.array([*before, *answer], dtype=np.int32)
    example = Example(1, tokens, np.arange(len(tokens)) >= len(before))
    assert questions.question(example, tokenizer, questions._marks(tokenizer)) == asked


def test_a_plain_text_is_known_by_its_beginning(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load(tmp_path)
    tokens = np.array(tokenizer.ids("Once upon a time"), dtype=np.int32)
    example = Example(1, tokens, np.ones(len(tokens), dtype=bool))
    assert questions.question(example, tokenizer, questions._marks(tokenizer)) == "Once upon a time"


def test_vectors_are_those_of_the_base_alone_and_come_back_from_their_file(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path, seed=3)
    model: Any = AutoModelForCausalLM.from_pretrained(base.folder).eval()
    asked = [[5, 6, 7], [9, 200, 31, 4, 5, 6, 7]]
    with torch.no_grad():
        alone = [model.model(input_ids=torch.tensor([ids]))[0][0].mean(0) for ids in asked]
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    found = questions.vectors(get_peft_model(model, lora), asked)
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    routing.write(tmp_path / "vectors.safetensors", found)
    assert torch.allclose(routing.read(tmp_path / "vectors.safetensors"), found, atol=1e-2)
