"""Bases from the hub: the real huggingface_hub against a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytestmark = pytest.mark.unit

COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    """`org/model` at one commit with the files of `folder`; `org/gated` is gated."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.path.startswith("/api/models/org/gated"):
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif parts[:6] == ["api", "models", "org", "model", "tree", COMMIT]:
            rows = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in self.folder.iterdir()
            ]
            self.answer(200, json.dumps(rows).encode())
        elif parts[:4] == ["api", "models", "org", "model"]:
            known = len(parts) == 4 or parts[5] in ("main", COMMIT)
            self.info() if known else self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif parts[:4] == ["org", "model", "resolve", COMMIT] and (self.folder / parts[4]).is_file():
            content = (self.folder / parts[4]).read_bytes()
            self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815  the name http.server asks for

    def info(self) -> None:
        names = [*(path.name for path in self.folder.iterdir()), "pytorch_model.bin", "onnx/model.onnx", "run.py"]
        self.answer(
            200,
            json.dumps(
                {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            ).encode(),
        )

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[..., Path]) -> Iterator[str]:
    Hub.folder = model_folder(tmp_path_factory.mktemp("hub"))
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(
    folder: Path, hub: str, location: str, revision: str | None = None, **more: str
) -> tuple[int, dict[str, Any]]:
    """Run the step as Nextflow does; its status, and base.json or error.json."""
    out = folder / "out"
    model = {"id": location, "kind": "hub", "location": location, "revision": revision}
    folder.mkdir(exist_ok=True)
    (folder / "fetch.json").write_text(json.dumps({"model": model, "cache_dir": str(folder / "cache")}))
    command = [sys.executable, "-m", "finetune", "fetch", "--job", str(folder / "fetch.json"), "--out", str(out)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "hf"),
        **more,
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    left = out / ("base.json" if ended.returncode == 0 else "error.json")
    return ended.returncode, json.loads(left.read_text()) | {"stderr": ended.stderr}


def test_a_branch_becomes_a_commit_and_only_its_own_files_are_fetched(hub: str, tmp_path: Path) -> None:
    status, base = fetch(tmp_path, hub, "org/model")
    assert (status, base["revision"], base["parameters"]) == (0, COMMIT, 6), base["stderr"]
    place = (tmp_path / "out" / "base").resolve()
    assert place == tmp_path / "cache" / "models" / COMMIT
    assert sorted(path.name for path in place.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]


def test_a_commit_in_the_cache_asks_nobody(hub: str, tmp_path: Path) -> None:
    assert fetch(tmp_path, hub, "org/model")[0] == 0
    before = len(Hub.asked)
    assert fetch(tmp_path, hub, "org/model", COMMIT)[0] == 0
    assert fetch(tmp_path, hub, "org/model", HF_HUB_OFFLINE="1")[0] == 0
    assert len(Hub.asked) == before


@pytest.mark.parametrize(
    ("location", "revision", "status", "code", "said"),
    [
        ("org/gated", None, 74, "model_gated", "accept its licence"),
        ("org/missing", None, 73, "model_not_found", "no model org/missing"),
        ("org/model", "no-branch", 73, "model_not_found", "no revision 'no-branch'"),
    ],
)
def test_what_the_hub_refuses_is_said(
    hub: str, tmp_path: Path, location: str, revision: str | None, status: int, code: str, said: str
) -> None:
    ended, error = fetch(tmp_path, hub, location, revision)
    assert (ended, error["code"], error["param"]) == (status, code, "model")
    assert said in error["message"]


def test_a_hub_that_does_not_answer_is_tried_again_by_nextflow(tmp_path: Path) -> None:
    status, error = fetch(tmp_path, "http://127.0.0.1:9", "org/model")
    assert (status, error["code"]) == (79, "model_unavailable")
