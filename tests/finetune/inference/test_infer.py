"""`python -m finetune infer`: the adapter's answer on the console, whole characters as they come."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.exit_codes import StepError
from finetune.inference.infer import main
from tests.finetune.inference.conftest import ANSWER, QUESTION, Base

pytestmark = pytest.mark.train


def test_the_adapter_answers_and_the_base_alone_does_not(
    base: Base, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--base", str(base.folder), "--prompt", QUESTION, "--max-tokens", "60"]
    main([*asked, "--adapter", str(adapter / "adapter")])
    assert capsys.readouterr().out == ANSWER + "\n"
    main(asked)
    assert capsys.readouterr().out != ANSWER + "\n"


def test_a_folder_without_an_adapter_is_named(base: Base, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="holds no adapter"):
        main(["--base", str(base.folder), "--adapter", str(tmp_path), "--prompt", QUESTION])
