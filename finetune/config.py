"""A fine-tuning job, defined once: the POST body, the step files and the command line are all validated here.

`JobSpec` is what a user asks for; `finetune/steps.py` holds what each step of the pipeline reads of it.
Imports pydantic and the standard library, never torch.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

MIN_EXAMPLES = 10
DEFAULT_OUTPUT = "s3://llamaflow-data/model/"

S3_URI = re.compile(r"^s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>[^\x00-\x1f\x7f]*)$")

AUTO_EPOCHS = "clamp(ceil(500 / examples), 1, 8)"
AUTO_BATCH = "the power of two next below examples / 32, within 1-16"
AUTO_LEARNING_RATE = (
    "1e-3 below 1e9 parameters, 5e-4 below 4e9, else 2e-4; a 20th of it for technique full, a 20th for method dpo; "
    "times learning_rate_multiplier"
)
AUTO_BETA = "0.1"

Technique = Literal["lora", "qlora", "full"]
MethodType = Literal["supervised", "dpo"]
Backend = Literal["auto", "own", "trl", "unsloth"]
Kernels = Literal["auto", "liger", "compile"]
Product = Literal["adapter", "model"]

MAKES: dict[Technique, Product] = {"lora": "adapter", "qlora": "adapter", "full": "model"}
"""What comes out of a technique: an adapter on its base, or a model that is a base of its own. Also the folder's name."""


def _number(value: Any) -> Any:
    """Take numbers written as unambiguous strings, because n8n sends them: "3", "2e-5"."""
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        return float(value)
    return value


def _flag(value: Any) -> Any:
    """Take "true" and "false", because n8n sends them; nothing else is guessed."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Bool = Annotated[bool, BeforeValidator(_flag)]
AutoEpochs = Annotated[Annotated[int, Field(ge=1, le=50)] | Literal["auto"], BeforeValidator(_number)]
AutoBatch = Annotated[Annotated[int, Field(ge=1, le=256)] | Literal["auto"], BeforeValidator(_number)]
AutoPositive = Annotated[Annotated[float, Field(gt=0, le=100)] | Literal["auto"], BeforeValidator(_number)]
LearningRate = Annotated[Annotated[float, Field(gt=0, le=1)], BeforeValidator(_number)]
Count = Annotated[Annotated[int, Field(ge=1)], BeforeValidator(_number)]
S3Prefix = Annotated[str, StringConstraints(pattern=S3_URI.pattern, max_length=1024)]


class Spec(BaseModel):
    """A strict object: an unknown field is an error naming the nearest known one, an explicit null is a field left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def nearest(name: str, known: list[str]) -> str | None:
    """The known field that `name` was probably meant to be, if any is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None


class Hyperparameters(Spec):
    """OpenAI's hyperparameters and what LlamaFlow adds. `auto` is resolved by PREPARE_DATA and written to `resolved.json`."""

    n_epochs: AutoEpochs = Field("auto", description=f"Passes over the data, 1-50. auto: {AUTO_EPOCHS}.")
    batch_size: AutoBatch = Field(
        "auto", description=f"Examples an optimiser step, exactly, 1-256. auto: {AUTO_BATCH}."
    )
    learning_rate_multiplier: AutoPositive = Field(
        "auto", description="Multiplies the automatic learning rate. auto: 1."
    )
    learning_rate: LearningRate | None = Field(
        None, description=f"Absolute; wins over the multiplier. Left out: {AUTO_LEARNING_RATE}."
    )
    beta: AutoPositive | None = Field(
        None, description=f"DPO only: how strongly the new model is held to the reference. auto: {AUTO_BETA}."
    )
    warmup_ratio: Float = Field(0.1, description="Share of the steps in which the learning rate rises.", ge=0, le=1)
    weight_decay: Float = Field(0.0, ge=0, le=1)
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    max_length: Int = Field(2048, description="Tokens an example at most; see data.overlength.", ge=8, le=1_048_576)
    gradient_accumulation_steps: Int = Field(1, description="Multiplies batch_size.", ge=1, le=1024)
    max_grad_norm: Float = Field(1.0, description="Gradient clipping; 0 for none.", ge=0)
    save_steps: Count | None = Field(
        None, description="Steps between checkpoints. Left out: ten in the whole training."
    )
    save_total_limit: Int = Field(3, description="Checkpoints kept.", ge=1, le=100)
    eval_steps: Count | None = Field(None, description="Steps between validations. Left out: once an epoch.")
    early_stopping_patience: Count | None = Field(
        None,
        description="Validations in a row without a lower loss that end the training; the best weights are taken. Left out: none.",
    )
    packing: Bool = Field(False, description="Several examples in one line, attention kept inside each.")


class Lora(Spec):
    """The adapter's shape (Hu et al. 2021, arXiv:2106.09685)."""

    r: Int = Field(16, description="Rank.", ge=1, le=1024)
    alpha: Float = Field(32, description="Scaling is alpha / r.", gt=0)
    dropout: Float = Field(0.0, ge=0, lt=1)
    target_modules: (
        list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,128}$")]] | Literal["all-linear"]
    ) = "all-linear"
    use_rslora: Bool = False
    use_dora: Bool = False


class Data(Spec):
    """How the dataset is read."""

    format: Literal[
        "auto", "messages", "prompt_completion", "text", "text_source", "instruction", "conversations", "preference"
    ] = Field("auto", description="auto: told by the first row's fields.")
    text_template: str = Field(
        "Texto: {text}\nFonte: {source}", description="How a {text, source} row is rendered.", max_length=4096
    )
    overlength: Literal["fail", "drop", "truncate"] = Field(
        "fail", description="What to do with examples over max_length."
    )
    train_on: Literal["assistant", "all", "last"] = Field("assistant", description="Which tokens carry loss.")
    validation_split: Float = Field(0.0, description="Share of the training rows held out for validation.", ge=0, lt=1)


Metric = Literal["loss", "token_accuracy", "exact_match", "contains", "chrf"]


class Gate(Spec):
    """The quality gate: the new version is promoted only if it passes, on held-out rows."""

    metric: Metric = Field(description="What decides. All but loss are better the higher, and lie between 0 and 1.")
    min: Annotated[Float, Field(ge=0, le=1)] | None = Field(None, description="What it must reach; not with loss.")
    better_than: Literal["base", "current"] = Field(
        "base", description="current: the version the adapter's name answers with; without one the base."
    )
    min_delta: Float = Field(0.0, description="By more than this it must be better; a tie is none.", ge=0)
    confidence: Annotated[Float, Field(ge=0.5, lt=1)] | None = Field(
        None, description="Such as 0.95: the paired interval at this level must lie above min_delta too."
    )


def _default_metrics() -> list[Metric]:
    return ["loss", "token_accuracy"]


class Evaluation(Spec):
    """What EVALUATE computes on the held-out rows."""

    prompts: list[Annotated[str, StringConstraints(max_length=8192)]] = Field(
        default_factory=list, description="Answered by the new adapter at the end, shown in the events.", max_length=32
    )
    metrics: list[Metric] = Field(default_factory=_default_metrics)
    gate: Gate | None = Field(None, description="Left out: the version is promoted without being compared.")
    on_reject: Literal["keep", "fail"] = Field(
        "keep", description="keep: the job succeeds, its version is not promoted. fail: the job fails."
    )


class Output(Spec):
    """Where the result goes. Every object lies below `<path>/<job id>/`."""

    path: S3Prefix = Field(DEFAULT_OUTPUT, description="s3://bucket/prefix/")
    merge: Bool = Field(False, description="Also a model folder, the adapter folded into the base: merged/.")
    gguf: Bool = Field(False, description="Also one GGUF file in F16, of Llama-shaped bases: model-f16.gguf.")
    archive: Literal["none", "zip", "tar.gz", "tar.zst"] = "none"
    register_as: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")] | None = Field(
        None, description="Adapter name; left out: a slug of the suffix."
    )


class Execution(Spec):
    """Where and within which limits the pipeline runs."""

    profile: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")] = Field(
        "local", description="A file of pipeline/conf/."
    )
    gpus: Int = Field(0, ge=0, le=64)
    gpu_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    memory: Annotated[str, StringConstraints(pattern=r"^\d{1,6} ?(MB|GB|TB)$")] | None = Field(
        None, description='Such as "16 GB".'
    )
    spot: Bool = False
    max_runtime_seconds: Count | None = Field(None, description="Counts the running of FINE_TUNE, not its waiting.")
    priority: Int = Field(0, ge=-100, le=100)
    backend: Backend = Field("auto", description="Who trains: own (auto), TRL's trainer, or Unsloth where installed.")
    kernels: Kernels = Field("auto", description="liger: Liger's, on a GPU where installed. compile: by torch.compile.")


class MethodOptions(Spec):
    """`method.supervised` or `method.dpo`."""

    hyperparameters: dict[str, Any] = Field(
        default_factory=dict, description="Hyperparameters; lora, data, … may stand here too."
    )


class Method(Spec):
    """OpenAI's `method`."""

    type: MethodType = "supervised"
    supervised: MethodOptions | None = None
    dpo: MethodOptions | None = None


class JobSpec(Spec):
    """The training part of a job: what it costs and what comes out depends on this alone."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f\s]+$")] = Field(
        description="A name of the models file, a Hugging Face id, id@revision, s3://… or ft:…."
    )
    training_file: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="file-…, s3://bucket/key or a prefix s3://bucket/dir/."
    )
    validation_file: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    suffix: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f:/]+$")] | None = (
        Field(None, description="Part of the new model's name.")
    )
    seed: Int = Field(42, ge=0, le=2**31 - 1)
    technique: Technique = Field(
        "lora",
        description="lora: an adapter. qlora: the same over a base held in 4 bits. full: every weight; makes a model.",
    )
    preset: Literal["text_source"] | None = None
    method: Method = Field(default_factory=Method)
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    lora: Lora = Field(default_factory=Lora)
    data: Data = Field(default_factory=Data)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    output: Output = Field(default_factory=Output)
    execution: Execution = Field(default_factory=Execution)

    @model_validator(mode="before")
    @classmethod
    def _one_place(cls, data: Any) -> Any:
        return gather(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _rows_for_the_method(self) -> JobSpec:
        if (self.data.format == "preference") != (self.method.type == "dpo"):
            wanted = "preference" if self.method.type == "dpo" else "any other format, or method.type 'dpo'"
            raise ValueError(
                f"data.format={self.data.format!r} does not go with method.type={self.method.type!r}: expected {wanted}"
            )
        return self


NOT_TOGETHER: tuple[tuple[str, tuple[Any, ...], str, tuple[Any, ...], str], ...] = (
    ("technique", ("full",), "execution.backend", ("unsloth",), "Unsloth trains adapters here; use backend own"),
    ("method.type", ("dpo",), "execution.backend", ("unsloth",), "preferences are trained by TRL; leave it out"),
    ("method.type", ("dpo",), "hyperparameters.packing", (True,), "pairs are not packed; leave it out"),
    ("execution.backend", ("trl", "unsloth"), "hyperparameters.packing", (True,), "our own loop packs; leave one out"),
    ("execution.backend", ("trl", "unsloth"), "execution.kernels", ("liger", "compile"), "leave one of the two out"),
    ("technique", ("full",), "output.merge", (True,), "there is no adapter to merge; the result is a whole model"),
    ("technique", ("full",), "output.gguf", (True,), "only an adapter is exported so; leave it out"),
)
"""Two fields with values that do not go together, and the way out."""


def unsupported(spec: JobSpec) -> tuple[str, str] | None:
    """The first field of `spec` that cannot be done (alone or with another), with the sentence to answer; None if all can."""
    if spec.hyperparameters.beta is not None and spec.method.type != "dpo":
        return "hyperparameters.beta", "hyperparameters.beta is for method.type 'dpo' alone. Leave it out."
    if spec.technique == "full" and spec.output.register_as is not None:
        return (
            "output.register_as",
            "output.register_as names an adapter; technique 'full' makes a model. Leave it out.",
        )
    if (
        spec.hyperparameters.early_stopping_patience is not None
        and spec.validation_file is None
        and spec.data.validation_split == 0
    ):
        return (
            "hyperparameters.early_stopping_patience",
            "hyperparameters.early_stopping_patience needs held-out rows: give validation_file or data.validation_split.",
        )
    if spec.hyperparameters.early_stopping_patience is not None and spec.execution.backend not in ("auto", "own"):
        return (
            "hyperparameters.early_stopping_patience",
            f"execution.backend={spec.execution.backend!r} does not stop early. Leave one of the two out.",
        )
    for one, values, other, against, out in NOT_TOGETHER:
        if (value := _at(spec, one)) in values and (given := _at(spec, other)) in against:
            return other, f"{other}={given!r} does not go with {one}={value!r}: {out}."
    if (gate := spec.evaluation.gate) is not None and gate.metric == "loss" and gate.min is not None:
        return (
            "evaluation.gate.min",
            "evaluation.gate.min does not go with metric 'loss', which is better the lower. Leave it out.",
        )
    if gate is not None and spec.validation_file is None and spec.data.validation_split == 0:
        return (
            "evaluation.gate",
            "evaluation.gate compares on held-out rows, and there are none: give validation_file or data.validation_split.",
        )
    return None


def _at(spec: JobSpec, path: str) -> Any:
    node: Any = spec
    for part in path.split("."):
        node = getattr(node, part)
    return node


TEXT_SOURCE_PRESET: dict[str, dict[str, Any]] = {
    "hyperparameters": {
        "n_epochs": 1,
        "batch_size": 8,
        "learning_rate": 2e-5,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.0,
        "max_length": 128,
        "save_steps": 100,
        "save_total_limit": 2,
    },
    "data": {"format": "text_source", "overlength": "truncate", "train_on": "all"},
}
"""The text_source recipe for {text, source} rows: one epoch, batch 8, learning rate 2e-5 falling linearly, 128 tokens."""

_GROUPS = ("hyperparameters", "lora", "data", "evaluation", "output", "execution")


def gather(body: dict[str, Any]) -> dict[str, Any]:
    """Bring every option to its one place at the top level.

    Options may be given at the top level or inside `method.<type>.hyperparameters` (the official client can send them only
    there). The same value twice is fine; two values are an error. A preset fills what is left out.

    Args:
        body: A job as a user sent it. Not changed.
    Returns:
        The body with its groups merged and `method` reduced to its type.
    Raises:
        ValueError: An option is given twice with two values.
    """
    merged = {key: value for key, value in body.items() if value is not None}
    method = merged.get("method")
    if isinstance(method, dict):
        kind = method.get("type", "supervised")
        options = method.get(kind) if isinstance(kind, str) else None
        inner = options.get("hyperparameters") if isinstance(options, dict) else None
        if isinstance(inner, dict):
            nested = {key: value for key, value in inner.items() if key not in _GROUPS}
            _merge(merged, "hyperparameters", nested)
            for group in _GROUPS[1:]:
                if isinstance(inner.get(group), dict):
                    _merge(merged, group, inner[group])
            merged["method"] = {
                key: ({k: v for k, v in value.items() if k != "hyperparameters"} if key == kind else value)
                for key, value in method.items()
            }
    method = merged.get("method")
    if isinstance(method, dict) and method.get("type") == "dpo":
        data = merged.get("data")
        if data is None or (isinstance(data, dict) and data.get("format") in (None, "auto")):
            merged["data"] = {**(data or {}), "format": "preference"}
    if merged.get("preset") == "text_source":
        for group, values in TEXT_SOURCE_PRESET.items():
            given = merged.get(group)
            merged[group] = (
                {**values, **given} if isinstance(given, dict) else (dict(values) if given is None else given)
            )
    return merged


def _merge(body: dict[str, Any], group: str, values: dict[str, Any]) -> None:
    given = body.get(group)
    given = dict(given) if isinstance(given, dict) else {}
    for key, value in values.items():
        if value is None:
            continue
        if given.get(key) is not None and _number(given[key]) != _number(value):
            raise ValueError(
                f"{group}.{key} is given twice with two values ({given[key]!r} and {value!r}); give it once"
            )
        given[key] = value
    if given:
        body[group] = given
