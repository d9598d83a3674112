"""Early stopping and running away in a real training; what TensorBoard and a terminal are shown of it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from finetune.config import JobSpec, unsupported
from finetune.exit_codes import StepError
from finetune.train.trainer import BEST, SupervisedTrainer
from tests.finetune.train.conftest import HELD_OUT, ROWS, Bench, chat

pytestmark = pytest.mark.train

OTHER = [chat(f"h{n}", "zyx" * 3) for n in range(3)]
"""Held-out answers that training on ROWS makes less likely."""
STOP = {"n_epochs": 12, "eval_steps": 2, "save_steps": 5, "early_stopping_patience": 2}


def evaluations(made: Bench, name: str) -> dict[int, float]:
    return {line["step"]: line["valid_loss"] for line in made.lines(name, "evaluation")}


def test_it_ends_when_validation_gets_no_better_and_leaves_the_best_weights(bench: Callable[..., Bench]) -> None:
    made = bench(ROWS, OTHER, **STOP)
    result = made.train("stopped")
    seen = evaluations(made, "stopped")
    best = min(seen, key=lambda step: (seen[step], step))
    assert result.status == "succeeded"
    assert result.steps == best + 4 < made.resolved.total_steps
    assert result.valid_loss == seen[best]
    kept = made.state("stopped") / BEST / "adapter_model.safetensors"
    assert made.weights("stopped") == kept.read_bytes()
    notices = [line["message"] for line in made.lines("stopped", "notice")]
    assert notices == [
        f"The validation loss has not fallen since step {best}: the training ends after step {best + 4}.",
        f"The result is that of step {best}, with the lowest validation loss: {seen[best]:.4f}.",
    ]


def test_stopped_early_and_killed_it_takes_the_same_weights(bench: Callable[..., Bench]) -> None:
    made = bench(ROWS, OTHER, **STOP)
    first = made.train("again")
    before = made.weights("again")
    (made.state("again") / "result.json").unlink()
    (made.state("again") / "adapter").rename(made.state("again") / ".making-adapter")
    (made.state("again") / BEST).rename(made.root / "lost")  # the copy in the checkpoint serves
    second = made.train("again")
    assert made.weights("again") == before
    assert second.steps == first.steps
    assert len(made.lines("again", "step")) == first.steps


def test_without_patience_nothing_is_kept_apart(bench: Callable[..., Bench]) -> None:
    made = bench(ROWS, HELD_OUT, n_epochs=1)
    made.train("plain")
    assert not (made.state("plain") / BEST).exists()
    assert not list(made.state("plain").glob(f"checkpoint-*/{BEST}"))


def test_patience_needs_held_out_rows() -> None:
    body = {"model": "m", "training_file": "s3://abc/x", "hyperparameters": {"early_stopping_patience": 2}}
    refused = unsupported(JobSpec.model_validate(body))
    assert refused is not None
    assert refused[0] == "hyperparameters.early_stopping_patience"
    assert unsupported(JobSpec.model_validate(body | {"data": {"validation_split": 0.1}})) is None


def test_a_loss_that_runs_away_stops_the_training(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=30, learning_rate=1.0, max_grad_norm=0, lr_scheduler="constant", warmup_ratio=0)
    with pytest.raises(StepError, match=r"(The loss rose from|The loss became|The gradients became)") as ended:
        made.train("away")
    assert ended.value.code.name == "loss_diverged"
    assert len(made.lines("away", "step")) < made.resolved.total_steps


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard's files of a training say, later files winning."""
    found: dict[tuple[str, int], float] = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value if value.tag}
    return found


def test_tensorboard_shows_what_is_told(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.train("board")
    found = scalars(made.state("board"))
    for line in made.lines("board", "step"):
        for field, tag in (("loss", "train/loss"), ("learning_rate", "train/learning_rate")):
            assert found[tag, line["step"]] == pytest.approx(line[field], rel=1e-6)
    assert [step for tag, step in found if tag == "validation/loss"] == list(evaluations(made, "board"))


class Terminal(io.StringIO):
    """A standard output that a person watches."""

    def isatty(self) -> bool:
        return True


def test_a_person_who_watches_sees_answers_appear(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(n_epochs=1)
    made.train("unwatched")
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    made.train("watched")
    samples = made.lines("watched", "evaluation")[-1]["samples"]
    assert samples == made.lines("unwatched", "evaluation")[-1]["samples"]
    assert made.weights("watched") == made.weights("unwatched")
    text = shown.getvalue()
    assert all(f"? {sample['prompt']}\n  ! {sample['answer']}" in text for sample in samples)


def test_when_one_example_does_not_fit_activations_are_computed_twice(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(n_epochs=1)
    whole = made.train("whole")
    accumulate = SupervisedTrainer._accumulate

    def short(self: Any, model: Any, rows: list[int]) -> Any:
        return accumulate(self, model, rows) if model.is_activation_checkpointing else None

    monkeypatch.setattr(SupervisedTrainer, "_accumulate", short)
    short_of = made.train("short")
    assert short_of.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    notices = [line["message"] for line in made.lines("short", "notice")]
    assert notices[-1].endswith("going on with activations computed twice (slower by a third).")
    assert json.loads((made.state("short") / "result.json").read_text())["status"] == "succeeded"
