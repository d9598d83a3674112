"""The gate in the pipeline: the promoted version fetched from S3 for the run, scored beside base and candidate, told in the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune import plan, s3, step_files
from finetune.config import JobSpec
from finetune.exit_codes import StepError
from finetune.model import catalog, fetch
from finetune.steps import Comparison, EvaluationResult, FetchStep, Manifest, Parent
from tests.finetune.train.conftest import ROWS, build_base
from tests.pipeline.test_going_on import Run, base, run

__all__ = ["base", "run"]
pytestmark = [pytest.mark.pipeline, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

SPLIT = {"validation_split": 0.3}


def adapter(prefix: str, storage: Any) -> Parent:
    """The version at a prefix."""
    import hashlib

    content = storage.get(f"{prefix}manifest.json")
    return Parent(
        id="ft:tiny:default:kpi:1",
        uri=f"{prefix}adapter/",
        manifest_uri=f"{prefix}manifest.json",
        manifest_sha256=hashlib.sha256(content).hexdigest(),
    )


def fetched(model: Path, compare: Comparison, storage: Any, out: Path) -> dict[str, Any]:
    """What FETCH_MODEL tells of a base with a version to compare with."""
    out.mkdir(exist_ok=True)
    source = catalog.resolve(str(model), {}, allow_path=True)
    fetch.run(FetchStep(model=source, compare=compare, s3=storage.access), {}, out)
    return dict(json.loads((out / "fetch.report.json").read_text()))


def test_the_promoted_version_is_brought_if_it_fits_and_needed_only_where_it_decides(
    run: Run, base: Path, storage: Any, tmp_path: Path
) -> None:
    prefix, first = run("first", str(base), data=SPLIT, evaluation={"gate": {"metric": "token_accuracy"}})
    assert first.evaluation is not None
    assert first.evaluation.gate is not None
    assert (first.evaluation.gate.compared_with, first.evaluation.gate.current) == ("base", None)
    version = adapter(prefix, storage)
    fetched(base, Comparison(adapter=version, needed=True), storage, tmp_path / "one")
    assert Parent.model_validate_json((tmp_path / "one" / "compared" / "parent.json").read_text()) == version
    brought = (tmp_path / "one" / "compared" / "adapter_model.safetensors").read_bytes()
    assert brought == storage.get(f"{prefix}adapter/adapter_model.safetensors")
    other = build_base(tmp_path / "other", intermediate_size=96)
    with pytest.raises(StepError, match=r"Use better_than: base") as refused:
        fetched(other, Comparison(adapter=version, needed=True), storage, tmp_path / "two")
    assert (refused.value.code.name, refused.value.param) == ("manifest_mismatch", "evaluation.gate.better_than")
    report = fetched(other, Comparison(adapter=version, needed=False), storage, tmp_path / "three")
    assert (tmp_path / "three" / "compared" / "parent.json").read_text() == "{}\n"
    assert "is not compared with" in report["data"]["warnings"][0]


@pytest.mark.slow
def test_the_same_training_again_ties_with_the_promoted_version(
    run: Run, base: Path, storage: Any, nextflow: Any, tmp_path: Path
) -> None:
    prefix, first = run("first", str(base), data=SPLIT)
    spec = JobSpec.model_validate({
        "model": str(base), "training_file": "rows.jsonl", "data": SPLIT, "suffix": "kpi",
        "hyperparameters": {"n_epochs": 1, "batch_size": 4}, "output": {"path": storage.uri(f"gate/{tmp_path.name}/")},
        "evaluation": {"metrics": ["loss", "exact_match"], "gate": {"metric": "loss", "better_than": "current"}},
    })  # fmt: skip
    steps = step_files.plan(
        spec, job="second", training=plan.pin("rows.jsonl", storage.access, tmp_path, "training_file"), validation=[],
        model=catalog.resolve(str(base), {}, allow_path=True), s3=storage.access,
        compare=Comparison(adapter=adapter(prefix, storage), needed=True), state_dir=str(tmp_path / "state"),
    )  # fmt: skip
    launch = tmp_path / "launch"
    (launch / "steps").mkdir(parents=True)
    for name, step in steps.items():
        (launch / "steps" / f"{name}.json").write_text(step.text())
    quiet = {"LLAMAFLOW_FP32": "1", "LLAMAFLOW_THREADS": "1", "LLAMAFLOW_DEVICE": "cpu"}
    env = storage.env | quiet | {"LLAMAFLOW_CACHE_DIR": str(tmp_path / "cache")}
    ended = nextflow(launch, "--steps", str(launch / "steps"), "-with-trace", "trace.tsv", env=env)
    assert ended.returncode == 0, ended.stdout[-3000:]
    [found] = [
        row.uri for row in s3.listing(storage.client, spec.output.path) if row.uri.endswith("second/manifest.json")
    ]
    told: EvaluationResult | None = Manifest.model_validate_json(storage.get(found)).evaluation
    assert told is not None
    assert told.gate is not None
    assert told.forgetting is not None
    assert first.evaluation is not None
    assert told.gate.scores["current"]["loss"] == pytest.approx(first.evaluation.loss, rel=1e-5)
    assert set(told.gate.scores) == {"candidate", "base", "current"}
    assert (told.gate.passed, told.gate.difference, told.gate.interval) == (False, 0.0, (0.0, 0.0))
    assert told.rows == len(ROWS) - first.resolved.n_examples
