"""The live engine goes on from a text as it stands: written out with its special tokens, a conversation is the conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

RENDERED = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_written_out_is_answered_as_one(live: Any, adapter: Path) -> None:
    source = {
        "id": adapter.name,
        "uri": f"{adapter.as_uri()}/adapter/",
        "manifest_uri": f"{adapter.as_uri()}/manifest.json",
    }
    target = {"base": live.base.source, "adapter": source, "raw": True}

    def ask(text: str) -> Any:
        return live.client.chat.completions.create(
            model="shown", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=64,
            extra_body={"llamaflow": target},
        )  # fmt: skip

    chat, raw, bare = live.ask(adapter), ask(RENDERED), ask("Hello")
    assert raw.choices[0].message.content == chat.choices[0].message.content
    assert raw.usage == chat.usage
    assert bare.usage.prompt_tokens == len("Hello")
