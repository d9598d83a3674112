"""What an estimate is made of: samples, lengths by bytes, shapes, prices, earlier runs, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune.config import Data, Execution, JobSpec, Lora
from finetune.estimate import device, lengths, memory, ranges, reckon, sample, shape, speed
from finetune.estimate.device import Device
from finetune.estimate.result import duration, sentence
from finetune.estimate.speed import Measured

pytestmark = pytest.mark.unit

CPU, GPU = Device("cpu", None, 2, exact=True), Device("gpu", "H100", 1)
SMALL = shape.of_parameters(135_000_000)


def row(n: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "é" * (n % 9 + 1)}]
    }


def jsonl(count: int) -> bytes:
    return "".join(json.dumps(row(n), ensure_ascii=False) + "\n" for n in range(count)).encode()


def part(content: bytes, name: str = "s3://b/train.jsonl", opened: list[str] | None = None) -> sample.Part:
    def read() -> Iterator[bytes]:
        if opened is not None:
            opened.append(name)
        for begin in range(0, len(content), 1 << 20):
            yield content[begin : begin + (1 << 20)]

    return sample.Part(name, len(content), read)


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": "m", "training_file": "s3://b/train.jsonl"} | fields)


def of(rows: sample.Sample, job: JobSpec, known: reckon.Known | None = None, measured: tuple[float, ...] = ()) -> Any:
    found = lengths.by_bytes(rows, job.data, measured)
    return reckon.estimate(job, rows, found, None, known or reckon.Known(CPU, SMALL))


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("count", [1, 1999, 2000, 2001, 30_000])
def test_at_most_2000_rows_are_read_and_the_rest_is_a_range(pack: Any, count: int) -> None:
    rows = sample.take([part(pack(jsonl(count)))], Data())
    assert rows.rows == len(rows.items) == min(count, 2000)
    assert rows.complete == (count <= 2000)
    low, high = rows.in_all
    assert low <= count <= high
    assert not rows.complete or low == high == count


def test_many_files_are_read_evenly_and_only_some_of_them() -> None:
    opened: list[str] = []
    parts = [part(jsonl(300), f"s3://b/{n:03d}.jsonl", opened) for n in range(100)]
    rows = sample.take(parts, Data())
    assert len(opened) == sample.FILES
    assert opened[-1] > "s3://b/090"
    assert rows.rows == 2000
    assert rows.in_all[0] <= 30_000 <= rows.in_all[1]


def test_bytes_are_bounded_whatever_the_rows_are() -> None:
    large = json.dumps({"text": "x" * 3_000_000}).encode() + b"\n"
    rows = sample.take([part(large * 20)], Data())
    assert rows.bytes <= sample.BYTES + sample.CHUNK
    assert rows.rows == 5
    assert rows.problem() is None
    assert rows.in_all[0] <= 20 <= rows.in_all[1]


def test_a_bomb_is_read_no_further_than_its_share() -> None:
    rows = sample.take([part(gzip.compress(b"\n" * (100 << 20)))], Data())
    assert rows.bytes <= sample.BYTES + sample.CHUNK
    assert (rows.items, rows.complete) == ([], False)


def test_a_reader_that_is_stopped_stops() -> None:
    rows = sample.take([part(jsonl(1000))], Data(), stopped=lambda: True)
    assert (rows.rows, rows.complete) == (0, False)


def test_errors_come_with_their_lines_as_in_the_job() -> None:
    content = jsonl(12) + b'{"messages": []}\nnot json\n' + jsonl(3)
    found = of(sample.take([part(content)], Data()), spec())
    assert found.error.code == "invalid_file_format"
    assert (found.error.param, found.error.lines) == ("training_file", [13, 14])
    assert found.error.message.startswith("s3://b/train.jsonl: line 13: ")
    assert found.total_steps is None
    few = of(sample.take([part(jsonl(3))], Data()), spec())
    assert (few.error.code, few.error.message) == (
        "invalid_n_examples",
        "s3://b/train.jsonl has 3 examples, at least 10 are needed.",
    )
    assert of(sample.take([part(b"")], Data()), spec()).error.code == "invalid_file_format"


@given(some.integers(1, 400), some.integers(0, 400))
def test_steps_hold_for_every_number_of_examples_in_the_range(low: int, more: int) -> None:
    from finetune.data.resolve import resolve

    job = spec()
    epochs, batch, steps = reckon._steps(job, (low, low + more))
    for count in range(low, low + more + 1):
        real = resolve(job.hyperparameters, n_examples=count, parameters=1)
        assert epochs[0] <= real["n_epochs"] <= epochs[1]
        assert batch[0] <= real["batch_size"] <= batch[1]
        if more < reckon.LOOKED_AT:
            assert steps[0] <= real["total_steps"] <= steps[1]


def test_earlier_runs_narrow_what_rules_leave_open() -> None:
    rows = sample.take([part(jsonl(500))], Data())
    job = spec(hyperparameters={"n_epochs": 2})
    loose = of(rows, job)
    runs = [
        Measured("org/small", 135_000_000, "cpu", 20_000, 60, 100.0 + n, 2_000_000_000, longest=60) for n in range(4)
    ]
    known = reckon.Known(CPU, SMALL, runs, "org/small")
    tight = of(rows, job, known, measured=(3.0, 3.2))
    assert (loose.basis.seconds, loose.basis.memory, loose.basis.tokens) == ("rule", "rule", "rule")
    assert (tight.basis.seconds, tight.basis.memory, tight.basis.tokens) == ("runs", "runs", "runs")
    assert tight.basis.runs == 4
    assert tight.peak_memory_bytes[0] < 2_000_000_000 < tight.peak_memory_bytes[1]
    assert tight.seconds[1] / tight.seconds[0] < loose.seconds[1] / loose.seconds[0] / 3
    assert "by 4 earlier runs" in sentence(tight)


def test_runs_on_another_base_count_by_its_size() -> None:
    runs = [Measured("org/other", 1_000_000_000, "cpu", 10_000, 10, 1000.0, 1)]
    found = speed.by_runs(runs, "org/small", 100_000_000, (10_000, 10_000))
    assert found is not None
    assert found[0][0] < 100.0 < found[0][1]
    assert speed.by_runs(runs, "org/unknown", 0, (1.0, 1.0)) is None
    assert speed.by_runs([], "org/small", 1, (1.0, 1.0)) is None
    assert speed.memory_by_runs(runs, "org/small", (1.0, 1.0)) is None


def test_memory_grows_with_what_is_trained() -> None:
    def most(technique: Any, on: Device, longest: float = 512.0, r: int = 16) -> ranges.Range:
        eight = shape.of_parameters(8_000_000_000)
        step = (16 * longest,) * 2
        return memory.peak(eight, technique, Lora(r=r), on, (longest,) * 2, step=step, trained_share=1.0, dpo=False)

    assert most("qlora", GPU)[0] < 8 << 30
    assert most("lora", GPU)[0] > 16e9
    assert most("full", GPU)[0] > 128e9
    assert most("lora", CPU, longest=4096.0)[1] > most("lora", CPU)[1]
    assert most("lora", CPU, r=256)[0] > most("lora", CPU)[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6), ("meta-llama/Llama-3.1-8B", 8e9), ("org/m-1.5b-chat", 1.5e9), ("org/model", None), ("org/v2B4", None)],
)  # fmt: skip
def test_a_models_name_may_tell_its_size(name: str, size: float | None) -> None:
    found = shape.of_name(name)
    assert (found and found.parameters) == size


def test_units_of_known_models_are_met_within_a_third() -> None:
    for parameters, units in ((1.24e9, 16 * 2048), (8.03e9, 32 * 4096), (70.6e9, 80 * 8192)):
        assert shape.of_parameters(round(parameters)).units == pytest.approx(units, rel=0.34)


@pytest.mark.parametrize(
    ("execution", "on", "hour"),
    [
        ({"profile": "local"}, CPU, 0.1),
        ({"profile": "slurm", "gpu_type": "H100", "gpus": 2}, Device("gpu", "H100", 2), 5.0),
        ({"profile": "slurm", "gpu_type": "H100", "spot": True}, GPU, 1.0),
        ({"profile": "slurm", "gpu_type": "L4"}, Device("gpu", "L4"), 0.9),
        ({"profile": "k8s"}, CPU, None),
    ],
)
def test_the_nearest_price_counts(execution: dict[str, Any], on: Device, hour: float | None) -> None:
    prices = {"local": 0.1, "slurm/H100": 2.5, "slurm/H100/spot": 1.0, "slurm/gpu": 0.9, "slurm": 7.0}
    assert device.price(prices, Execution(**execution), on) == hour


def test_a_price_makes_a_cost() -> None:
    rows = sample.take([part(jsonl(50))], Data())
    found = of(rows, spec(), reckon.Known(CPU, SMALL, prices={"*": 3.6}, currency="EUR"))
    assert found.currency == "EUR"
    assert found.cost == pytest.approx(tuple(bound / 1000 for bound in found.seconds), rel=0.02)
    assert "EUR" in sentence(found)
    assert of(rows, spec()).cost is None


def test_without_a_size_counts_are_told_and_nothing_is_guessed() -> None:
    found = of(sample.take([part(jsonl(50))], Data()), spec(), reckon.Known(CPU, None))
    assert (found.seconds, found.peak_memory_bytes) == (None, None)
    assert found.examples == (50, 50)
    assert "cannot be said" in sentence(found)


def test_what_may_go_wrong_is_warned_of() -> None:
    job = spec(hyperparameters={"max_length": 8}, execution={"max_runtime_seconds": 1})
    found = of(sample.take([part(jsonl(50))], Data()), job)
    assert len(found.warnings) == 2
    assert "data.overlength" in found.warnings[0]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (130, "2 min 10 s"), (1500, "25 min"), (7260, "2 h 1 min"), (90_000, "25 h")]
)  # fmt: skip
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@given(some.floats(1e-6, 1e12), some.floats(1.0, 100.0))
def test_rounding_never_narrows(low: float, factor: float) -> None:
    found = ranges.rounded((low, low * factor))
    assert found[0] <= low * (1 + 1e-12)
    assert found[1] >= low * factor * (1 - 1e-12)
    assert found[1] <= low * factor * 1.02
