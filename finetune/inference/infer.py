"""`python -m finetune infer --base DIR [--adapter DIR] --prompt TEXT`: one answer on the console, as it is made.

To look at an adapter by hand, without the service. Reads local folders; starts nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from finetune.data.row import Message
from finetune.data.tokenizer import TextTokenizer, load
from finetune.exit_codes import StepError
from finetune.export import lineage
from finetune.inference.prompt import prompt_ids
from finetune.inference.text import TextStream


class Console:
    """Prints the tokens transformers hands over while it generates; the first of them are the prompt's.

    Args:
        tokenizer: To make text of them.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._text, self._ends = TextStream(tokenizer.decode), set(tokenizer.eos_ids)
        self._asked = False

    def put(self, ids: Any) -> None:
        """Take tokens."""
        if not self._asked:
            self._asked = True
            return
        for token in ids.tolist():
            if token not in self._ends:
                print(self._text.push(token), end="", flush=True)

    def end(self) -> None:
        """No more come."""
        print(self._text.finish(), flush=True)


def main(argv: list[str]) -> None:
    """Answer one prompt.

    Args:
        argv: `--base`, `--adapter`, `--prompt`, `--system`, `--max-tokens`, `--temperature`, `--seed`.
    Raises:
        StepError: `unsupported_model`, `manifest_mismatch`.
    """
    given = _parser().parse_args(argv)
    template = given.adapter / "chat_template.jinja" if given.adapter else None
    own = template.read_text(encoding="utf-8") if template and template.is_file() else None
    tokenizer = load(given.base, own)
    turns = [Message("system", given.system)] if given.system else []
    ids = prompt_ids(tokenizer, [*turns, Message("user", given.prompt)])
    _generate(given, tokenizer, ids)


def _generate(given: argparse.Namespace, tokenizer: TextTokenizer, ids: list[int]) -> None:
    import torch
    from transformers import GenerationConfig

    from finetune.model import loading

    loading.use_threads()
    where = loading.device()
    model = loading.load_base(given.base, where, loading.precision(where))
    if given.adapter:
        if not (given.adapter / "adapter_config.json").is_file():
            raise StepError("manifest_mismatch", f"{given.adapter} holds no adapter: no adapter_config.json.")
        lineage.require(given.adapter, given.base)
        model = loading.load_adapter(model, given.adapter)
    sampled = {"do_sample": True, "temperature": given.temperature} if given.temperature > 0 else {"do_sample": False}
    how = GenerationConfig(
        max_new_tokens=given.max_tokens,
        eos_token_id=list(tokenizer.eos_ids) or None,
        pad_token_id=tokenizer.pad_id,
        **sampled,
    )
    torch.manual_seed(given.seed)
    tokens = torch.tensor([ids], device=where)
    model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=how, streamer=Console(tokenizer)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune infer", description="One answer, as it is made.")
    parser.add_argument("--base", type=Path, required=True, help="a base's folder")
    parser.add_argument("--adapter", type=Path, help="an adapter's folder")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--system", help="a system message before it")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token")
    parser.add_argument("--seed", type=int, default=0)
    return parser
