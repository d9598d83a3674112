"""The chats that the trainers are compared on: made from a fixed seed, with a mix of lengths as real chats have.

One to three questions a chat; words a question and words an answer are log-normal (medians 14 and 40, sigma 0.7 and 0.8:
many short ones, a long tail), at most 180. The template adds its own system prompt. As it comes out: 140 tokens a chat on average,
median 115, the longest near 500; three fifths of the tokens are trained.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import Data, Hyperparameters
from finetune.data import prepare
from finetune.data.arrays import Examples
from finetune.model import catalog, fetch
from finetune.steps import S3, PrepareStep

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SEED = 11
LONGEST = 512
WORDS = (
    "the order was late and we asked for refund of twelve items from blue depot near river while support wrote back "
    "that invoice number seven shows price before tax because customer changed delivery address on monday morning please "
    "check warehouse stock then send new label to partner in lisbon thank you very much"
)


def chats(count: int) -> list[dict[str, Any]]:
    """Rows in the messages format."""
    draw, known = random.Random(SEED), WORDS.split()

    def words(median: float, sigma: float) -> str:
        number = max(2, min(180, round(draw.lognormvariate(np.log(median), sigma))))
        return " ".join(draw.choice(known) for _ in range(number))

    def chat() -> dict[str, Any]:
        turns = draw.choices([1, 2, 3], [0.7, 0.2, 0.1])[0]
        messages = []
        for _ in range(turns):
            messages += [
                {"role": "user", "content": words(14, 0.7)},
                {"role": "assistant", "content": words(40, 0.8)},
            ]
        return {"messages": messages}

    return [chat() for _ in range(count)]


def prepared(folder: Path, cache: Path, model: str, count: int, batch: int) -> dict[str, Path]:
    """Prepare the chats for a model.

    Args:
        folder: Gets data/, base.json and prepared/.
        cache: Where the base is, or is brought to.
        model: Its name in the models file, or a folder.
        count: Chats; a multiple of `batch`.
        batch: Of them an optimiser step.
    Returns:
        The inputs of FINE_TUNE.
    """
    source = catalog.resolve(model, catalog.load(), allow_path=True)
    base, info, _ = fetch.obtain(source, S3(), cache)
    (folder / "data/train").mkdir(parents=True, exist_ok=True)
    (folder / "data/validation").mkdir(exist_ok=True)
    (folder / "data/train/0001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(count)))
    (folder / "base.json").write_text(info.text())
    asked = Hyperparameters(
        n_epochs=1, batch_size=batch, learning_rate=1e-3, lr_scheduler="constant", warmup_ratio=0, max_length=LONGEST,
        save_steps=1000,
    )  # fmt: skip
    inputs = {"base": base, "base_info": folder / "base.json"}
    step = PrepareStep(
        data=Data(overlength="truncate"), hyperparameters=asked, seed=SEED, cache_dir=str(folder / "cache")
    )
    prepare.run(step, {"data": folder / "data", **inputs}, folder)
    return {"prepared": folder / "prepared", **inputs}


def described(folder: Path) -> dict[str, Any]:
    """The mix as it came out."""
    examples = Examples(folder / "prepared", "train")
    lengths = examples.lengths
    middle, far = np.percentile(lengths, [50, 95])
    return {
        "examples": len(examples), "tokens": int(lengths.sum()), "mean": round(float(lengths.mean()), 1),
        "median": float(middle), "p95": round(float(far)), "longest": int(lengths.max()),
        "trained_tokens": int(examples.trained.sum()),
        "trained_share": round(float(examples.trained.sum() / lengths.sum()), 3),
    }  # fmt: skip
