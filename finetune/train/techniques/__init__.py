"""The techniques: how a base becomes something that can be trained, with which optimiser, and what is written of it.

One entry a technique in `TECHNIQUES`; the trainer asks the entry and knows no technique by name. What is learned from
(answers, preferences) is `finetune/train/methods.py`'s.
"""

from __future__ import annotations

from dataclasses import replace

from finetune.config import Backend
from finetune.config import Technique as Name
from finetune.train.techniques import full, lora, unsloth
from finetune.train.techniques.technique import Ground, Made, Technique

__all__ = ["TECHNIQUES", "Ground", "Made", "Technique", "technique"]

TECHNIQUES: dict[Name, Technique] = {
    "lora": Technique(load=lora.load, optimiser=lora.optimiser, write=lora.write, export=lora.export),
    "qlora": Technique(load=lora.load_4bit, optimiser=lora.paged_optimiser, write=lora.write, export=lora.export),
    "full": Technique(load=full.load, optimiser=full.optimiser, write=full.write, export=full.export),
}

UNSLOTH: dict[Name, Technique] = {
    "lora": replace(TECHNIQUES["lora"], load=unsloth.load),
    "qlora": replace(TECHNIQUES["qlora"], load=unsloth.load_4bit),
}
"""Those that Unsloth has a model for."""


def technique(name: Name, backend: Backend) -> Technique:
    """The entry of a technique, with the model of the backend that trains it."""
    return UNSLOTH[name] if backend == "unsloth" else TECHNIQUES[name]
