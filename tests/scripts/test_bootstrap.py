"""`make setup`: done once, again when anything it depends on changed or an earlier one was cut off."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that looks set up."""
    for name in (*bootstrap.LOCKS, "requirements-uv.lock", "pyproject.toml"):
        (tmp_path / name).write_text(f"{name}: uv==1.2.3 \\\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".tools").mkdir()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    made = bootstrap.Setup(tmp_path, print)
    made.stamp.write_text(made.wanted_stamp())
    return tmp_path


def is_done(project: Path) -> bool:
    return bool(bootstrap.Setup(project, print).is_done())


def test_nothing_is_done_twice(project: Path) -> None:
    said: list[str] = []
    bootstrap.Setup(project, said.append).run()
    assert said == []


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-model.lock", "requirements-uv.lock", "pyproject.toml"]
)
def test_a_changed_file_is_noticed(project: Path, name: str) -> None:
    assert is_done(project)
    (project / name).write_text("changed")
    assert not is_done(project)


def test_a_moved_folder_is_noticed(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path.with_name(tmp_path.name + "-moved"))
    assert not is_done(moved)


def test_an_install_that_was_cut_off_is_noticed(project: Path) -> None:
    (project / ".tools" / "unfinished").touch()
    assert not is_done(project)


def test_a_python_that_is_gone_is_noticed(project: Path) -> None:
    (project / ".venv" / "bin" / "python").unlink()
    (project / ".venv" / "bin" / "python").symlink_to(project / "gone")
    assert not is_done(project)


def test_pips_network_settings_are_passed_on_to_uv_where_uv_has_none() -> None:
    said = "global.index-url='https://mirror.example/simple'\nglobal.cert='/etc/ca.pem'\n:env:.timeout='60'\n"
    assert bootstrap.uv_environment({}, said) == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "SSL_CERT_FILE": "/etc/ca.pem",
    }
    own = {"UV_INDEX_URL": "https://own.example/simple", "SSL_CERT_FILE": "/own.pem"}
    assert bootstrap.uv_environment(own, said) == own


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Downloading torch (846.9MiB)", True),
        ("   Downloading nvidia-cublas (1.2GiB)", True),
        ("Downloading click (1.2MiB)", False),
        (" Downloaded torch", False),
        ("Installed 141 packages in 2.1s", False),
        ("", False),
    ],
)
def test_only_large_downloads_get_a_line(line: str, told: bool) -> None:
    assert (bootstrap.large(line) is not None) == told


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("error: No space left on device (os error 28)", "disk is full"),
        ("Hash mismatch for `click==8.3`", "lock file"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("dns error: failed to lookup address", "HTTPS_PROXY"),
    ],
)
def test_a_failure_comes_with_what_helps(said: str, word: str) -> None:
    assert word in bootstrap.hint(said)


def test_a_step_that_fails_is_shown_with_its_log(project: Path) -> None:
    made = bootstrap.Setup(project, print)
    made.log.write_text("")
    with pytest.raises(bootstrap.SetupError, match=r"(?s)failed\..*the last words.*setup\.log"):
        made._call([sys.executable, "-c", "print('the last words'); raise SystemExit(3)"], {})


def test_a_missing_python_gets_a_sentence() -> None:
    said = subprocess.run(["make", "-C", str(ROOT), "setup", "PYTHON="], capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert "no Python 3.11 or newer was found" in said.stderr
