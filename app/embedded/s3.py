"""The embedded S3 server (S3Proxy): signed requests only, on 127.0.0.1, objects are files below `<state>/objects/`.

    server = start_s3(state, install.ensure(settings.tools))
    server.stop()

Endpoint and credentials are made once and kept in `<state>/s3.env` (0600), which a shell can read too. May touch only the
state folder.
"""

from __future__ import annotations

import http.client
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from app.embedded import folder
from app.embedded.part import Part, PartError, end_left_over, start
from app.nextflow.install import Tools, s3_properties
from app.settings import child_environment

BUCKET = "llamaflow-data"
REGION = "us-east-1"
START_SECONDS = 60.0
HALF_WRITTEN = re.compile(r"-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
WHOLE_MARK = "user.user.content-md5"


@dataclass
class S3Server:
    """A running server.

    Attributes:
        endpoint: Such as http://127.0.0.1:39000.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    part: Part

    @property
    def alive(self) -> bool:
        """Whether the server process runs."""
        return self.part.alive

    def stop(self) -> None:
        """End it."""
        self.part.stop()

    def kill(self) -> None:
        """kill -9, as a fault."""
        self.part.process.kill()
        self.part.process.wait()


def start_s3(state_dir: Path, tools: Tools) -> S3Server:
    """Start the server of a state folder; returns when it answers. The bucket `llamaflow-data` is there.

    Args:
        state_dir: The state folder.
        tools: Of `app.nextflow.install.ensure`.
    Raises:
        PartError: It did not start.
    """
    server = launch_s3(state_dir, tools)
    wait_for_s3(server)
    return server


def launch_s3(state_dir: Path, tools: Tools, port: int | None = None) -> S3Server:
    """Start the server without waiting for it; on this port, or the one it had, if that is free, else a free one."""
    state = folder.prepare(state_dir)
    end_left_over(state / "pids" / "s3.json", signal.SIGTERM)
    objects = state / "objects"
    objects.mkdir(mode=0o700, exist_ok=True)
    (objects / BUCKET).mkdir(mode=0o700, exist_ok=True)
    sweep(objects)
    kept = read_env(state)
    kept_port = urlsplit(kept.get("AWS_ENDPOINT_URL_S3", "")).port
    port = port or folder.free_port(kept=kept_port)
    access = kept.get("AWS_ACCESS_KEY_ID") or "LF" + secrets.token_hex(9).upper()
    secret = kept.get("AWS_SECRET_ACCESS_KEY") or secrets.token_urlsafe(30)
    properties = state / "s3proxy.properties"
    folder.write_secret(properties, s3_properties(port, access, secret, objects))
    endpoint = f"http://{folder.LOOPBACK}:{port}"
    _write_env(state, endpoint, access, secret)
    argv = [*tools.s3proxy_argv, "--properties", str(properties)]
    return S3Server(endpoint, access, secret, start("s3", argv, state=state, env=child_environment({})))


def wait_for_s3(server: S3Server) -> None:
    """Wait until the server answers.

    Raises:
        PartError: It ended, or does not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _answers(server.endpoint):
        if not server.alive or time.monotonic() > deadline:
            server.stop()
            raise PartError(f"The S3 server did not start; its log is {server.part.log}:\n{server.part.tail()}")
        time.sleep(0.05)


def read_env(state: Path) -> dict[str, str]:
    """The NAME=value lines of `<state>/s3.env`; empty if there is none yet."""
    try:
        lines = (state / "s3.env").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _write_env(state: Path, endpoint: str, access: str, secret: str) -> None:
    text = (
        "# The embedded S3 server. In a shell: set -a; . s3.env; set +a\n"
        f"AWS_ACCESS_KEY_ID={access}\n"
        f"AWS_SECRET_ACCESS_KEY={secret}\n"
        f"AWS_ENDPOINT_URL_S3={endpoint}\n"
        f"AWS_REGION={REGION}\n"
    )
    if not (state / "s3.env").exists() or (state / "s3.env").read_text(encoding="utf-8") != text:
        folder.write_secret(state / "s3.env", text)


def _answers(endpoint: str) -> bool:
    """Whether it refuses an unsigned request, as it must."""
    connection = http.client.HTTPConnection(str(urlsplit(endpoint).netloc), timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 403
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def sweep(objects: Path) -> int:
    """Remove what a killed server was writing: named `<key>-<uuid4>` and without the mark that whole objects carry.

    Where the file system keeps no such marks, nothing is removed.

    Returns:
        How many were removed.
    """
    if sys.platform != "linux" or not _keeps_marks(objects):
        return 0
    found = [path for path in objects.rglob("*") if HALF_WRITTEN.search(path.name) and path.is_file()]
    left = [path for path in found if WHOLE_MARK not in os.listxattr(path)]
    for path in left:
        path.unlink()
    return len(left)


def _keeps_marks(objects: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=objects, prefix=".probe-") as probe:
        try:
            os.setxattr(probe.name, WHOLE_MARK, b"1")
        except OSError:
            return False
    return True
