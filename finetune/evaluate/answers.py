"""What a model answers to held-out questions: greedy, many at once. How the answers compare with what was wanted: scores.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from finetune.data.row import Message
from finetune.data.template import TemplateError
from finetune.data.tokenizer import TextTokenizer
from finetune.inference.prompt import prompt_ids

TOGETHER = 16
"""Questions answered at once."""
LONGEST = 256
"""Tokens an answer gets at most."""
SPARE = 8
"""Tokens an answer may be longer than the longest one wanted."""


@dataclass(frozen=True)
class Question:
    """A question as tokens.

    Attributes:
        shown: Its text: the last turn of a conversation.
        ids: What the model goes on from.
        wanted: The answer in the data; None if there is none.
    """

    shown: str
    ids: list[int]
    wanted: str | None


def read_questions(path: Path, tokenizer: TextTokenizer, most: int) -> list[Question]:
    """Questions of a samples.jsonl, evenly taken from it.

    Args:
        path: Lines `{"messages": …, "wanted": …}` or `{"prompt": …, "wanted": …}`; need not be there.
        tokenizer: With the template in force.
        most: How many are taken at most.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    count = min(most, len(rows))
    return [_question(rows[index * len(rows) // count], tokenizer) for index in range(count)]


def ask(prompt: str, tokenizer: TextTokenizer) -> Question:
    """A user's prompt as a conversation of one turn; as plain text where the template refuses that."""
    try:
        return Question(prompt, prompt_ids(tokenizer, [Message("user", prompt)]), None)
    except TemplateError:
        return Question(prompt, [*tokenizer.lead, *tokenizer.ids(prompt)], None)


def answer(model: Any, tokenizer: TextTokenizer, questions: Sequence[Question], limit: int | None = None) -> list[str]:
    """Answer questions greedily.

    Args:
        model: A transformers or peft model; put into evaluation mode, and back.
        tokenizer: Of its base.
        questions: Any number; answered `TOGETHER` at a time, like lengths together.
        limit: Tokens an answer may have; left out: a few more than the longest one wanted.
    Returns:
        The answers, in the order of the questions, without special tokens.
    """
    most = limit or answer_limit(questions, tokenizer)
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].ids))
    found: dict[int, str] = {}
    training = model.training
    model.eval()
    try:
        for begin in range(0, len(order), TOGETHER):
            group = order[begin : begin + TOGETHER]
            found |= zip(
                group, _generate(model, tokenizer, [questions[index].ids for index in group], most), strict=True
            )
    finally:
        model.train(training)
    return [found[index] for index in range(len(questions))]


def answer_limit(questions: Sequence[Question], tokenizer: TextTokenizer) -> int:
    """Tokens answers to `questions` need: those of the longest one wanted and a few more."""
    wanted = [len(tokenizer.ids(question.wanted)) for question in questions if question.wanted is not None]
    return min(LONGEST, max(wanted) + SPARE) if wanted else LONGEST // 4


def _question(row: dict[str, Any], tokenizer: TextTokenizer) -> Question:
    if "messages" not in row:
        return Question(row["prompt"], [*tokenizer.lead, *tokenizer.ids(row["prompt"])], row["wanted"])
    turns = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
    return Question(turns[-1].content, tokenizer.prompt(turns), row["wanted"])


def _generate(model: Any, tokenizer: TextTokenizer, prompts: list[list[int]], limit: int) -> list[str]:
    width = max(len(ids) for ids in prompts)
    tokens = torch.tensor([[tokenizer.pad_id] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    how = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(tokenizer.eos_ids) or None,
        pad_token_id=tokenizer.pad_id,
    )
    with torch.no_grad():  # not inference_mode: a model may keep tensors made here, and training goes on
        made = model.generate(input_ids=tokens, attention_mask=mask, generation_config=how)
    return [tokenizer.decode(_until_end(row, tokenizer)) for row in made[:, width:].tolist()]


def _until_end(ids: list[int], tokenizer: TextTokenizer) -> list[int]:
    ends = [index for index, id_ in enumerate(ids) if id_ in tokenizer.eos_ids]
    return ids[: ends[0]] if ends else ids
