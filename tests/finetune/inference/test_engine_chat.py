"""The live engine, driven by the official client with strict validation: shapes, streams, stops, seeds, adapters."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AuthenticationError, BadRequestError
from openai.types.chat import ChatCompletion

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

ANSWER = "Ça va? 日本語 😀 done"


def pieces(stream: Any) -> tuple[dict[int, list[str]], dict[int, str], Any]:
    """A stream's texts and reasons by choice, and its usage."""
    texts, reasons, usage = defaultdict(list), {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index].append(choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return dict(texts), reasons, usage


def test_a_completion_has_the_official_shape(live: Any, adapter: Path) -> None:
    answer = live.ask(adapter)
    assert isinstance(answer, ChatCompletion)
    assert (answer.model, answer.choices[0].message.role, answer.choices[0].finish_reason) == (
        "shown",
        "assistant",
        "stop",
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint.startswith("fp_")


@pytest.mark.parametrize("tuned", [True, False])
def test_the_pieces_of_a_stream_are_the_whole_answer(live: Any, adapter: Path, tuned: bool) -> None:
    chosen = adapter if tuned else None
    whole = live.ask(chosen)
    texts, reasons, usage = pieces(live.ask(chosen, stream=True, stream_options={"include_usage": True}))
    assert "".join(texts[0]) == whole.choices[0].message.content
    assert reasons == {0: whole.choices[0].finish_reason}
    assert usage == whole.usage


def test_characters_of_several_tokens_arrive_whole(live: Any, adapter: Path) -> None:
    texts, _, usage = pieces(live.ask(adapter, stream=True, stream_options={"include_usage": True}))
    assert "".join(texts[0]) == ANSWER
    assert not [piece for piece in texts[0] if "\ufffd" in piece]
    assert usage.completion_tokens > len(ANSWER), "the tokenizer splits characters, else this shows nothing"


@pytest.mark.parametrize(
    ("stop", "left"), [("日本", "Ça va? "), (["nowhere", "😀 d"], "Ça va? 日本語 "), ("done", "Ça va? 日本語 😀 ")]
)
def test_nothing_of_a_stop_string_is_shown(live: Any, adapter: Path, stop: Any, left: str) -> None:
    texts, reasons, _ = pieces(live.ask(adapter, stop=stop, stream=True))
    assert ("".join(texts[0]), reasons[0]) == (left, "stop")
    assert live.text(adapter, stop=stop) == left


def test_an_answer_ends_at_max_tokens(live: Any, adapter: Path) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = live.ask(adapter, **{"max_tokens": None, name: 6})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 6)
        assert answer.choices[0].message.content == "Ça va"


def test_several_answers_come_side_by_side(live: Any) -> None:
    whole = live.ask(n=3, temperature=1, seed=5, max_tokens=12)
    texts, reasons, _ = pieces(live.ask(n=3, temperature=1, seed=5, max_tokens=12, stream=True))
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 3
    assert {index: "".join(parts) for index, parts in texts.items()} == {
        c.index: c.message.content for c in whole.choices
    }
    assert set(reasons) == {0, 1, 2}


def test_a_seed_repeats_its_answer_and_another_does_not(live: Any) -> None:
    first, again, other, free = (live.text(temperature=1, seed=seed) for seed in (7, 7, 8, None))
    assert first == again
    assert len({first, other, free}) == 3


def test_top_p_of_almost_nothing_is_greedy(live: Any) -> None:
    assert live.text(temperature=1, top_p=0, seed=3) == live.text(temperature=0)


def test_an_adapter_changes_the_answer_and_leaves_the_base_alone(
    live: Any, adapter: Path, second_adapter: Path
) -> None:
    before = live.text(max_tokens=48)
    assert live.text(adapter) == ANSWER
    assert live.text(second_adapter) == "Quite another answer."
    assert live.text(max_tokens=48) == before != ANSWER
    assert len(live.health()["adapters"]) == 2


def test_requests_at_once_do_not_change_each_other(live: Any, adapter: Path, second_adapter: Path) -> None:
    alone = live.text(max_tokens=300)
    answers: dict[str, str] = {}
    chosen: dict[str, Path | None] = {"base": None, "first": adapter, "second": second_adapter}
    asking = [
        threading.Thread(target=lambda name=name: answers.update({name: live.text(chosen[name], max_tokens=300)}))
        for name in chosen
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == {"base": alone, "first": ANSWER, "second": "Quite another answer."}


def test_another_base_takes_the_place_of_the_first(live: Any, other_base: Any) -> None:
    mine = live.text()
    assert live.text(base=other_base) != mine
    assert live.health()["loaded_base"]["revision"] == other_base.revision
    assert live.text() == mine


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"n": 9}, "n", "invalid_value"),
        ({"question": "x" * 70_000}, "messages", "context_length_exceeded"),
    ],
)
def test_what_cannot_be_done_is_named(live: Any, options: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        live.ask(**options)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_a_wrong_token_and_an_unknown_base_are_refused(live: Any) -> None:
    with pytest.raises(AuthenticationError):
        live.client.with_options(api_key="wrong").chat.completions.create(model="m", messages=[])
    gone = {"base": live.base.source | {"location": "/nowhere"}}
    with pytest.raises(APIStatusError) as refused:
        live.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "a"}], extra_body={"llamaflow": gone}
        )
    assert (refused.value.status_code, refused.value.code) == (404, "model_not_found")


def test_unload_frees_the_memory_and_the_next_request_loads_again(live: Any) -> None:
    import httpx

    before = live.text()
    answer = httpx.post(
        f"{live.url}/unload",
        headers={"authorization": f"Bearer {live.client.api_key}"},
        trust_env=False,
        timeout=60,
    )
    assert answer.json() == {"status": "unloaded"}
    assert live.health()["loaded_base"] is None
    assert live.text() == before
