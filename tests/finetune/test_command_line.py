"""`python -m finetune`: every way a step can end becomes a sentence, error.json and an exit status."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.__main__ import COMMANDS, STEPS, Inputs, guarded, main
from finetune.exit_codes import BY_NAME, TABLE, StepError
from finetune.steps import STEP_FILES

pytestmark = pytest.mark.unit


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


def raising(problem: BaseException) -> Callable[[], None]:
    """Work that ends so."""

    def work() -> None:
        raise problem

    return work


def error(folder: Path) -> dict[str, str | None]:
    """error.json."""
    value: dict[str, str | None] = json.loads((folder / "error.json").read_text())
    return value


@pytest.mark.parametrize("name", [code.name for code in TABLE])
def test_every_error_of_the_table_ends_with_its_status_and_its_sentence(name: str, tmp_path: Path) -> None:
    assert guarded(raising(StepError(name, "Told.", param="model")), tmp_path) == BY_NAME[name].status
    assert error(tmp_path) == {"code": name, "message": "Told.", "param": "model"}


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EFBIG, "File too large"), "disk_full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.ENOENT, "No such file"), "internal_error"),
        (KeyError("x"), "internal_error"),
    ],
)
def test_other_failures_are_told_apart(problem: Exception, name: str, tmp_path: Path) -> None:
    assert guarded(raising(problem), tmp_path) == BY_NAME[name].status
    assert error(tmp_path)["code"] == name


def test_the_cause_of_a_failure_counts(tmp_path: Path) -> None:
    wrapped = ValueError("while saving")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert guarded(raising(wrapped), tmp_path) == BY_NAME["disk_full"].status


def test_a_failure_of_its_own_leaves_its_traceback_for_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded(raising(ZeroDivisionError("by nothing")), tmp_path)
    assert "Traceback" in (told := capsys.readouterr().err)
    assert told.rstrip().endswith("Read the stage's log.")
    guarded(raising(StepError("paused")), tmp_path)
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_interrupts_even_work_that_catches_everything(tmp_path: Path) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except Exception as problem:
            raise AssertionError from problem

    before = signal.getsignal(signal.SIGTERM)
    assert guarded(work, tmp_path) == BY_NAME["interrupted"].status
    assert error(tmp_path)["code"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_later_success_takes_the_old_error_away(tmp_path: Path) -> None:
    guarded(raising(StepError("paused")), tmp_path)
    assert guarded(lambda: None, tmp_path) == 0
    assert not (tmp_path / "error.json").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "Invalid JSON"),
        ("{}", "data: Field required"),
        ('{"data": {"formatt": 1}, "hyperparameters": {}, "seed": 1}', "data.formatt: Extra inputs"),
    ],
)
def test_a_step_file_that_is_none_is_named(content: str | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "prepare.json").write_text(content)
    status = main(["prepare", "--job", str(tmp_path / "prepare.json"), "--out", str(tmp_path / "new" / "out")])
    assert status == BY_NAME["invalid_step_file"].status
    assert told in str(error(tmp_path / "new" / "out")["message"])


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "prepare.json").write_text('{"data": {}, "hyperparameters": {}, "seed": 1}')
    argv = ["prepare", "--job", str(tmp_path / "prepare.json"), "--out", str(tmp_path)]
    assert main(argv) == BY_NAME["invalid_step_file"].status
    assert "--in base_info=PATH is missing" in str(error(tmp_path)["message"])
    assert main([*argv, f"--in=data={tmp_path}/nothing"]) == BY_NAME["invalid_step_file"].status
    assert "there is no such file or folder" in str(error(tmp_path)["message"])


def test_every_step_and_command_has_a_module_with_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*STEPS, "export"} == set(STEP_FILES)
    root = Path(__file__).resolve().parents[2]
    for modules, entry in ((STEPS, "run"), (COMMANDS, "main")):
        for module in modules.values():
            assert f"\ndef {entry}(" in (root / f"{module.replace('.', '/')}.py").read_text(), module


def test_wrong_arguments_are_a_usage_error_and_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["prepare"], ["prepare", "--job", "x", "--in", "data"], ["cook", "--job", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert all(name in capsys.readouterr().out for name in ["exit-codes"])


def test_the_exit_codes_are_printed_for_the_pipeline() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "finetune", "exit-codes"], check=True, capture_output=True, text=True
    ).stdout
    assert "errorStrategy" in printed
    assert "81" in printed


def test_inputs_are_paths_by_name() -> None:
    assert Inputs({"base": Path("b")})["base"] == Path("b")
    with pytest.raises(StepError, match="--in adapter=PATH is missing"):
        Inputs()["adapter"]
