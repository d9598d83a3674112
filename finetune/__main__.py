"""The trainer's command line: `python -m finetune <step> --job <step>.json [--in name=path …] [--out DIR]`.

Finds a step's module by name, imports only that one, and turns whatever it raises into a sentence on stderr,
`error.json` and an exit status of `finetune/exit_codes.py`. Imports no torch itself.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from finetune import environment
from finetune.exit_codes import StepError, nextflow_config
from finetune.folding import folded
from finetune.progress import write_atomic
from finetune.steps import STEP_FILES, StepFile

STEPS: dict[str, str] = {
    "download": "finetune.download",
    "fetch": "finetune.model.fetch",
    "prepare": "finetune.data.prepare",
    "train": "finetune.train.step",
    "evaluate": "finetune.evaluate.step",
    "upload": "finetune.export.upload",
}
"""Steps with a step file: `run(step: StepFile, inputs: dict[str, Path], out: Path) -> None`."""

COMMANDS: dict[str, str] = {
    "plan": "finetune.plan",
    "convert": "finetune.model.convert",
    "serve": "finetune.inference.serve",
    "infer": "finetune.inference.infer",
    "export": "finetune.export.command",
    "estimate": "finetune.estimate.command",
}
"""Commands with arguments of their own: `main(argv: list[str]) -> int | None`."""


class Inputs(dict[str, Path]):
    """What earlier steps left, by name. Asking for one that was not given is the caller's mistake, and says so."""

    def __missing__(self, name: str) -> Path:
        raise StepError("invalid_step_file", f"--in {name}=PATH is missing.")


class Terminated(BaseException):
    """SIGTERM arrived. No Exception, so that no step takes it for a failure of its own."""


def main(argv: list[str] | None = None) -> int:
    """Run one step or command.

    Args:
        argv: Arguments after `python -m finetune`; None for those of the process.
    Returns:
        0, or an exit status of the table in `finetune/exit_codes.py`; 2 for wrong arguments.
    """
    args = sys.argv[1:] if argv is None else argv
    environment.yield_while_waiting()
    if args == ["exit-codes"]:
        print(nextflow_config(), end="")
        return 0
    if args and args[0] in COMMANDS:
        return guarded(lambda: importlib.import_module(COMMANDS[args[0]]).main(args[1:]), Path())
    given = _parser().parse_args(args)
    if given.step in ("train", "evaluate"):
        environment.take_gpu()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    return guarded(lambda: _run(given.step, given.job, Inputs(given.inputs), out), out)


def guarded(work: Any, out: Path) -> int:
    """Call `work` and turn every end into an exit status; a failure also leaves `error.json` in `out`.

    Args:
        work: Takes nothing; returns None or a status.
        out: The step's folder.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    (out / "error.json").unlink(missing_ok=True)
    try:
        with folded():
            return int(work() or 0)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (Exception, Terminated) as problem:  # noqa: BLE001  the one place where every failure becomes a status
        error = as_step_error(problem)
        _leave(error, out)
        with contextlib.suppress(BrokenPipeError):  # a signal often ends those who read this, too
            if error.code.name == "internal_error":
                traceback.print_exc()
            print(f"{error.code.name}: {error.message}", file=sys.stderr, flush=True)
        return error.code.status
    finally:
        signal.signal(signal.SIGTERM, before)


def as_step_error(problem: BaseException) -> StepError:
    """What `problem` is by the table: the first of it and its causes that says something, else `internal_error`."""
    link: BaseException | None = problem
    while link is not None:
        if isinstance(link, StepError):
            return link
        if (name := _known(link)) is not None:
            return StepError(name)
        link = link.__cause__ or link.__context__
    return StepError(
        "internal_error",
        f"The step stopped on an error of its own ({type(problem).__name__}: {problem}). Read the stage's log.",
    )


def _known(problem: BaseException) -> str | None:
    if isinstance(problem, Terminated):
        return "interrupted"
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "disk_full"
    if (
        isinstance(problem, MemoryError)
        or type(problem).__name__ == "OutOfMemoryError"
        or (isinstance(problem, OSError) and problem.errno == errno.ENOMEM)
    ):
        return "out_of_memory"
    text = str(problem)
    if "No space left on device" in text or "(os error 28)" in text:  # libraries in Rust and C++ say it in words only
        return "disk_full"
    return "out_of_memory" if "DefaultCPUAllocator: can't allocate memory" in text else None


def _run(step: str, job: Path, inputs: Inputs, out: Path) -> None:
    if step == "train" and "prepared" not in inputs:
        importlib.import_module("finetune.local").run(job, out)
        return
    for name, path in inputs.items():
        if not path.exists():
            raise StepError("invalid_step_file", f"--in {name}={path}: there is no such file or folder.")
    importlib.import_module(STEPS[step]).run(read_step(step, job), inputs, out)


def read_step(step: str, job: Path) -> StepFile:
    """The step file `job`, validated.

    Raises:
        StepError: `invalid_step_file`, naming what is wrong with it.
    """
    try:
        return STEP_FILES[step].model_validate_json(job.read_bytes())
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StepError(
            "invalid_step_file", f"{job} is no step file for {step}: {where or 'the file'}: {first['msg']}"
        ) from None
    except OSError as problem:
        raise StepError("invalid_step_file", f"{job} cannot be read: {problem.strerror}") from None


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _leave(error: StepError, out: Path) -> None:
    try:
        write_atomic(out / "error.json", json.dumps(error.as_error(), ensure_ascii=False) + "\n")
    except OSError as problem:
        print(f"error.json could not be written: {problem}", file=sys.stderr)


def as_input(text: str) -> tuple[str, Path]:
    """`name=path` of an argument --in."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: expected name=path, such as data=data")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m finetune", description=f"Other commands: {', '.join([*COMMANDS, 'exit-codes'])}."
    )
    parser.add_argument("step", choices=list(STEPS), help="what to do")
    parser.add_argument(
        "--job", type=Path, required=True, help="the step's file; for train also a whole job with local files"
    )
    parser.add_argument(
        "--in",
        dest="inputs",
        action="append",
        type=as_input,
        default=[],
        metavar="NAME=PATH",
        help="what an earlier step left",
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to (default: here)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
