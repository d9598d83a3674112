"""Compiles requirements.lock and requirements-model.lock: pinned, with hashes, for every platform, without any address.

A lock that names a host breaks for those behind a mirror; the hashes tie the content, wherever it comes from.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("embedded", "train", "demo", "dev")
COMMON = [
    "--universal",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-header",
    "--no-annotate",
    "--quiet",
]


def uv() -> str:
    """The uv that scripts/bootstrap.py put into the project's folder."""
    found = ROOT / ".tools" / "uv" / "bin" / "uv"
    if not found.exists():
        raise SystemExit("uv is not there: run `make setup` first")
    return str(found)


def main() -> None:
    """Write both files."""
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    command = [uv(), "pip", "compile", *COMMON]
    subprocess.run(
        [*command, "--python-version", "3.11", *extras, "pyproject.toml", "-o", "requirements.lock"],
        cwd=ROOT,
        check=True,
    )
    subprocess.run(
        [*command, "--no-deps", "requirements-model.in", "-o", "requirements-model.lock"], cwd=ROOT, check=True
    )


if __name__ == "__main__":
    main()
