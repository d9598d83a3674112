"""Folding an adapter into its base: what the merged model computes, in float32 and as stored, and what merging in bfloat16 would do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.__main__ import main
from finetune.config import Lora
from finetune.exit_codes import StepError
from finetune.export import lineage, merge
from finetune.export.step import run
from finetune.inference import infer
from finetune.model import loading
from finetune.steps import ExportResult, ExportStep
from tests.finetune.export.conftest import Result

pytestmark = pytest.mark.train

SHAPES = [Lora(r=8, alpha=64), Lora(r=4, use_rslora=True), Lora(r=4, use_dora=True)]


def as_bfloat16(base: Path, folder: Path) -> Path:
    """The same base, stored in bfloat16."""
    shutil.copytree(base, folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", SHAPES, ids=lambda lora: f"rs{lora.use_rslora:d}do{lora.use_dora:d}")
def test_a_merged_folder_answers_as_base_and_adapter_do(
    result: Callable[..., Result], lora: Lora, tmp_path: Path
) -> None:
    made = result(lora)
    run(ExportStep(merge=True), made.inputs, tmp_path)
    told = ExportResult.model_validate_json((tmp_path / "exported" / "export.json").read_bytes())
    folder = tmp_path / "exported" / "merged"
    probes = merge.probes_of(None, made.base)
    plain = merge.logits(AutoModelForCausalLM.from_pretrained(folder).eval(), probes)
    cpu = torch.device("cpu")
    apart = merge.logits(loading.load_adapter(loading.load_base(made.base, cpu, "float32"), made.adapter), probes)
    untouched = merge.logits(loading.load_base(made.base, cpu, "float32"), probes)
    assert merge.compare(apart, plain).difference < 1e-4
    assert merge.compare(apart, untouched).difference > 0.1
    assert (told.dtype, told.same, told.cast_same) == ("float32", 1.0, 1.0)
    said = AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "é"}], tokenize=False)
    assert said == "<|im_start|>user\né<|im_end|>\n"


def test_a_bfloat16_base_gives_a_bfloat16_model_nearer_to_the_truth_than_a_merge_in_bfloat16(
    result: Callable[..., Result], base: Path, tmp_path: Path
) -> None:
    base = as_bfloat16(base, tmp_path / "bf16")
    made = result(Lora(r=8), on=base)
    run(ExportStep(merge=True), made.inputs, tmp_path)
    folder = tmp_path / "exported" / "merged"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    cpu, probes = torch.device("cpu"), merge.probes_of(None, base)
    apart = merge.logits(loading.load_adapter(loading.load_base(base, cpu, "float32"), made.adapter), probes)
    careless = loading.load_adapter(loading.load_base(base, cpu, "bfloat16"), made.adapter).merge_and_unload()
    drift = merge.compare(apart, merge.logits(careless, probes))
    ours = merge.reread(folder, apart, probes)
    told = ExportResult.model_validate_json((tmp_path / "exported" / "export.json").read_bytes())
    assert told.difference is not None
    assert told.difference < 1e-4 < ours.difference < drift.difference
    assert told.cast_difference == pytest.approx(ours.difference)


def test_a_merge_that_drifts_is_refused(
    result: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "TOLERANCE", 0.0)
    with pytest.raises(StepError, match="answer otherwise") as refused:
        run(ExportStep(merge=True), result().inputs, tmp_path)
    assert refused.value.code.name == "merge_mismatch"
    assert not (tmp_path / "exported" / "merged").exists()


def test_an_adapter_of_another_base_is_refused_by_its_manifest(result: Callable[..., Result], tmp_path: Path) -> None:
    made = result()
    made.write_manifest()
    assert lineage.require(made.adapter, made.base) is not None
    other = shutil.copytree(made.base, tmp_path / "other")
    (other / "chat_template.jinja").write_text("another")
    with pytest.raises(StepError, match="is another base") as refused:
        run(ExportStep(merge=True), made.inputs | {"base": other}, tmp_path)
    assert refused.value.code.name == "manifest_mismatch"
    with pytest.raises(StepError, match="is another base"):
        infer.main(["--base", str(other), "--adapter", str(made.adapter), "--prompt", "x"])
    (made.adapter / "adapter_config.json").write_text((made.adapter / "adapter_config.json").read_text() + "\n")
    with pytest.raises(StepError, match="not the file that its manifest lists"):
        run(ExportStep(merge=True), made.inputs, tmp_path)


def test_it_works_by_hand(result: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = result()
    monkeypatch.chdir(tmp_path)
    given = ["export", "--base", str(made.base), "--adapter", str(made.adapter), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    assert (tmp_path / "out" / "exported" / "merged" / "model.safetensors").is_file()
    assert main([*given, "--gguf"]) == 87
    assert "GGUF has no name for" in json.loads((tmp_path / "error.json").read_text())["message"]
    assert main(["export", "--base", str(made.base)]) == 64
