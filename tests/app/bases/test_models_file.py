"""`llamaflow models`: aliases are written, checked, shown by /v1/models, and trained under; limits of a base are kept."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from openai import BadRequestError, OpenAI

from app.cli import main
from app.settings import get_settings
from finetune.exit_codes import StepError
from finetune.model import catalog
from tests.app.conftest import DATASET, MODEL, Service, serving

ALIAS = "gpt-4o-mini-2024-07-18"
Typed = Callable[..., Result]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Typed]:
    monkeypatch.setenv("LLAMAFLOW_MODELS_FILE", str(tmp_path / "models.toml"))
    get_settings.cache_clear()
    yield lambda *words: CliRunner().invoke(main, ["models", *words])
    get_settings.cache_clear()


@pytest.mark.unit
def test_an_alias_is_added_behind_what_stands_there_and_taken_from_its_base(typed: Typed, tmp_path: Path) -> None:
    said = typed("add", ALIAS, "--alias", MODEL, "--max-epochs", "3", "--description", 'for "old" code 😀')
    assert said.exit_code == 0, said.output
    text = (tmp_path / "models.toml").read_text()
    assert text.startswith(catalog.SHIPPED.read_text().rstrip())
    assert tomllib.loads(text)["models"][ALIAS] == {
        "alias": MODEL, "max_epochs": 3, "description": 'for "old" code 😀',
    }  # fmt: skip
    entry, base = (catalog.load(tmp_path / "models.toml")[name] for name in (ALIAS, MODEL))
    assert (entry.source, entry.location, entry.license) == (base.source, base.location, base.license)
    source = catalog.resolve(ALIAS, catalog.load(tmp_path / "models.toml"))
    assert (source.id, source.location) == (ALIAS, base.location)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((MODEL,), "already"),
        (("a", "--alias", "nothing"), "none of the file's names"),
        (("a", "--alias", MODEL, "--location", "org/x"), "no location of its own"),
        (("a", "--max-epochs", "0"), "greater than or equal to 1"),
    ],
)
def test_what_would_break_the_file_is_not_written(
    typed: Typed, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    typed("add", "org/model", "--revision", "a" * 40, "--license", "mit")
    before = (tmp_path / "models.toml").read_text()
    shown = typed("add", *words)
    assert (shown.exit_code, (tmp_path / "models.toml").read_text()) == (1, before)
    assert said in shown.output
    assert str(tmp_path / "models.toml.") not in shown.output
    assert [path.name for path in tmp_path.iterdir()] == ["models.toml"]


@pytest.mark.unit
def test_an_alias_of_an_alias_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models."org/a"]\n[models.b]\nalias = "org/a"\n[models.c]\nalias = "b"\n')
    with pytest.raises(StepError, match="is an alias itself"):
        catalog.load(file)


@pytest.mark.unit
def test_a_check_says_what_is_wrong_and_what_is_unwise(typed: Typed, tmp_path: Path) -> None:
    assert typed("check").exit_code == 1, "the file is not there"
    (tmp_path / "models.toml").write_text(
        '[models."org/pinned"]\nrevision = "' + "a" * 40 + '"\nlicense = "mit"\n'
        '[models."org/loose"]\nlicense = "mit"\n[models.nowhere]\nsource = "path"\nlocation = "/none"\n'
        '[models.gone]\nsource = "package"\nlocation = "no-such-package"\nlicense = "mit"\n'
        '[models."org/odd"]\nrevision = "' + "a" * 40 + '"\ntemplate = "{% if %}"\nlicense = "mit"\n'
    )
    said = typed("check")
    assert said.exit_code == 1
    lines = said.output.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["warning", "org/loose"], ["error", "nowhere"], ["warning", "nowhere"], ["error", "gone"], ["error", "org/odd"],
    ]  # fmt: skip
    assert lines[-1] == "5 models, 3 wrong."


@pytest.mark.db
def test_an_alias_is_shown_trained_under_and_limited(
    typed: Typed, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed("add", ALIAS, "--alias", MODEL, "--max-epochs", "3", "--max-length", "512").exit_code == 0
    changed = service.settings.model_copy(update={"models_file": tmp_path / "models.toml"})
    with serving(changed) as url, OpenAI(base_url=f"{url}/v1", api_key="lf-alpha", max_retries=0) as client:
        shown = client.models.retrieve(ALIAS).to_dict()
        assert (shown["base"], shown["license"], shown["limits"]) == (
            MODEL, "apache-2.0", {"max_length": 512, "max_epochs": 3},
        )  # fmt: skip
        job = client.fine_tuning.jobs.create(model=ALIAS, training_file=DATASET)
        assert (job.model, job.hyperparameters.to_dict()["max_length"]) == (ALIAS, 512)
        with pytest.raises(BadRequestError, match="takes at most 3") as refused:
            client.fine_tuning.jobs.create(
                model=ALIAS, training_file=DATASET, extra_body={"hyperparameters": {"n_epochs": 4}}
            )
        assert (refused.value.code, refused.value.param) == ("limit_exceeded", "hyperparameters.n_epochs")
        monkeypatch.setenv("LLAMAFLOW_URL", url)
        monkeypatch.setenv("LLAMAFLOW_API_KEY", "lf-alpha")
        get_settings.cache_clear()
        rows = [line.split() for line in typed("list").stdout.splitlines()]
        assert [ALIAS, MODEL, "apache-2.0", "max_length=512", "max_epochs=3"] in rows
