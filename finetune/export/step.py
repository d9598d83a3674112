"""EXPORT_MODEL: an adapter folded into its base, as a model folder, as one GGUF file, or both.

Reads export.json, base, base.json, the adapter and (for something to compare on) prepared/; writes exported/. Ends with
`unsupported_operation`, `manifest_mismatch`, `merge_mismatch` or `out_of_memory`. Takes the memory of the base in float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from finetune.data.tokenizer import TextTokenizer, load
from finetune.exit_codes import StepError
from finetune.export import GGUF, MERGED, lineage, llama
from finetune.model.peft_folder import TEMPLATE
from finetune.model.product import kind_of
from finetune.progress import write_atomic, write_report
from finetune.steps import ExportResult, ExportStep


def run(step: ExportStep, inputs: dict[str, Path], out: Path) -> None:
    """Export a model.

    Args:
        step: What is wanted.
        inputs: `base`, `adapter` (or the folder of a whole model); `prepared`, if there is one.
        out: Gets exported/.
    """
    base, adapter = inputs["base"], inputs["adapter"]
    if not (step.merge or step.gguf):
        raise StepError("invalid_step_file", "There is nothing to export: merge, gguf or both are expected.")
    own = adapter / TEMPLATE
    whole = kind_of(adapter) == "model"
    if whole and step.merge:
        told = "There is no adapter to merge: this is a whole model already. Leave output.merge out."
        raise StepError("unsupported_operation", told, param="output.merge")
    base = adapter if whole else base
    shape = llama.require(base) if step.gguf else None
    if not whole:
        lineage.require(adapter, base)
    tokenizer = load(base, own.read_text(encoding="utf-8") if own.is_file() else None)
    folder = out / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result = export(step, base, adapter, inputs.get("prepared"), folder, tokenizer, shape)
    write_atomic(folder / "export.json", result.text())
    write_report(out, "export", sentence(result), result.model_dump(mode="json"))


def export(
    step: ExportStep,
    base: Path,
    adapter: Path,
    prepared: Path | None,
    folder: Path,
    tokenizer: TextTokenizer,
    shape: tuple[llama.Llama, llama.Splitting] | None,
) -> ExportResult:
    """Fill the empty `folder`: merged/, model-f16.gguf. adapter: the base's own folder where it is a whole model."""
    import torch

    from finetune.export import merge
    from finetune.model import loading
    from finetune.train.adapter import write_model, write_tokenizer

    loading.use_threads()
    if shape is not None and adapter == base:
        model = loading.load_base(base, torch.device("cpu"), "float32")
        return ExportResult(gguf_tensors=_gguf(model, shape, base, tokenizer, step.name, folder / GGUF))
    probes = merge.probes_of(prepared, base)
    model, apart, agreement = merge.merged(base, adapter, probes)
    tensors = _gguf(model, shape, base, tokenizer, step.name, folder / GGUF) if shape is not None else None
    cast = kind = None
    if step.merge:
        (folder / MERGED).mkdir()
        kind = write_model(model, base, folder / MERGED)
        write_tokenizer(base, tokenizer.template.source, folder / MERGED)
        del model
        cast = merge.reread(folder / MERGED, apart, probes)
    return merge.as_result(agreement, cast, kind, tensors)


def _gguf(
    model: Any,
    shape: tuple[llama.Llama, llama.Splitting],
    base: Path,
    tokenizer: TextTokenizer,
    name: str,
    target: Path,
) -> int:
    from finetune.export import gguf

    return gguf.write(model.state_dict(), *shape, base, tokenizer, name, target)


def sentence(result: ExportResult) -> str:
    """What a user reads."""
    parts = []
    if result.dtype is not None:
        parts.append(
            f"merged in float32 and stored as {result.dtype}: the most likely token is that of base and adapter at "
            f"{result.cast_same:.1%} of the positions compared"
        )
    if result.gguf_tensors is not None:
        parts.append(f"GGUF in F16 with {result.gguf_tensors} tensors, read back and compared")
    return f"Exported the model: {'; '.join(parts)}."
