"""The house rules that no linter knows: one door each to the OS, the environment and the commit; app starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
STARTERS = {"subprocess", "multiprocessing", "pty"}
OS_STARTERS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}


def sources(package: str) -> Iterator[tuple[str, ast.Module]]:
    """(path below the root, syntax tree) of every file of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def starts_processes(tree: ast.Module) -> bool:
    """Whether a file imports a module that starts processes or calls such a function of `os` or `asyncio`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in STARTERS for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in STARTERS:
            return True
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and (node.attr in OS_STARTERS or node.attr.startswith(("exec", "spawn"))):
                return True
            if node.value.id == "asyncio" and node.attr.startswith("create_subprocess"):
                return True
    return False


def reads_environment(tree: ast.Module) -> bool:
    """Whether a file touches os.environ or os.getenv."""
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in {"environ", "getenv", "putenv", "environb"}
        for node in ast.walk(tree)
    )


def commits(tree: ast.Module) -> bool:
    """Whether a file commits or begins a transaction."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"commit", "begin"}
        and not node.args
        for node in ast.walk(tree)
    )


def test_only_the_process_doors_start_processes() -> None:
    allowed = {"app/nextflow/process.py", "app/nextflow/install.py", "app/nextflow/shim.py"}
    found = {path for path, tree in sources("app") if starts_processes(tree)}
    assert found, "the scan found no door at all: it is broken"
    assert {path for path in found if path not in allowed and not path.startswith("app/embedded/")} == set()


def test_only_settings_reads_the_environment() -> None:
    assert {path for path, tree in sources("app") if reads_environment(tree)} == {"app/settings.py"}


def test_only_one_file_of_the_trainer_reads_the_environment() -> None:
    assert {path for path, tree in sources("finetune") if reads_environment(tree)} == {"finetune/environment.py"}


def test_only_the_database_door_commits() -> None:
    assert {path for path, tree in sources("app") if commits(tree)} == {"app/db.py"}


def test_the_service_and_the_light_steps_start_without_torch() -> None:
    modules = [
        "app.main", "app.cli", "app.worker.__main__", "finetune.__main__", "finetune.config", "finetune.exit_codes",
        "finetune.progress", "finetune.plan", "finetune.download", "finetune.model.fetch", "finetune.data.prepare", "finetune.export.upload",
    ]  # fmt: skip
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


LONG = {"app/models.py"}  # one page of tables, which are read side by side


def test_no_file_is_too_long() -> None:
    long = {
        path: lines
        for package in ("app", "finetune", "pipeline", "scripts", "tests", "benchmarks")
        for path in map(str, (ROOT / package).rglob("*.py"))
        if (lines := len(Path(path).read_text(encoding="utf-8").splitlines())) > 400
        and str(Path(path).relative_to(ROOT)) not in LONG
    }
    assert long == {}


def test_every_room_says_what_it_is_for() -> None:
    silent = [path for package in ("app", "finetune") for path, tree in sources(package) if not ast.get_docstring(tree)]
    assert silent == []


def test_nothing_waits_in_a_way_that_may_swallow_a_cancellation() -> None:
    """Before Python 3.12 asyncio.wait_for returns, and loses the cancellation, when what it waits for ends at the same moment."""
    waits = [
        path for package in ("app", "finetune") for path, tree in sources(package) if "wait_for" in _attributes(tree)
    ]
    assert waits == [], "use `async with asyncio.timeout(…)`"


def _attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
