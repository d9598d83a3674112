"""`make test-n8n`: a real n8n, pinned, into .llamaflow/n8n; then the tests that run the shipped workflows on it.

Node comes as a wheel, n8n by its npm from a lock without addresses; 1.7 GB, a few minutes once. Tests fetch nothing.
To move to another n8n: its version in tests/n8n/packages/package.json, then `python -m scripts.n8n --lock`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import clients

PINNED = clients.ROOT / "tests" / "n8n" / "packages"
FOLDER = clients.ROOT / ".llamaflow" / "n8n"
STAMP = FOLDER / "stamp"
PROGRAM = FOLDER / "npm" / "node_modules" / "n8n" / "bin" / "n8n"
SQLITE = FOLDER / "npm" / "node_modules" / "sqlite3" / "lib" / "sqlite3.js"
"""n8n's SQLite is native and would have to be compiled. With Postgres nothing asks it, but the AI Agent node loads it."""
DEPENDS_ON = (PINNED / "package.json", PINNED / "package-lock.json", clients.PINNED / "node.lock")


def node() -> Path:
    """The folder of Node."""
    return clients.node(FOLDER)


def install() -> None:
    """Make the folder anew, unless it is as it should be."""
    if STAMP.exists() and STAMP.read_text() == clients.digest(*DEPENDS_ON):
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    clients.environment(FOLDER, "node")
    print("installing n8n", flush=True)
    clients.packages(FOLDER, PINNED)
    SQLITE.write_text("module.exports = {};\n", encoding="utf-8")
    STAMP.write_text(clients.digest(*DEPENDS_ON))


def lock() -> None:
    """Resolve the packages anew, without any address."""
    if not (FOLDER / "node").exists():
        clients.environment(FOLDER, "node")
    (PINNED / "package-lock.json").unlink(missing_ok=True)
    npm = node().parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    words = ["install", "--package-lock-only", "--omit-lockfile-registry-resolved", "--ignore-scripts", "--no-audit"]
    path = f"{node()}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([node() / "node", npm, *words], cwd=PINNED, env=os.environ | {"PATH": path}, check=True)
    written = json.loads((PINNED / "package-lock.json").read_text(encoding="utf-8"))
    for package in written["packages"].values():
        package.pop("funding", None)
    (PINNED / "package-lock.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--lock"]:
        lock()
        sys.exit(0)
    install()
    argv = [sys.executable, str(clients.ROOT / "scripts" / "run_tests.py"), "--no-checks", "n8n", *sys.argv[1:]]
    sys.exit(subprocess.run(argv, cwd=clients.ROOT, check=False).returncode)
