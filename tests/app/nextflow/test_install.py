"""The installed Java parts: quiet when whole, repaired when not, and quick to start by their class archives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from app.nextflow import install
from app.nextflow.jars import read_lock
from app.settings import Settings, child_environment

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def tools() -> Path:
    folder = Settings().tools
    install.ensure(folder)
    return folder


def test_a_whole_installation_is_left_alone(tools: Path) -> None:
    said: list[str] = []
    before = install.ensure(tools).classes.stat().st_mtime_ns
    made = install.ensure(tools, said.append)
    assert said == []
    assert made.classes.stat().st_mtime_ns == before


def test_a_half_finished_installation_is_repaired(tools: Path, tmp_path: Path) -> None:
    mine = tmp_path / "tools"
    (mine / "jars").mkdir(parents=True)
    for jar in read_lock():
        if not (mine / "jars" / jar.name).exists():
            os.link(tools / "jars" / jar.name, mine / "jars" / jar.name)
    half = install._tools(mine, read_lock()).classes
    half.mkdir()
    (half / "base.jsa").write_bytes(b"half")
    said: list[str] = []
    made = install.ensure(mine, said.append)
    assert [line for line in said if "class archives written" in line]
    assert {path.name for path in half.iterdir()} == {"base.jsa", "nextflow.jsa", "s3proxy.jsa", "complete"}
    assert uses_archive(made)


def test_a_machine_without_ps_runs_traced_tasks(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = tmp_path / "bin"
    without.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if program.name != "ps" and not (without / program.name).is_symlink():
                (without / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(without))
    made = install.ensure(tools)
    (tmp_path / "main.nf").write_text(
        "process P { output: stdout\n script: 'sleep 0.1; echo done' }\nworkflow { P() | view }\n"
    )
    argv = [*made.nextflow_argv, "run", "main.nf", "-ansi-log", "false", "-with-trace", "trace.tsv"]
    done = subprocess.run(
        argv, cwd=tmp_path, env=child_environment(made.env), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "COMPLETED" in (tmp_path / "trace.tsv").read_text()


def test_the_stand_in_lists_every_process_and_its_parent(tmp_path: Path) -> None:
    said = subprocess.run(
        [str(install.stand_in(tmp_path)), "-e", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True, check=True
    )
    assert f"{os.getpid()} {os.getppid()}" in said.stdout.splitlines()


def uses_archive(made: install.Tools) -> bool:
    """Whether the JVM really takes the classes from the archive: it would do without it in silence."""
    argv = [word for word in made.nextflow_argv if not word.startswith("-Xlog")]
    argv.insert(1, "-Xlog:class+load:stderr")
    done = subprocess.run([*argv, "-v"], env=child_environment(made.env), capture_output=True, text=True, check=True)
    assert "24.10.0" in done.stdout
    return "nextflow.cli.Launcher source: shared objects file (top)" in done.stderr
