"""docs/openai.md: its Python is run as it stands, its commands exist."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import main
from scripts.make_docs import DOCS
from tests.conformance.conftest import Place
from tests.conformance.life import ROWS
from tests.conformance.machine import HERE, outside

PAGE = (DOCS / "openai.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.unit
def test_langchains_example_is_the_one_that_is_run() -> None:
    (shown,) = re.findall(r"^```python chain.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown == (HERE / "chain.py").read_text()


@pytest.mark.unit
def test_the_commands_and_options_it_names_are_there() -> None:
    lines = re.findall(r"^llamaflow ([a-z-]+)(?: ([a-z]+)\b)?(.*)$", PAGE, re.MULTILINE)
    assert len(lines) > 5
    for command, second, rest in lines:
        words = [command, *([second] if command == "models" else [])]
        shown = CliRunner().invoke(main, [*words, "--help"])
        assert shown.exit_code == 0, words
        options = re.findall(r"(?:^| )(--[a-z-]+)", rest.partition("#")[0])
        assert [option for option in options if option not in shown.output] == []


@pytest.mark.pipeline
async def test_its_python_runs_as_it_stands(place: Place, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    assert len(PYTHON) == 2
    said = []
    for code in PYTHON:
        env = outside() | {"LLAMAFLOW_URL": place.url, "LLAMAFLOW_API_KEY": place.key, "PYTHONWARNINGS": "ignore"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, cwd=tmp_path, env=env | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, problems = await process.communicate()
        assert process.returncode == 0, problems.decode()
        said.append(out.decode().splitlines())
    assert said[0][0].startswith("ftjob-")
    assert any(line.startswith("Created fine-tuning job") for line in said[0])
    assert said[1] == ["Where is my parcel?", "Where is my parcel?", "Dear customer,"]
