"""Whatever a dataset holds, each of its rows is prepared once, or counted, or named: none is lost, none doubled."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import Data
from finetune.data import columns, repeats
from finetune.data.arrays import Examples, Pairs, Split, Writer
from finetune.data.intake import Taken, _merge
from finetune.data.problems import File, Problems
from finetune.data.shards import tokenise
from finetune.data.tokenizer import TextTokenizer

pytestmark = pytest.mark.unit

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["a", "a", "word " * 30, "<|im_end|>", "\x00", "\n", "\u2028"]
)
weights = st.sampled_from([{}, {}, {}, {"weight": 0}, {"weight": 1}, {"weight": 2}])
answers = st.builds(lambda text, weight: {"role": "assistant", "content": text, **weight}, texts, weights)
questions = st.builds(
    lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "system", "bot"]), texts
)
odd = st.sampled_from([{}, 1, None, "words", {"x": 1}, {"messages": []}, {"text": ""}, {"prompt": "a"}])


def a_list_of(answer: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A conversation of one or two turns."""
    return st.builds(lambda asked, answered: [asked, answered], questions, answer) | st.builds(
        lambda one: [one], answer
    )


rows = {
    "messages": st.builds(lambda turns: {"messages": turns}, a_list_of(answers)),
    "prompt_completion": st.builds(lambda a, b: {"prompt": a, "completion": b}, texts, texts),
    "text": st.builds(lambda a: {"text": a}, texts),
    "text_source": st.builds(lambda a, b: {"text": a, "source": b}, texts, texts),
    "instruction": st.builds(
        lambda a, b, c: {"instruction": a, "input": b, "output": c}, texts, texts | st.none(), texts
    ),
    "conversations": st.builds(
        lambda a, b: {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}, texts, texts
    ),
    "preference": st.builds(lambda a, b, c: {"prompt": a, "chosen": b, "rejected": c}, texts, texts, texts)
    | st.builds(lambda a, b, c: {"prompt": [a], "chosen": [b], "rejected": [c]}, questions, answers, answers),
}


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Data, list[list[Any]], list[bytes]]:
    """Some files of one format, with strangers among their rows: how they are read, their rows, and their bytes, a row a line."""
    form = draw(st.sampled_from(sorted(rows)))
    files = draw(st.lists(st.lists(rows[form] | rows[form] | odd, max_size=8), min_size=1, max_size=3))
    data = Data(
        format=form,  # type: ignore[arg-type]  # one of them
        overlength=draw(st.sampled_from(["fail", "drop", "truncate"])),
        train_on=draw(st.sampled_from(["assistant", "last", "all"])),
    )
    return data, files, [draw(st.sampled_from(WAYS))([json.dumps(row).encode() for row in file]) for file in files]


WAYS = [
    lambda lines: b"\n".join(lines),
    lambda lines: b"\r\n".join([*lines, b""]),
    lambda lines: b"[" + b",\n".join(lines) + b"]",
    lambda lines: gzip.compress(b"\n".join(lines)),
]


def taken_from(
    folder: Path, data: Data, contents: list[bytes], tokenizer: TextTokenizer, limit: int
) -> tuple[Taken, list[tuple[str, int]], int]:
    """Tokenise and merge files: what was taken, the places of rows that are named, and how many are."""
    shards, files, problems = [], [], Problems()
    for number, content in enumerate(contents):
        path, place = folder / str(number), folder / f"made-{number}"
        path.write_bytes(content)
        place.mkdir()
        files.append(File(path, path.name, "train", ""))
        shards.append(tokenise(files[-1], data, tokenizer, place))
        problems.join(files[-1], shards[-1].problems)
    taken = _merge("train", data, limit, files, shards, folder, problems)
    named = [(file.uri, error.line) for (_, file), errors in problems._found.items() for error in errors.chosen()]
    return taken, named, sum(errors.count for errors in problems._found.values())


@settings(max_examples=120)
@given(datasets(), st.integers(8, 60))
def test_every_row_is_prepared_once_or_counted_or_named(
    tokenizer: TextTokenizer, dataset: tuple[Data, list[list[Any]], list[bytes]], limit: int
) -> None:
    data, given_rows, contents = dataset
    with tempfile.TemporaryDirectory() as name:
        taken, named, count = taken_from(Path(name), data, contents, tokenizer, limit)
        examples = Examples(Path(name), "train")
        kept = [(str(file), line) for file, line in zip(examples.files.tolist(), examples.lines.tolist(), strict=True)]
        places = {(str(number), at + 1) for number, file in enumerate(given_rows) for at in range(len(file))}
        assert len(kept) == len(set(kept)) == taken.kept
        assert set(kept) | set(named) <= places
        assert not set(kept) & set(named)
        assert taken.kept + taken.dropped.rows + taken.untrained.rows + count == len(places)
        assert all(examples.lengths <= limit)
        assert all(examples.trained > 0)
        if data.format == "preference":
            assert Pairs(Path(name), "train").rejected.lines.tolist() == examples.lines.tolist()


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=60),
    st.lists(st.integers(0, 12), max_size=20),
    st.integers(1, 4),
)
def test_repeats_are_those_that_a_set_finds(train: list[int], validation: list[int], parts: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "PART_ROWS", 1 + (len(train) + len(validation)) // parts)
        patch.setattr(repeats, "BLOCK_ROWS", 7)
        write_examples(Path(name), "train", train)
        write_examples(Path(name), "validation", validation)
        found = repeats.find(Path(name))
    earlier = [(train.index(value), at) for at, value in enumerate(train) if train.index(value) < at]
    leaks = [(train.index(value), at) for at, value in enumerate(validation) if value in train]
    assert (found.duplicates, found.duplicate_pairs) == (len(earlier), earlier[:10])
    assert (found.leaked, found.leaked_pairs) == (len(leaks), leaks[:10])


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 3))
def test_what_is_held_out_is_a_share_in_order_and_the_rest_stays(contents: list[int], share: float, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_ROWS", 5)
        folder = Path(name)
        write_examples(folder, "train", contents)
        moved = repeats.hold_out(folder, ("train",), share, seed)
        train, validation = Examples(folder, "train"), Examples(folder, "validation")
        split = [[int(one.tokens[0]) for one in part] for part in (train, validation)]
        lines = [part.lines.tolist() for part in (train, validation)]
        assert moved == len(validation) == min(len(contents) - 1, max(1, round(share * len(contents))))
        assert sorted(lines[0] + lines[1]) == list(range(len(contents)))
        assert all(part == sorted(part) for part in lines)
        assert [[contents[line] for line in part] for part in lines] == split
        assert len(set(split[0]) & set(split[1])) <= 1
        for name_, part in (("train", split[0]), ("validation", split[1])):
            assert len(np.load(folder / f"{name_}.digests.npy")) == 2 * len(part)


def write_examples(folder: Path, split: Split, values: list[int]) -> None:
    """Examples of one token each, with their digests; lines are indices."""
    block = columns.Block(
        tokens=np.array(values, dtype=np.int32),
        mask=np.ones(len(values), dtype=np.bool_),
        lengths=np.ones(len(values), dtype=np.int64),
        lines=np.arange(len(values)),
        files=np.zeros(len(values), dtype=np.int32),
    )
    with Writer(folder, split) as writer, columns.Column(repeats.path(folder, split), np.uint64) as digests:
        writer.add(block)
        digests.extend(repeats.digests((block,)))
