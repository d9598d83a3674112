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
TOKEN = "hf_that-opens-it"


class Hub(BaseHTTPRequestHandler):
    """Repositories at one commit, by name below `org/`; `closed` shows its list to everyone and its files to TOKEN only."""

    repositories: dict[str, Path]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        name = parts[3] if parts[:3] == ["api", "models", "org"] else parts[1] if len(parts) > 1 else ""
        folder = self.repositories.get(name)
        if name == "gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name == "broken":
            self.answer(500, b"{}")
        elif folder is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif parts[0] != "api":
            self.file(folder / parts[4], closed=name == "closed") if parts[2:4] == [
                "resolve",
                COMMIT,
            ] else self.absent()
        elif parts[4:] == ["tree", COMMIT]:
            rows = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in folder.iterdir()
            ]
            self.answer(200, json.dumps(rows).encode())
        else:
            self.info(name, folder) if len(parts) == 4 or parts[5] in ("main", COMMIT) else self.absent()

    do_HEAD = do_GET  # noqa: N815  the name http.server asks for

    def file(self, path: Path, *, closed: bool) -> None:
        if closed and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.is_file():
            content = path.read_bytes()
            self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def absent(self) -> None:
        self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def info(self, name: str, folder: Path) -> None:
        files = [{"rfilename": path.name} for path in folder.iterdir()]
        more = [{"rfilename": name} for name in ("pytorch_model.bin", "onnx/model.onnx", "run.py")]
        told = {"id": f"org/{name}", "sha": COMMIT, "gated": "auto" if name == "closed" else False}
        self.answer(200, json.dumps(told | {"siblings": [*files, *more]}).encode())

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
    root = tmp_path_factory.mktemp("hub")
    Hub.repositories = {
        name: model_folder(root / name) for name in ("model", "closed", "pickled", "strange", "encoder")
    }
    (Hub.repositories["pickled"] / "model.safetensors").unlink()
    strange = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "run.Own"}}
    (Hub.repositories["strange"] / "config.json").write_text(json.dumps(strange))
    (Hub.repositories["encoder"] / "config.json").write_text('{"model_type": "t5"}')
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
        ("org/closed", None, 74, "model_gated", "accept its licence"),
        ("org/pickled", None, 83, "unsupported_model", "only pickled weights (pytorch_model.bin)"),
        ("org/strange", None, 83, "unsupported_model", "brings code of its own, which is never run"),
        ("org/encoder", None, 83, "unsupported_model", "'t5' is no causal language model"),
        ("org/broken", None, 79, "model_unavailable", "could not be fetched"),
    ],
)
def test_what_is_refused_is_said_before_its_weights_are_fetched(
    hub: str, tmp_path: Path, location: str, revision: str | None, status: int, code: str, said: str
) -> None:
    before = len(Hub.asked)
    ended, error = fetch(tmp_path, hub, location, revision)
    assert (ended, error["code"], error["param"]) == (status, code, "model")
    assert said in error["message"]
    assert not [path for path in Hub.asked[before:] if path.endswith(".safetensors")]


def test_a_token_opens_a_gated_model_and_is_told_to_nobody(hub: str, tmp_path: Path) -> None:
    status, base = fetch(tmp_path, hub, "org/closed", HF_TOKEN=TOKEN)
    assert (status, base["revision"]) == (0, COMMIT), base["stderr"]
    left = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert (left, TOKEN in base["stderr"]) == ([], False)


def test_a_hub_that_does_not_answer_is_tried_again_by_nextflow(tmp_path: Path) -> None:
    status, error = fetch(tmp_path, "http://127.0.0.1:9", "org/model")
    assert (status, error["code"]) == (79, "model_unavailable")
