"""Trainings that are killed, paused, stopped, started twice or run into a wall: nothing is trained twice, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import Lora
from finetune.exit_codes import BY_NAME, StepError
from finetune.model import loading
from finetune.steps import Result
from tests.finetune.train.conftest import Bench

pytestmark = pytest.mark.train

LONG = {"n_epochs": 30, "batch_size": 4, "save_steps": 7, "eval_steps": 60}
"""120 steps: time enough to interrupt."""
Processes = list["subprocess.Popen[str]"]


@pytest.fixture
def long(bench: Callable[..., Bench]) -> Bench:
    """A bench for long trainings, with dropout, so that random numbers matter."""
    return bench(lora=Lora(r=4, dropout=0.1), **LONG)


def left(made: Bench, name: str) -> Result:
    """result.json of a train/ folder."""
    return Result.model_validate_json((made.state(name) / "result.json").read_bytes())


def test_killed_and_resumed_it_gives_the_undisturbed_bytes(long: Bench, reaped: Processes) -> None:
    reaped.append(process := long.start("killed"))
    long.wait_for_step("killed", 30)
    process.kill()
    process.wait()
    assert not (long.state("killed") / "result.json").exists()
    long.train("killed")
    long.train("undisturbed")
    assert long.weights("killed") == long.weights("undisturbed")
    resumed = [line["resumed_from"] for line in long.lines("killed", "start")]
    assert resumed[0] is None
    assert resumed[1] >= 28
    assert resumed[1] % 7 == 0
    kept = [column.split(",")[:2] for column in (long.state("killed") / "metrics.csv").read_text().splitlines()[1:]]
    assert kept == [[str(line["step"]), str(line["loss"])] for line in long.lines("undisturbed", "step")]


def test_sigterm_saves_and_the_next_start_goes_on_from_there(long: Bench, reaped: Processes) -> None:
    reaped.append(process := long.start("stopped"))
    long.wait_for_step("stopped", 10)
    assert process.stdout is not None
    process.stdout.close()  # a signal to a whole task also ends who reads its output
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == BY_NAME["interrupted"].status
    result = left(long, "stopped")
    assert result.status == "interrupted"
    assert (long.state("stopped") / f"checkpoint-{result.steps}" / "optimizer.pt").is_file()
    error = json.loads((long.root / "stopped" / "out" / "error.json").read_text())
    assert error["code"] == "interrupted"
    long.train("stopped")
    assert long.lines("stopped", "start")[1]["resumed_from"] == result.steps
    told = [line["step"] for line in long.lines("stopped", "step")]
    assert told == list(range(1, 121))


def test_a_signal_while_the_base_loads_stops_before_the_first_step(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()
    before = signal.getsignal(signal.SIGTERM)
    inject(monkeypatch, lambda _model: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StepError, match="asked to stop before its first step"):
        made.train("early")
    assert left(made, "early").status == "interrupted"
    assert not made.lines("early", "step")
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_starts_at_once_train_once(long: Bench, reaped: Processes) -> None:
    reaped += [long.start("twice", out) for out in ("one", "other")]
    assert [process.wait(120) for process in reaped] == [0, 0]
    assert len(long.lines("twice", "start")) == 1
    assert [line["step"] for line in long.lines("twice", "step")] == list(range(1, 121))
    adapters = {
        (long.root / "twice" / out / "adapter" / "adapter_model.safetensors").read_bytes() for out in ("one", "other")
    }
    assert adapters == {long.weights("twice")}


def test_what_is_done_is_not_done_again(bench: Callable[..., Bench]) -> None:
    made = bench()
    first = made.train("done")
    before = (made.state("done") / "progress.jsonl").read_bytes()
    assert made.train("done") == first
    assert (made.state("done") / "progress.jsonl").read_bytes() == before
    report = json.loads((made.root / "done" / "train.report.json").read_text())
    assert report["data"]["taken_over"] is True


def test_another_seed_is_another_training(bench: Callable[..., Bench]) -> None:
    made = bench()
    first = made.train("again")
    made.seed = 8
    second = made.train("again")
    assert first.train_key != second.train_key
    assert made.lines("again", "start")[0]["resumed_from"] is None
    assert len(made.lines("again", "step")) == made.resolved.total_steps


@pytest.mark.parametrize("intent", ["pause", "stop"])
def test_paused_and_taken_up_it_gives_the_unpaused_bytes(bench: Callable[..., Bench], intent: str) -> None:
    made = bench(lora=Lora(r=4, dropout=0.1), n_epochs=3)
    made.state("paused").mkdir(parents=True)
    (made.state("paused") / "control.json").write_text(json.dumps({"intent": intent}))
    with pytest.raises(StepError) as stopped:
        made.train("paused")
    assert stopped.value.code.status == 80
    assert left(made, "paused").status == "paused"
    assert left(made, "paused").steps == 1
    made.train("paused")
    made.train("unpaused")
    assert made.weights("paused") == made.weights("unpaused")


def test_time_that_runs_out_leaves_the_checkpoint(long: Bench) -> None:
    with pytest.raises(StepError) as ended:
        long.train("slow", max_runtime_seconds=1)
    assert ended.value.code.name == "max_runtime_exceeded"
    result = left(long, "slow")
    assert result.status == "failed"
    assert result.error is not None
    assert result.error["param"] == "execution.max_runtime_seconds"
    assert 1 < result.seconds < 30
    assert (long.state("slow") / f"checkpoint-{result.steps}").is_dir()


def test_a_loss_that_is_no_number_stops_the_training(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()
    inject(monkeypatch, lambda model: model.lm_head.register_forward_hook(lambda _m, _i, out: out * float("nan")))
    with pytest.raises(StepError, match=r"The loss became nan in step 1 of 12"):
        made.train("nan")
    assert left(made, "nan").status == "failed"
    assert not made.lines("nan", "step")
    assert not list(made.state("nan").glob("checkpoint-*"))


def test_when_memory_runs_out_smaller_micro_batches_give_the_same_training(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(n_epochs=1)
    whole = made.train("whole")
    inject(monkeypatch, lambda model: model.register_forward_pre_hook(short_of_memory(80), with_kwargs=True))
    cut = made.train("cut")
    assert cut.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    notices = [line["message"] for line in made.lines("cut", "notice")]
    assert notices[0].startswith("Memory ran out in step 1: going on with micro-batches of ")
    assert [line["tokens"] for line in made.lines("cut", "step")] == [
        line["tokens"] for line in made.lines("whole", "step")
    ]


def test_memory_too_short_for_one_example_says_so(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(n_epochs=1)
    inject(monkeypatch, lambda model: model.register_forward_pre_hook(short_of_memory(5), with_kwargs=True))
    with pytest.raises(StepError, match=r"one example of \d+ tokens, alone") as failure:
        made.train("short")
    assert failure.value.code.name == "out_of_memory"
    assert left(made, "short").error == failure.value.as_error()


def test_a_checkpoint_half_written_is_never_resumed_from(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.state("half").mkdir(parents=True)
    for name in ("checkpoint-9", ".making-checkpoint"):
        (made.state("half") / name).mkdir()
        (made.state("half") / name / "adapter_model.safetensors").write_bytes(b"half")
    made.train("half")
    made.train("whole")
    assert made.lines("half", "start")[0]["resumed_from"] is None
    assert made.weights("half") == made.weights("whole")


def test_killed_between_the_last_checkpoint_and_the_result_it_only_finishes(bench: Callable[..., Bench]) -> None:
    made = bench()
    first = made.train("last")
    before = made.weights("last")
    (made.state("last") / "result.json").unlink()
    (made.state("last") / "adapter").rename(made.state("last") / ".making-adapter")
    second = made.train("last")
    assert made.weights("last") == before
    assert (second.steps, second.train_loss, second.valid_loss) == (first.steps, first.train_loss, first.valid_loss)
    assert [line["step"] for line in made.lines("last", "step")] == list(range(1, 13))


def inject(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any]) -> None:
    """Let every base that is loaded from now on fail in some way."""
    load = loading.load_base

    def spoiled(folder: Path, *args: Any) -> Any:
        model = load(folder, *args)
        spoil(model)
        return model

    monkeypatch.setattr(loading, "load_base", spoiled)


def short_of_memory(most: int) -> Callable[..., None]:
    """A hook for a model on a machine that has memory for so many tokens at a time."""

    def check(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")

    return check
