"""The live engine under load: the queue's limit, and clients that hang up while their answer is computed."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import RateLimitError

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]


def idle(health: dict[str, Any]) -> bool:
    """Whether nothing is asked of the engine."""
    return health["computing"] == 0 == health["waiting"]


def fill(live: Any, streams: list[Any]) -> None:
    """Ask for streams, more than the queue takes: some end of themselves before it is full."""
    for seed in range(50):
        streams.append(live.ask(stream=True, max_tokens=50_000, temperature=1, seed=seed))  # noqa: PERF401 - kept when one is refused


def test_a_full_queue_answers_429_with_a_time_to_wait(live: Any) -> None:
    streams: list[Any] = []
    try:
        with pytest.raises(RateLimitError) as refused:
            fill(live, streams)
        assert (refused.value.code, refused.value.type) == ("queue_full", "rate_limit_error")
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    finally:
        for stream in streams:
            stream.close()
    live.until(idle)
    assert live.text(max_tokens=4)


def test_hanging_up_on_a_stream_stops_the_computing(live: Any) -> None:
    stream = live.ask(stream=True, max_tokens=50_000, temperature=1, seed=1)
    next(iter(stream))
    assert live.health()["computing"] == 1
    stream.close()
    live.until(idle)


def test_hanging_up_on_a_whole_answer_stops_the_computing(live: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 50_000, "seed": 1}
    content = json.dumps(body | {"llamaflow": {"base": live.base.source}}).encode()
    place = urlsplit(live.url)
    with socket.create_connection((place.hostname, place.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {live.client.api_key}\r\n"
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        live.until(lambda health: health["computing"] == 1)
    live.until(idle)
