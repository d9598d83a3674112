"""Answers that appear word by word, where a person watches the training on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from finetune.data.tokenizer import TextTokenizer
from finetune.evaluate.answers import Question, answer_limit


def is_watched() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


class _Words:
    """A tokenizer as the streamer calls it."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Any, **_kwargs: Any) -> str:
        return self._tokenizer.decode(ids)


def stream(model: Any, tokenizer: TextTokenizer, questions: Sequence[Question]) -> list[str]:
    """Answer questions greedily, one after another, printing each as it is made.

    Args:
        model: A transformers or peft model; put into evaluation mode, and back.
        tokenizer: Of its base.
        questions: Any number.
    Returns:
        The answers, without special tokens.
    """
    how = GenerationConfig(
        max_new_tokens=answer_limit(questions, tokenizer),
        do_sample=False,
        eos_token_id=list(tokenizer.eos_ids) or None,
        pad_token_id=tokenizer.pad_id,
    )
    found, training = [], model.training
    model.eval()
    try:
        for question in questions:
            print(f"  ? {question.shown}\n  ! ", end="", flush=True)
            ids = torch.tensor([question.ids], device=model.device)
            streamer = TextStreamer(_Words(tokenizer), skip_prompt=True)
            with torch.no_grad():
                made = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how, streamer=streamer
                )
            found.append(tokenizer.decode(made[0, ids.shape[1] :].tolist()))
    finally:
        model.train(training)
    return found
