"""Estimates beside what then happened: counts as PREPARE_DATA makes them, steps, time and memory as FINE_TUNE has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config import JobSpec
from finetune.estimate.command import of_job
from finetune.estimate.result import Estimate
from finetune.steps import Result
from tests.finetune.train.conftest import ROWS, Bench, chat

pytestmark = pytest.mark.train

MANY = [chat(f"Where is order {n}?" + "?" * (n % 11), f"Order {n} left Porto." * (1 + n % 3)) for n in range(3000)]


def job(made: Bench, **fields: Any) -> JobSpec:
    body = {
        "model": str(made.base),
        "training_file": str(made.root / "data" / "train" / "0001.jsonl"),
        "seed": made.seed,
    }
    if (made.root / "data" / "validation" / "0001.jsonl").is_file():
        body["validation_file"] = str(made.root / "data" / "validation" / "0001.jsonl")
    return JobSpec.model_validate(body | fields)


def holds(range_: Any, value: float) -> bool:
    return range_[0] <= value <= range_[1]


def test_a_dataset_read_whole_with_its_tokenizer_is_counted_exactly(bench: Callable[..., Bench]) -> None:
    asked = {"n_epochs": "auto", "batch_size": "auto", "learning_rate": 0.01}
    made = bench(ROWS * 5, **asked)
    found = of_job(job(made, hyperparameters=asked), made.root)
    real = made.resolved
    assert found.error is None
    assert found.basis.complete
    assert found.basis.tokens == "tokenizer"
    assert found.examples == (real.n_examples,) * 2
    assert found.validation_examples == (real.n_validation,) * 2
    assert found.tokens == (real.tokens,) * 2
    assert found.trained_tokens == (real.trained_tokens,) * 2
    assert found.longest == (real.longest,) * 2
    assert found.n_epochs == (real.n_epochs,) * 2
    assert found.batch_size == (real.batch_size,) * 2
    assert found.total_steps == (real.total_steps,) * 2


@pytest.mark.parametrize("split", [0.0, 0.1])
def test_a_sample_gives_ranges_that_hold_what_is_counted(bench: Callable[..., Bench], split: float) -> None:
    asked = {"n_epochs": "auto", "batch_size": "auto", "learning_rate": 0.01}
    made = bench(MANY, [], **asked)
    found = of_job(job(made, hyperparameters=asked, data={"validation_split": split}), made.root)
    held, real = round(len(MANY) * split), made.resolved
    assert found.basis.rows_read == 2000
    assert not found.basis.complete
    assert found.examples is not None
    assert found.validation_examples is not None
    assert holds(found.examples, real.n_examples - held)
    assert holds(found.validation_examples, held)
    assert holds(found.tokens, real.tokens * (1 - split))
    assert holds(found.trained_tokens, real.trained_tokens * (1 - split))
    assert holds(found.longest, real.longest)
    if not split:
        assert holds(found.total_steps, real.total_steps)
    assert found.examples[1] < 1.4 * found.examples[0]


@pytest.mark.parametrize("what", ["peak_memory_bytes", pytest.param("seconds", marks=pytest.mark.slow)])
def test_time_and_memory_of_a_real_training_lie_within(
    what: str, bench: Callable[..., Bench], reaped: list[Any]
) -> None:
    made = bench()
    report = json.loads((made.root / "prepare.report.json").read_text())["data"]
    expected = Estimate.model_validate(report["estimate"])
    process = made.start("run")
    reaped.append(process)
    process.wait(240)
    result = Result.model_validate_json((made.root / "run" / "out" / "result.json").read_bytes())
    assert expected.total_steps == (result.steps,) * 2
    assert holds(getattr(expected, what), getattr(result, what)), getattr(result, what)
    assert (result.device, result.threads) == ("cpu", 1)


def test_what_preparing_counts_is_handed_on_for_the_next_estimate(bench: Callable[..., Bench]) -> None:
    made = bench(ROWS * 2, [])
    data = json.loads((made.root / "prepare.report.json").read_text())["data"]
    facts, real = data["facts"], made.resolved
    assert {name: facts[name] for name in ("n_examples", "tokens", "total_steps", "longest")} == {
        "n_examples": real.n_examples,
        "tokens": real.tokens,
        "total_steps": real.total_steps,
        "longest": real.longest,
    }
    texts = sum(len(turn["content"].encode()) for row in ROWS * 2 for turn in row["messages"])
    assert facts["bytes_a_token"] == pytest.approx(texts / real.tokens, rel=1e-3)
    assert (facts["units"], facts["vocabulary"]) == (2 * 32, 264)
    assert (made.root / "prepare.report.json").read_text().count("Expected: ") == 0


def test_the_command_prints_an_estimate_without_torch_and_fails_as_the_job_would(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    made = bench()
    body = job(made).model_dump(mode="json", include={"model", "training_file", "validation_file"})
    code = "import sys; from finetune.__main__ import main; status = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(status)"

    def run(content: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "job.json").write_text(json.dumps(content))
        argv = [sys.executable, "-c", code, "estimate", "--job", str(tmp_path / "job.json")]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)

    well = run(body)
    assert well.returncode == 0, well.stderr
    assert Estimate.model_validate_json(well.stdout).total_steps is not None
    assert "Expected: " in well.stderr
    rows = [*ROWS[:9], chat("q <|im_end|>", "a"), chat("long " * 900, "a"), *ROWS]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ill = run(body | {"training_file": "bad.jsonl"})
    assert ill.returncode == 72
    error = Estimate.model_validate_json(ill.stdout).error
    assert error is not None
    assert (error.code, error.param, error.lines) == ("special_tokens_in_text", "training_file", [10])
    assert "line 10: the text contains <|im_end|>" in error.message
    assert json.loads((tmp_path / "error.json").read_text())["code"] == "special_tokens_in_text"
