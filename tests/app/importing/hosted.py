"""OpenAI's files and fine-tuning as documented, replayed over HTTP: pages, 429 with retry-after, downloads that are cut."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "sk-hosted-0123456789"
RETRY_AFTER = "1.5"
BASE = "gpt-4o-mini-2024-07-18"
ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}]}).encode()
    + b"\n"
    for n in range(12)
)


def file(number: str, content: bytes, purpose: str = "fine-tune") -> dict[str, Any]:
    """A file object."""
    return {
        "id": number, "object": "file", "bytes": len(content), "created_at": 1_700_000_000, "filename": f"{number}.jsonl",
        "purpose": purpose, "status": "processed", "status_details": None, "expires_at": None,
    }  # fmt: skip


def job(number: str, **more: Any) -> dict[str, Any]:
    """A fine-tuning job object with every key of OpenAI's."""
    made = {
        "object": "fine_tuning.job", "id": number, "model": BASE, "created_at": 1_700_000_100, "finished_at": 1_700_000_900,
        "fine_tuned_model": f"ft:{BASE}:acme:support:{number[-4:]}", "organization_id": "org-x", "result_files": ["file-result"],
        "status": "succeeded", "validation_file": None, "training_file": "file-train", "error": None,
        "hyperparameters": {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.8}, "trained_tokens": 900,
        "integrations": [], "seed": 42, "estimated_finish": None, "metadata": {"team": "a"}, "user_provided_suffix": "support",
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.8}},
        },
    }  # fmt: skip
    return made | more


class Hosted:
    """The server.

    Attributes:
        asked: How often each path was asked, by path.
        busy: Paths answered once with 429 and retry-after.
        patience: By path, the seconds from such an answer to the next request.
        refused: Paths that the key may not read.
        cut: Files whose next download breaks off in its middle.
        limit: Rows a page at most, whatever is asked: small, so that lists have pages.
    """

    def __init__(self) -> None:
        self.contents = {"file-train": ROWS, "file-result": b"c3RlcA==", "file-gone": None}
        self.files = [
            file("file-train", ROWS),
            file("file-result", b"c3RlcA==", "fine-tune-results"),
            file("file-gone", b"x"),
        ]
        self.jobs = [
            job("ftjob-one1"),
            job("ftjob-two2", status="running", fine_tuned_model=None, finished_at=None),
            job("ftjob-thr3", method={"type": "reinforcement"}, fine_tuned_model="ft:o4-mini:acme::thr3"),
        ]
        self.events = {
            each["id"]: [
                {"object": "fine_tuning.job.event", "id": f"ftevent-{each['id']}-{n}", "created_at": 1_700_000_200 + n,
                 "level": "info", "message": f"Step {n}", "type": "metrics", "data": {"step": n, "train_loss": 1.0}}
                for n in reversed(range(7))
            ]
            for each in self.jobs
        }  # fmt: skip
        self.checkpoints = [
            {
                "object": "fine_tuning.job.checkpoint",
                "id": f"ftckpt_{n}",
                "created_at": 1,
                "step_number": n,
                "metrics": {},
            }
            for n in range(3)
        ]
        self.asked: Counter[str] = Counter()
        self.busy: set[str] = set()
        self.patience: dict[str, float] = {}
        self.refused: set[str] = set()
        self.cut: set[str] = set()
        self.limit = 3
        self.keys: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._server.server_close()

    def rows(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The list at a path."""
        if path == "/v1/files":
            return [row for row in self.files if row["purpose"] in query.get("purpose", [row["purpose"]])]
        if path == "/v1/fine_tuning/jobs":
            return self.jobs
        _, number, kind = path.rsplit("/", 2)
        return self.events[number] if kind == "events" else self.checkpoints

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hosted = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Silent."""

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                hosted.asked[parts.path] += 1
                if parts.path in hosted.patience and hosted.patience[parts.path] < 0:
                    hosted.patience[parts.path] += time.monotonic()
                hosted.keys.add(self.headers.get("authorization", ""))
                if self.headers.get("authorization") != f"Bearer {KEY}":
                    self._json(401, {"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}})
                elif parts.path in hosted.busy:
                    hosted.busy.discard(parts.path)
                    hosted.patience[parts.path] = -time.monotonic()
                    self._json(429, {"error": {"message": "Rate limit reached."}}, **{"retry-after": RETRY_AFTER})
                elif parts.path in hosted.refused:
                    self._json(403, {"error": {"message": "You have insufficient permissions for this operation."}})
                elif parts.path.endswith("/content"):
                    self._content(parts.path.split("/")[-2])
                else:
                    self._page(parts.path, parse_qs(parts.query))

            def _page(self, path: str, query: dict[str, list[str]]) -> None:
                rows, after = hosted.rows(path, query), query.get("after", [None])[0]
                start = next((at + 1 for at, row in enumerate(rows) if row["id"] == after), 0)
                some = rows[start : start + min(hosted.limit, int(query["limit"][0]))]
                more = start + len(some) < len(rows)
                self._json(200, {"object": "list", "data": some, "has_more": more})

            def _content(self, number: str) -> None:
                content = hosted.contents[number]
                if content is None:
                    self._json(400, {"error": {"message": "Not allowed to download files of this purpose."}})
                    return
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                if number in hosted.cut:
                    hosted.cut.discard(number)
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(content)

            def _json(self, status: int, body: dict[str, Any], **headers: str) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler
