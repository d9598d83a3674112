"""Callbacks: from a job's end, as its row tells it, to the receiver."""

from __future__ import annotations

import json
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psycopg

from app.embedded import part
from benchmarks.load import percentile
from benchmarks.place import KEY, MODEL, Place

GOAL_P95_MS = 1000


class Receiver:
    """Notes when which job's callback came. The machine's clock is the database's here."""

    def __init__(self) -> None:
        self.came: dict[str, float] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                at = time.time()
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.came.setdefault(body["data"]["id"], at)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_address[1]}"


def measure(place: Place, receiver: Receiver, *, jobs: int) -> dict[str, Any]:
    """Jobs that end by being cancelled while they wait, ten a second; their callbacks by a worker beside."""
    worker = part.start("worker", [part.CLI, "worker"], state=place.settings.state_dir, env=place.environment())
    try:
        with place.serving() as api:
            http = httpx.Client(
                base_url=f"http://127.0.0.1:{api.port}/v1/fine_tuning", trust_env=False, timeout=30,
                headers={"authorization": f"Bearer {KEY}"},
            )  # fmt: skip
            uploaded = api.upload()
            _end(http, receiver, uploaded, 0)
            while not receiver.came:
                time.sleep(0.05)
            ended = [_end(http, receiver, uploaded, number) for number in range(1, jobs + 1)]
            deadline = time.monotonic() + 60
            while not receiver.came.keys() >= set(ended) and time.monotonic() < deadline:
                time.sleep(0.05)
        with psycopg.connect(place.url) as db:
            rows = db.execute("select id, extract(epoch from finished_at)::float8 from jobs").fetchall()
    finally:
        worker.stop()
        receiver.server.shutdown()
    times = sorted(receiver.came[job] - at for job, at in rows if job in receiver.came and job in ended)
    return {
        "end of a job to its callback": {
            "jobs": jobs, "came": len(times), "p50_ms": round(statistics.median(times) * 1000, 1),
            "p95_ms": round(percentile(times, 95) * 1000, 1), "goal_p95_ms": GOAL_P95_MS,
        }
    }  # fmt: skip


def _end(http: httpx.Client, receiver: Receiver, uploaded: str, number: int) -> str:
    """Make a job with a callback and cancel it; its id."""
    body = {"model": MODEL, "training_file": uploaded, "seed": number, "callback_url": f"http://{receiver.address}/"}
    job_id = str(http.post("/jobs", json=body).raise_for_status().json()["id"])
    http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    time.sleep(0.1)
    return job_id
