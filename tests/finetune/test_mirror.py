"""The record of a training's state and the file that leads to it: strict, bounded, and no change for who shares a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune.config import JobSpec
from finetune.exit_codes import StepError
from finetune.mirror import Access, Entry, Mirror, step_of
from finetune.step_files import plan
from finetune.steps import S3, ModelSource, Pinned

pytestmark = pytest.mark.unit

SHA = "a" * 64


def test_checkpoints_are_found_by_their_folders() -> None:
    names = ["checkpoint-5/optimizer.pt", "checkpoint-10/optimizer.pt", "adapter/README.md", "result.json"]
    record = Mirror(train_key="key", files=[Entry(path=name, sha256=SHA, size=1) for name in names])
    assert sorted(record.folders("checkpoint-"), key=step_of) == ["checkpoint-5", "checkpoint-10"]
    assert list(record.folders("adapter")) == ["adapter"]
    assert step_of("checkpoint-x") == -1


@pytest.mark.parametrize(
    "path", ["..", "adapter/../x", "adapter/a/b", "progress.jsonl", "checkpoint-/x", "result.json\n"]
)
def test_no_other_name_stands_in_a_record(path: str) -> None:
    with pytest.raises(ValidationError):
        Entry(path=path, sha256=SHA, size=1)


def test_the_token_is_in_no_text_and_no_error(tmp_path: Path) -> None:
    file = tmp_path / "access.json"
    file.write_text('{"url": "https://flow.example", "token": "run-secret"}')
    access = Access.read(file)
    assert access.token.get_secret_value() == "run-secret"
    assert "run-secret" not in f"{access} {access!r} {access.text()}"
    file.write_text('{"url": "ftp://flow.example", "token": "run-secret"}')
    with pytest.raises(StepError) as refused:
        Access.read(file)
    assert "run-secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_step_files_of_who_shares_a_disk_know_nothing_of_a_mirror() -> None:
    spec = JobSpec.model_validate({"model": "m", "training_file": "s3://bucket/x.jsonl"})
    given = {"job": "j", "training": [Pinned(uri="s3://bucket/x.jsonl")], "validation": [], "s3": S3()}
    model = ModelSource(id="m", kind="path", location="/m")
    shared = plan(spec, **given, model=model, state_dir="/runs/j/train")
    apart = plan(spec, **given, model=model, mirror="s3://bucket/model/j/train/")
    assert "mirror" not in shared["upload"].text()
    assert '"mirror": "s3://bucket/model/j/train/"' in apart["upload"].text()
    assert '"state_dir": null' in apart["train"].text()
