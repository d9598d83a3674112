"""An engine that says the last message back, whole or a word at a time, in the shapes of the real one."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class EchoEngine:
    """Listens on a free loopback port until closed.

    Attributes:
        asked: The bodies that came.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Silent."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                engine.asked.append(body)
                frames = _streamed(body) if body.get("stream") else [json.dumps(_whole(body)).encode()]
                kind = "text/event-stream" if body.get("stream") else "application/json"
                self.send_response(200)
                self.send_header("content-type", kind)
                self.end_headers()
                for frame in frames:
                    self.wfile.write(frame)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._server.server_close()


def _text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"], "system_fingerprint": "fp_1"}


def _usage(body: dict[str, Any]) -> dict[str, int]:
    words = len(_text(body).split())
    return {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words}


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": _text(body), "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
        for index in range(body.get("n") or 1)
    ]
    return _head(body, "chat.completion") | {"choices": choices, "usage": _usage(body)}


def _streamed(body: dict[str, Any]) -> list[bytes]:
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": "", "refusal": None}, None)]
    deltas += [({"content": piece}, None) for piece in _text(body).split(" ")]
    deltas.append(({}, "stop"))
    head = _head(body, "chat.completion.chunk")
    frames: list[Any] = [
        head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        frames.append(head | {"choices": [], "usage": _usage(body)})
    return [b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames] + [b"data: [DONE]\n\n"]
