"""The Java parts by content: what is there and whole stays, anything else is fetched from the mirror the user named."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.nextflow import jars
from app.nextflow.jars import InstallError, Jar

pytestmark = pytest.mark.unit

CONTENT = {"one-1.0.jar": b"first jar" * 1000, "two-2.0-extra.jar": b"second jar" * 1000}


def jar(name: str, coordinate: str) -> Jar:
    return Jar("nextflow", coordinate, hashlib.sha256(CONTENT[name]).hexdigest(), len(CONTENT[name]))


LOCK = [jar("one-1.0.jar", "org.example:one:1.0"), jar("two-2.0-extra.jar", "org.example:two:2.0:extra")]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Maven mirror on loopback, named in jgo's own settings; the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        """Serves the jars by name."""

        def do_GET(self) -> None:
            asked.append(self.path)
            body = CONTENT.get(self.path.rpartition("/")[2])
            self.send_response(200 if body else 404)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "jgo.conf").write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}/maven\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(tmp_path / "jgo.conf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()


def test_every_missing_jar_is_fetched_from_the_named_mirror(tmp_path: Path, mirror: list[str]) -> None:
    jars.fetch(tmp_path / "jars", jars.missing(tmp_path / "jars", LOCK), lambda _: None)
    assert {path.name: path.read_bytes() for path in (tmp_path / "jars").iterdir()} == CONTENT
    assert "/maven/org/example/two/2.0/two-2.0-extra.jar" in mirror


def test_a_truncated_jar_is_noticed_and_fetched_again(tmp_path: Path, mirror: list[str]) -> None:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "one-1.0.jar").write_bytes(CONTENT["one-1.0.jar"][:-1])
    assert jars.missing(tmp_path, LOCK) == [LOCK[0]]
    jars.fetch(tmp_path, jars.missing(tmp_path, LOCK), lambda _: None)
    assert jars.missing(tmp_path, LOCK) == []
    assert not any("two" in path for path in mirror)


def test_a_jar_of_the_right_size_and_wrong_content_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "one-1.0.jar").write_bytes(b"x" * LOCK[0].size)
    assert jars.missing(tmp_path, LOCK[:1]) == LOCK[:1]


def test_a_mirror_that_serves_something_else_is_refused(tmp_path: Path, mirror: list[str]) -> None:
    other = Jar("nextflow", "org.example:one:1.0", "0" * 64, LOCK[0].size)
    with pytest.raises(InstallError, match=r"org\.example:one:1\.0 .* not the file of the lock"):
        jars.fetch(tmp_path / "jars", [other], lambda _: None, tries=1)
    assert list((tmp_path / "jars").iterdir()) == []
    assert mirror


def test_a_jar_the_mirror_lacks_is_named_with_the_way_out(tmp_path: Path, mirror: list[str]) -> None:
    lacking = Jar("nextflow", "org.example:three:3.0", "0" * 64, 1)
    with pytest.raises(InstallError, match=r"org\.example:three:3\.0 .*jgo\.conf.*what is there is kept"):
        jars.fetch(tmp_path, [lacking], lambda _: None, tries=1)
    assert mirror


def test_what_a_killed_download_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".download-abc").mkdir()
    (tmp_path / ".download-abc" / "part").write_bytes(b"half")
    (tmp_path / "one-1.0.jar").write_bytes(b"kept")
    jars.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one-1.0.jar"]


def test_the_committed_lock_names_each_file_once_and_no_host() -> None:
    lock = jars.read_lock()
    by_name: dict[str, set[str]] = {}
    for each in lock:
        by_name.setdefault(each.name, set()).add(each.sha256)
    assert {"nextflow-24.10.0.jar", "s3proxy-3.2.0.jar"} <= by_name.keys()
    assert all(len(hashes) == 1 for hashes in by_name.values())
    assert "://" not in jars.LOCK.read_text()
