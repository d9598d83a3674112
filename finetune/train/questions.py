"""The vectors of an adapter's training questions, by which a combination later chooses among adapters: kept beside its weights.

What the base alone makes of up to 256 of them; no text is kept. Questions are found in the prepared tokens: what stands between
the template's user header and the header of the trained answer; of plain texts, their beginning.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from finetune.data.arrays import Examples
from finetune.data.encode import Example
from finetune.data.row import Message
from finetune.data.template import TemplateError
from finetune.data.tokenizer import TextTokenizer
from finetune.inference import routing
from finetune.model.peft_folder import VECTORS

MOST = 256
TOGETHER = 32
MARK = "\ue0f0question\ue0f0"


def keep(model: Any, prepared: Path, tokenizer: TextTokenizer, folder: Path) -> None:
    """Write `VECTORS` into an adapter's folder; nothing where there are no questions.

    Args:
        model: The peft model that was trained; its adapter is switched off meanwhile.
        prepared: With the training arrays.
        tokenizer: With the template in force.
        folder: The adapter's.
    """
    texts = questions(prepared, tokenizer)
    if texts:
        routing.write(folder / VECTORS, vectors(model, [tokenizer.ids(text) for text in texts]))


def questions(prepared: Path, tokenizer: TextTokenizer, most: int = MOST) -> list[str]:
    """Up to `most` training questions, evenly spread."""
    examples = Examples(prepared, "train")
    count = min(most, len(examples))
    marks = _marks(tokenizer)
    found = (question(examples[index * len(examples) // count], tokenizer, marks) for index in range(count))
    return [text for text in dict.fromkeys(found) if tokenizer.ids(text)]


def question(example: Example, tokenizer: TextTokenizer, marks: tuple[str, str]) -> str:
    """What an example asks, of its last trained answer."""
    trained = example.mask.nonzero()[0]
    end = len(example.tokens)
    if len(trained):
        end = int(trained[-1])
        while end and example.mask[end - 1]:
            end -= 1
    ids = example.tokens[:end] if end else example.tokens[: routing.LONGEST]
    text = str(tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False))
    header, close = marks
    text = text.removesuffix(close)
    asked = text.rpartition(header)[2] if header else text
    return tokenizer.special.sub("", asked).strip()


def vectors(model: Any, asked: list[list[int]]) -> torch.Tensor:
    """What the base alone makes of questions: float32, shape (questions, width). Like lengths together, padded on the right."""
    cut = [ids[-routing.LONGEST :] for ids in asked]
    order = sorted(range(len(cut)), key=lambda index: len(cut[index]))
    found: list[torch.Tensor] = [torch.empty(0)] * len(cut)
    training = model.training
    model.eval()
    off = model.disable_adapter() if hasattr(model, "peft_config") else nullcontext()
    try:
        with torch.no_grad(), off:
            base = model.get_base_model() if hasattr(model, "peft_config") else model
            for begin in range(0, len(order), TOGETHER):
                group = order[begin : begin + TOGETHER]
                wide = max(len(cut[index]) for index in group)
                ids = torch.tensor([cut[index] + [0] * (wide - len(cut[index])) for index in group])
                states = base.get_decoder()(input_ids=ids.to(base.device), use_cache=False)[0]
                for row, index in enumerate(group):
                    found[index] = routing.vector(states[row, : len(cut[index])]).cpu()
    finally:
        model.train(training)
    return torch.stack(found)


def _marks(tokenizer: TextTokenizer) -> tuple[str, str]:
    """What a template puts before a question that follows an answer, and after one that waits for its answer."""
    talk = [Message("user", "a"), Message("assistant", "b")]
    try:
        before = tokenizer.template.render(talk)
        whole = tokenizer.template.render([*talk, Message("user", MARK)], add_generation_prompt=True)
    except TemplateError:
        return "", ""
    header, _, close = whole.removeprefix(before).partition(MARK)
    return (header if whole.startswith(before) else ""), close
