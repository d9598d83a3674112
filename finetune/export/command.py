"""`python -m finetune export`: merge an adapter or write it as GGUF, by step file as the pipeline does, or by hand.

python -m finetune export --base DIR --adapter DIR [--merge] [--gguf] [--out DIR]
python -m finetune export --job export.json --in base=… --in adapter=… --in prepared=…
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finetune.exit_codes import StepError
from finetune.export import step
from finetune.model.product import kind_of
from finetune.steps import ExportStep


def main(argv: list[str]) -> None:
    """Export a model.

    Args:
        argv: As above. Without --merge and --gguf it is merged.
    Raises:
        StepError: As `finetune.export.step`; `invalid_step_file` for what is not given.
    """
    from finetune.__main__ import Inputs, as_input, read_step

    parser = argparse.ArgumentParser(prog="python -m finetune export", description="Merge an adapter, or write GGUF.")
    parser.add_argument("--job", type=Path, help="export.json")
    parser.add_argument("--in", dest="inputs", action="append", type=as_input, default=[], metavar="NAME=PATH")
    parser.add_argument("--base", type=Path, help="the base's folder")
    parser.add_argument("--adapter", type=Path, help="the adapter's folder, or that of a whole model")
    parser.add_argument("--merge", action="store_true", help="write merged/, a model folder")
    parser.add_argument("--gguf", action="store_true", help="write model-f16.gguf")
    parser.add_argument("--name", default="model", help="what the GGUF file calls the model")
    parser.add_argument("--out", type=Path, default=Path(), help="gets exported/ (default: here)")
    given = parser.parse_args(argv)
    inputs = Inputs(given.inputs)
    inputs.update({name: path for name in ("base", "adapter") if (path := getattr(given, name)) is not None})
    if "base" not in inputs and "adapter" in inputs and kind_of(inputs["adapter"]) == "model":
        inputs["base"] = inputs["adapter"]
    for name in ("base", "adapter"):
        if not inputs[name].is_dir():
            raise StepError("invalid_step_file", f"{name}: there is no folder {inputs[name]}.")
    asked = ExportStep(merge=given.merge or not given.gguf, gguf=given.gguf, name=given.name)
    if given.job is not None:
        read = read_step("export", given.job)
        asked = read if isinstance(read, ExportStep) else asked
    given.out.mkdir(parents=True, exist_ok=True)
    step.run(asked, inputs, given.out)
