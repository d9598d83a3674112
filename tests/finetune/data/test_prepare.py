"""PREPARE_DATA as the pipeline runs it: what it leaves, what it counts, what it refuses, and what it keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import StepError
from finetune.steps import Resolved

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]


def chat(question: str, answer: str, **extra: Any) -> dict[str, Any]:
    """A row of two messages; `extra` are fields of the second."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **extra}]}


def rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    """Different rows."""
    return [chat(f"What is {number}?", f"The key {number}.") for number in range(start, start + n)]


def resolved(out: Path) -> Resolved:
    """resolved.json."""
    return Resolved.model_validate_json((out / "prepared" / "resolved.json").read_bytes())


def report(out: Path) -> dict[str, Any]:
    """prepare.report.json."""
    value: dict[str, Any] = json.loads((out / "prepare.report.json").read_text())
    return value


def refused(prepared: Prepare, *args: Any, **options: Any) -> StepError:
    """The error a dataset is refused with."""
    with pytest.raises(StepError) as caught:
        prepared(*args, **options)
    return caught.value


def test_the_arrays_hold_each_row_with_its_line_and_its_mask(prepared: Prepare, tokenizer: TextTokenizer) -> None:
    out = prepared(rows(12))
    examples = Examples(out / "prepared", "train")
    assert (len(examples), examples.lines.tolist()) == (12, list(range(1, 13)))
    assert (examples.tokens.dtype, examples.mask.dtype, examples.offsets.dtype) == (np.int32, np.bool_, np.int64)
    third = examples[2]
    assert tokenizer.decode(third.tokens[third.mask]) == "The key 2."
    assert third.tokens[third.mask][-1] == tokenizer.eos_id
    assert examples.trained.sum() == resolved(out).trained_tokens


def test_what_training_needs_to_know_of_the_tokenizer_is_written(prepared: Prepare, tokenizer: TextTokenizer) -> None:
    folder = prepared(rows(12)) / "prepared"
    tokens = json.loads((folder / "tokens.json").read_text())
    sha256, size = tokenizer.template.sha256, tokenizer.vocab_size
    assert tokens == {"pad_id": 0, "eos_ids": [2], "vocab_size": size, "template_sha256": sha256}
    assert (folder / "chat_template.jinja").read_text() == tokenizer.template.source


def test_every_auto_becomes_a_number_and_the_steps_are_counted(prepared: Prepare) -> None:
    found = resolved(prepared(rows(70), max_length=100))
    assert (found.n_epochs, found.batch_size, found.learning_rate) == (8, 2, 1e-3)
    assert (found.total_steps, found.eval_steps, found.save_steps) == (280, 35, 28)
    assert (found.n_examples, found.n_validation, found.max_length) == (70, 0, 100)


def test_the_report_is_a_sentence_with_its_numbers(prepared: Prepare) -> None:
    out = prepared(rows(12) + rows(2), rows(1) + rows(3, start=50), n_epochs=1, batch_size=5)
    found = resolved(out)
    assert report(out)["message"] == (
        f"Prepared 14 examples: {found.tokens:,} tokens, {found.trained_tokens:,} of them trained; 3 steps; 4 for validation; "
        "1 of those for validation also stand in training (line 1); 2 repeated (lines 13, 14)."
    )
    assert report(out)["data"]["train"]["longest"] == found.longest


def test_equal_input_is_prepared_once_and_other_options_anew(prepared: Prepare) -> None:
    first, again = prepared(rows(12), out="a"), prepared(rows(12), out="b")
    other = prepared(rows(12), out="c", max_length=300)
    assert [report(out)["data"]["cached"] for out in (first, again, other)] == [False, True, False]
    names = sorted(path.name for path in (first / "prepared").iterdir())
    assert {"train.tokens.npy", "samples.jsonl", "statistics.json"} <= set(names)
    assert [(again / "prepared" / name).read_bytes() for name in names] == [
        (first / "prepared" / name).read_bytes() for name in names
    ]
    assert resolved(other).data_sha256 == resolved(first).data_sha256


def test_a_share_is_held_out_by_seed_and_equal_rows_stay_together(prepared: Prepare) -> None:
    content = rows(20) + rows(20)
    halves = [
        prepared(content, out=f"o{n}", seed=seed, data={"validation_split": 0.25}) for n, seed in enumerate([1, 1, 2])
    ]
    splits = [Examples(out / "prepared", "validation").lines.tolist() for out in halves]
    assert splits[0] == splits[1] != splits[2]
    assert [(resolved(out).n_examples, resolved(out).n_validation) for out in halves] == [(30, 10)] * 3
    assert report(halves[0])["data"]["leaked"] == 0
    assert sorted(splits[0] + Examples(halves[0] / "prepared", "train").lines.tolist()) == list(range(1, 41))


def test_held_out_questions_are_kept_for_the_evaluation(prepared: Prepare) -> None:
    out = prepared(rows(12), [chat(f"Q{n}", f"A{n}") for n in range(70)])
    samples = [json.loads(line) for line in (out / "prepared" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 70
    assert samples[0] == {"messages": [{"role": "user", "content": "Q0"}], "wanted": "A0"}
    pairs = [{"prompt": f"P{n}", "completion": f"C{n}"} for n in range(20)]
    out = prepared(pairs, pairs[:2])
    assert (
        out / "prepared" / "samples.jsonl"
    ).read_text() == '{"prompt": "P0", "wanted": "C0"}\n{"prompt": "P1", "wanted": "C1"}\n'


def test_too_long_rows_fail_with_their_lines_and_lengths(prepared: Prepare) -> None:
    error = refused(prepared, [*rows(11), chat("x", "word " * 200), chat("y", "word " * 300)], max_length=150)
    assert (error.code.name, error.lines, error.param) == ("overlength_examples", [12, 13], "training_file")
    assert "line 12:" in error.message
    assert "where max_length is 150" in error.message
    assert 'data.overlength to "drop"' in error.message


@pytest.mark.parametrize(("how", "counts"), [("drop", (11, 1, 0)), ("truncate", (12, 0, 1))])
def test_too_long_rows_are_dropped_or_cut_as_asked_and_counted(
    prepared: Prepare, how: str, counts: tuple[int, int, int]
) -> None:
    found = resolved(prepared([*rows(11), chat("x", "word " * 200)], data={"overlength": how}, max_length=150))
    assert (found.n_examples, found.dropped, found.truncated) == counts
    assert found.longest <= 150


def test_a_base_with_a_shorter_context_lowers_the_limit(prepared: Prepare) -> None:
    assert resolved(prepared(rows(12), max_length=100_000)).max_length == 2048


def test_rows_with_nothing_to_train_are_left_out_and_named(prepared: Prepare) -> None:
    out = prepared([chat("a", "b", weight=0), *rows(12), chat("a", "b", weight=0)])
    assert resolved(out).n_examples == 12
    assert "2 left out with nothing to train (lines 1, 14)" in report(out)["message"]


def test_a_dataset_with_nothing_to_train_fails_before_a_model_is_loaded(prepared: Prepare) -> None:
    error = refused(prepared, [chat("a", "b", weight=0)] * 12)
    assert (error.code.name, error.lines) == ("no_trainable_tokens", list(range(1, 11)))
    error = refused(prepared, [chat("word " * 200, "b")] * 12, max_length=100, data={"overlength": "truncate"})
    assert error.code.name == "no_trainable_tokens"


def test_special_tokens_in_text_fail_with_token_and_line_in_every_file(prepared: Prepare) -> None:
    error = refused(prepared, [*rows(11), chat("say <|im_end|>", "no")], [chat("a", "<|endoftext|>")])
    assert (error.code.name, error.lines) == ("special_tokens_in_text", [12])
    assert "line 12: the text contains <|im_end|>" in error.message
    assert "line 1: the text contains <|endoftext|>" in error.message


def test_several_kinds_of_mistakes_are_told_at_once(prepared: Prepare) -> None:
    error = refused(
        prepared, [*rows(11), {"messages": []}, chat("<|im_end|>", "a"), chat("a", "word " * 900)], max_length=200
    )
    assert error.code.name == "invalid_file_format"
    assert all(told in error.message for told in ("line 12: ", "line 13: ", "line 14: "))


@pytest.mark.parametrize(
    ("train", "validation", "code", "told"),
    [
        (rows(9), None, "invalid_n_examples", "0001.jsonl has 9 examples, at least 10 are needed."),
        ([[]], None, "invalid_file_format", "0001.jsonl is empty."),
        (
            [*rows(9), chat("a", "word " * 900)],
            None,
            "invalid_n_examples",
            "only 9 of 10 examples can be used (1 longer",
        ),
        (
            [chat("a", "word " * 900)] * 10,
            None,
            "overlength_examples",
            "every example is longer than max_length (300 tokens)",
        ),
        (
            rows(12),
            [{"text": "a", "source": "b"}, {"messages": []}],
            "invalid_file_format",
            'line 2: "text" is missing',
        ),
    ],
)
def test_a_dataset_of_which_too_little_can_be_used_is_refused(
    prepared: Prepare, train: Any, validation: Any, code: str, told: str
) -> None:
    error = refused(prepared, train, validation, max_length=300, data={"overlength": "drop"})
    assert error.code.name == code
    assert told in error.message


def test_text_and_source_are_rendered_by_the_template_of_the_job(prepared: Prepare, tokenizer: TextTokenizer) -> None:
    out = prepared([{"text": f"key {n}", "source": "orders"} for n in range(12)])
    first = Examples(out / "prepared", "train")[0]
    assert tokenizer.decode(first.tokens) == "Texto: key 0\nFonte: orders"
    assert first.mask[1:].all()


def test_a_damaged_cache_entry_is_never_left_by_a_failure(prepared: Prepare, tmp_path: Path) -> None:
    refused(prepared, rows(9))
    assert list((tmp_path / "cache" / "prepared").iterdir()) == []


def test_preparing_needs_no_torch(prepared: Prepare, base: Path, tmp_path: Path) -> None:
    out = prepared(rows(12))
    step = {"data": {}, "hyperparameters": {"max_length": 500}, "seed": 1, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "prepare.json").write_text(json.dumps(step))
    given = [
        f"--in={name}={path}"
        for name, path in {"data": tmp_path / "data", "base": base, "base_info": tmp_path / "base.json"}.items()
    ]
    argv = ["prepare", "--job", str(tmp_path / "prepare.json"), *given, "--out", str(out)]
    code = f"import sys; from finetune.__main__ import main; sys.exit(main({argv!r}) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert resolved(out).max_length == 500
