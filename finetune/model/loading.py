"""A base and its LoRA adapter in memory, for training and evaluating: from checked local folders only.

Safetensors only, no code that comes with a model, attention by sdpa where the model has it. The base is held in bfloat16
where the machine computes in it, else in float32, or in 4 bits; the adapter's weights are always float32. Reads folders,
never a network.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from finetune import environment
from finetune.config import Lora
from finetune.exit_codes import StepError
from finetune.model import cache, targets

Precision = Literal["bfloat16", "float32"]

CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""A processor with one of these multiplies bfloat16 matrices itself; others emulate it, slower than float32."""


def device() -> torch.device:
    """Where to compute: `LLAMAFLOW_DEVICE`, where `auto` is an NVIDIA or AMD accelerator if there is one, else the CPU."""
    name = environment.device()
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = environment.local_rank()
    return torch.device("cuda" if own is None else f"cuda:{own}")


def precision(where: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """What the base's weights are held in on `where`; float32 if `LLAMAFLOW_FP32` is set.

    Args:
        where: The device.
        cpuinfo: Where Linux lists the processor's flags; where it is not there, float32 is taken.
    """
    if environment.precision() == "float32":
        return "float32"
    if where.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if where.type != "cpu" or not cpuinfo.is_file():
        return "float32"
    words = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    return "bfloat16" if CPU_FLAGS & set(words) else "float32"


def use_threads() -> None:
    """Give the arithmetic as many CPU threads as the environment says."""
    if (threads := environment.threads()) is not None:
        torch.set_num_threads(threads)


def load_base(folder: Path, where: torch.device, kind: Precision, four_bit: bool = False) -> Any:
    """A causal language model, in evaluation mode, without anything its generation_config.json asks for.

    Args:
        folder: A base's files, as FETCH_MODEL leaves them.
        where: The device.
        kind: What its weights are held in, or computed in if they are held in 4 bits.
        four_bit: Hold its linear layers in 4 bits: nf4, scales quantised too (Dettmers et al. 2023, arXiv:2305.14314).
    Returns:
        A transformers model.
    Raises:
        StepError: `unsupported_model`: pickled weights, code of its own, no causal language model, weights missing;
            `unsupported_operation`: bitsandbytes, which holds weights in 4 bits, is not here.
    """
    disable_progress_bar()
    _refuse(folder)
    how = {"quantization_config": _nf4(kind), "device_map": {"": str(where)}} if four_bit else {}
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, kind),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **how,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as problem:
        if is_out_of_memory(problem):
            raise
        why = (str(problem).splitlines() or ["no reason given"])[0]
        raise StepError("unsupported_model", f"The base cannot be loaded: {why}", param="model") from problem
    if missing := sorted(told["missing_keys"]):
        told_user = f"The base's files lack {len(missing)} of its weights, such as {missing[0]}."
        raise StepError("unsupported_model", told_user, param="model")
    model.generation_config = GenerationConfig()
    return (model if four_bit else model.to(where)).eval()


def _nf4(kind: Precision) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        told = "technique='qlora' needs the package bitsandbytes, which is not installed here. Install llamaflow[train], or use technique 'lora'."
        raise StepError("unsupported_operation", told, param="technique")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, kind),
    )


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """Put a new adapter on a base: its weights depend on `seed` alone, and it changes nothing before it is trained.

    Args:
        model: What `load_base` gave.
        lora: Its shape; `all-linear` is every linear layer but the output, and but the experts of a mixture.
        seed: Set before the weights are made.
    Returns:
        A peft model; only the adapter's weights, float32, can be trained.
    Raises:
        StepError: `unsupported_model`: the base has no layers of the names asked for.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets.chosen(model, lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with as_known(), targets.by_name(model):
            return get_peft_model(model, config)
    except ValueError as problem:
        raise StepError("unsupported_model", f"LoRA does not fit this base: {problem}", param="lora") from problem


def go_on(model: Any, folder: Path, lora: Lora, seed: int) -> Any:
    """Put a trained adapter on its base, to be trained further: its shape stays as it is.

    Args:
        model: What `load_base` gave.
        folder: A PEFT folder in safetensors.
        lora: Only its dropout is taken: the rest is the adapter's own.
        seed: Of what is random from here on.
    Raises:
        StepError: `manifest_mismatch`: the adapter is not one of this base.
    """
    torch.manual_seed(seed)
    try:
        with as_known(), targets.by_name(model):
            config = LoraConfig.from_pretrained(str(folder))
            config.lora_dropout, config.inference_mode = lora.dropout, False
            return PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=True, use_safetensors=True)
    except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError, OSError) as problem:
        why = str(problem).splitlines()[0]
        raise StepError("manifest_mismatch", f"The adapter to go on from does not fit its base: {why}") from problem


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a trained adapter on a base, not to be trained further.

    Args:
        model: What `load_base` gave.
        folder: A PEFT folder in safetensors.
    Raises:
        StepError: `manifest_mismatch`: the adapter is not one of this base.
    """
    try:
        with as_known(), targets.by_name(model):
            return PeftModel.from_pretrained(model, str(folder), use_safetensors=True).eval()
    except (ValueError, RuntimeError, KeyError, SafetensorError, OSError) as problem:
        why = str(problem).splitlines()[0]
        raise StepError("manifest_mismatch", f"The adapter does not fit its base: {why}") from problem


@contextmanager
def as_known() -> Iterator[None]:
    """Keep still about what peft still asks of transformers by old names: nobody who reads a training's log can mend it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or in main memory."""
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(problem)


def _refuse(folder: Path) -> None:
    """What a glance at the files shows to be unusable."""
    try:
        cache.wanted([path.name for path in folder.iterdir()])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as problem:
        told = f"The base's folder cannot be read: {problem.strerror}."
        raise StepError("unsupported_model", told, param="model") from None
    except ValueError:
        raise StepError("unsupported_model", "The base's config.json is no JSON.", param="model") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CONFIG_MAPPING:
        code = "; it brings code of its own, which is never run" if "auto_map" in config else ""
        told = f"The base's model type {kind!r} is not one that transformers knows{code}."
        raise StepError("unsupported_model", told, param="model")
