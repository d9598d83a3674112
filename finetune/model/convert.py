"""`python -m finetune convert --package NAME --out DIR`: the GGUF file of a Python package as safetensors and tokenizer.

Runs once a package, started by FETCH_MODEL under the cache's lock. The only command of fetching that imports torch. The
weights are written in float32: what GGUF's blocks decode to, exactly.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

from finetune.exit_codes import StepError


def main(argv: list[str]) -> None:
    """Convert.

    Args:
        argv: `--package`, an installed distribution; `--out`, the folder to write to.
    Raises:
        StepError: `model_not_found`: the package is not installed or carries no GGUF file.
    """
    parser = argparse.ArgumentParser(prog="python -m finetune convert", description=__doc__)
    parser.add_argument("--package", required=True)
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args(argv)
    convert(find_gguf(given.package), given.out)


def find_gguf(package: str) -> Path:
    """The GGUF file an installed distribution carries."""
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise StepError("model_not_found", f"The Python package {package} is not installed.", param="model") from None
    found = sorted(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    if not found:
        raise StepError("model_not_found", f"The Python package {package} carries no GGUF file.", param="model")
    return found[0]


def convert(gguf: Path, out: Path) -> None:
    """Write model and tokenizer of a GGUF file into `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # the weights are decoded by now: without this, transformers refuses to save what it takes for a quantised model
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    model.save_pretrained(out)
