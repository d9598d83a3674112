"""A server that says what vLLM's documentation and sources say it says: adapters loaded at run time, chats whole and streamed."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Vllm:
    """One server with one base.

    Attributes:
        asked: Every request: path and body.
        loaded: Adapters by name, with the path each was loaded from.
        refuse: What chats are answered with instead: status and body.
    """

    def __init__(self, base: str, token: str = "vllm-token") -> None:
        self.base, self.token, self.gone = base, token, False
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.loaded: dict[str, str] = {}
        self.refuse: tuple[int, dict[str, Any]] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.get(self)

            def do_POST(self) -> None:
                outer.post(self)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections that are open are answered no more."""
        self.gone = True
        self._server.shutdown()
        self._server.server_close()

    def chats(self) -> list[dict[str, Any]]:
        """The chats asked for."""
        return [body for path, body in self.asked if path == "/v1/chat/completions"]

    def get(self, call: BaseHTTPRequestHandler) -> None:
        """`/health`, `/v1/models`."""
        if self._is_gone(call):
            return None
        if call.path == "/health":
            return send(call, 200, b"")
        own = {"id": "served", "object": "model", "owned_by": "vllm", "root": self.base, "parent": None}
        more = [
            {"id": name, "object": "model", "root": path, "parent": self.base} for name, path in self.loaded.items()
        ]
        return send(call, 200, {"object": "list", "data": [own, *more]})

    def post(self, call: BaseHTTPRequestHandler) -> None:
        """Adapters and chats."""
        if self._is_gone(call):
            return None
        body = json.loads(call.rfile.read(int(call.headers["content-length"])))
        self.asked.append((call.path, body))
        if call.headers.get("authorization") != f"Bearer {self.token}":
            return send(call, 401, {"error": "Unauthorized"})
        name = body.get("lora_name")
        if call.path == "/v1/load_lora_adapter":
            if name in self.loaded:
                return send(
                    call, 400, error(f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput", 400)
                )
            if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
                return send(call, 404, error(f"Loading lora {name} failed: No adapter found", "NotFoundError", 404))
            self.loaded[name] = body["lora_path"]
            return send(call, 200, f"Success: LoRA adapter '{name}' added successfully.".encode())
        if call.path == "/v1/unload_lora_adapter":
            self.loaded.pop(name, None)
            return send(call, 200, f"Success: LoRA adapter '{name}' removed successfully.".encode())
        if self.refuse is not None:
            return send(call, *self.refuse)
        if body["model"] not in {"served", *self.loaded}:
            return send(call, 404, error(f"The model `{body['model']}` does not exist.", "NotFoundError", 404))
        return self._stream(call, body) if body.get("stream") else send(call, 200, completion(body["model"]))

    def _is_gone(self, call: BaseHTTPRequestHandler) -> bool:
        call.close_connection = self.gone
        return self.gone

    def _stream(self, call: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        call.send_response(200)
        call.send_header("content-type", "text/event-stream; charset=utf-8")
        call.send_header("connection", "close")
        call.end_headers()
        for delta, reason in (({"role": "assistant", "content": ""}, None), ({"content": "Olá"}, None), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            chunk = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
            }
            call.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        call.wfile.write(b"data: [DONE]\n\n")
        call.close_connection = True


def error(message: str, kind: str, code: int) -> dict[str, Any]:
    """vLLM's error, as it has been since 0.10."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def completion(model: str) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": "Olá", "refusal": None, "tool_calls": [], "reasoning_content": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    usage = {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage,
        "prompt_logprobs": None,
    }  # fmt: skip


def send(call: BaseHTTPRequestHandler, status: int, body: bytes | dict[str, Any]) -> None:
    """One answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    call.send_response(status)
    call.send_header("content-length", str(len(content)))
    call.send_header("content-type", "application/json" if isinstance(body, dict) else "text/plain")
    call.end_headers()
    call.wfile.write(content)
