"""The trainer's one door to the environment: every variable it reads, with its meaning and default.

Nothing else in `finetune` reads `os.environ`. Credentials come from a 0600 file of NAME=value lines where one is named,
else from the environment; they are never printed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune import gpu
from finetune.exit_codes import StepError

SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN",
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LLAMAFLOW_DATABASE_URL", "LLAMAFLOW_ENGINE_TOKEN", "LLAMAFLOW_API_KEY",
)  # fmt: skip
"""Variables that no child process of a step is given."""


@dataclass(frozen=True)
class S3Access:
    """How S3 is reached. Without keys boto3's own chain decides (profile, role of the machine).

    Attributes:
        endpoint: URL of the server; None for AWS.
        region: Signing region; None when nothing names one.
        access_key: And `secret_key`, `session_token`: kept out of every repr.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)


def s3_access(credentials_file: str | None = None) -> S3Access:
    """What is known about S3: from the file if one is named, else from the environment.

    `AWS_ACCESS_KEY_ID`/`AWS_SECRET_ACCESS_KEY` or the shorter `AWS_ACCESS_KEY`/`AWS_SECRET_KEY`, `AWS_SESSION_TOKEN`,
    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`. Endpoint and region may stand in
    the environment although a file gives the keys.

    Raises:
        StepError: `access_denied`: the file cannot be read, or one half of the key pair is missing.
    """
    keys = _read(credentials_file) if credentials_file else dict(os.environ)
    places = {**os.environ, **keys}
    access = S3Access(
        endpoint=_first(places, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        region=_first(places, "AWS_REGION", "AWS_DEFAULT_REGION"),
        access_key=_first(keys, "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"),
        secret_key=_first(keys, "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"),
        session_token=_first(keys, "AWS_SESSION_TOKEN"),
    )
    if (access.access_key is None) != (access.secret_key is None):
        raise StepError("access_denied", "Only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set. Set both.")
    return access


def hub_token(credentials_file: str | None = None) -> str | None:
    """`HF_TOKEN`, from the credentials file if it has one, else from the environment. Only FETCH_MODEL asks for it."""
    given = _read(credentials_file) if credentials_file else {}
    return _first({**os.environ, **given}, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def hub_offline() -> bool:
    """`HF_HUB_OFFLINE`: the hub is not to be asked; bases already in the cache still serve."""
    return _flag("HF_HUB_OFFLINE") or _flag("TRANSFORMERS_OFFLINE")


def cache_dir(given: str | None = None) -> Path:
    """The content-addressed cache: what the step file names, else `LLAMAFLOW_CACHE_DIR`, else ~/.cache/llamaflow. Absolute."""
    return Path(given or os.environ.get("LLAMAFLOW_CACHE_DIR") or "~/.cache/llamaflow").expanduser().absolute()


def prices() -> dict[str, float]:
    """`LLAMAFLOW_PRICES`: a JSON object of prices an hour, by profile and device; for the estimate by hand."""
    try:
        found = json.loads(os.environ.get("LLAMAFLOW_PRICES") or "{}")
        return {str(name): float(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError):
        message = "LLAMAFLOW_PRICES is no JSON object of numbers."
        raise StepError("invalid_step_file", message) from None


def currency() -> str:
    """`LLAMAFLOW_CURRENCY`: what those prices are in. Default: USD."""
    return os.environ.get("LLAMAFLOW_CURRENCY") or "USD"


def image() -> str | None:
    """`LLAMAFLOW_IMAGE`: the container image these steps run in, by digest, for the manifest. An image sets it for itself."""
    return os.environ.get("LLAMAFLOW_IMAGE") or None


def adapter_cache_bytes() -> int:
    """`LLAMAFLOW_ADAPTER_CACHE_BYTES`: how much the engine keeps of adapters it brought from S3. Default 10 GiB."""
    return int(os.environ.get("LLAMAFLOW_ADAPTER_CACHE_BYTES") or 10 << 30)


def upload_patience() -> float:
    """`LLAMAFLOW_UPLOAD_PATIENCE`: seconds that UPLOAD_MODEL waits for an S3 that is away. Default: a quarter of an hour."""
    return float(os.environ.get("LLAMAFLOW_UPLOAD_PATIENCE") or 900)


def models_file() -> Path | None:
    """`LLAMAFLOW_MODELS_FILE`: a models.toml instead of the one that comes with LlamaFlow."""
    name = os.environ.get("LLAMAFLOW_MODELS_FILE")
    return Path(name).expanduser() if name else None


def device() -> str:
    """`LLAMAFLOW_DEVICE`: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""
    return os.environ.get("LLAMAFLOW_DEVICE") or "auto"


def take_gpu() -> None:
    """Show this process one GPU of several, one that no other step has taken. To be called before torch is imported.

    Nothing is chosen where `LLAMAFLOW_DEVICE` names a device, or where torchrun has started one process for each.
    """
    if device() != "auto" or "LOCAL_RANK" in os.environ:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = gpu.listed() if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    if len(names) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu.own(names)


def ranks() -> tuple[int, int]:
    """`RANK` and `WORLD_SIZE`, which torchrun sets: this process's number and how many train together. Default 0 and 1."""
    return int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int | None:
    """`LOCAL_RANK`, which torchrun sets: which of this machine's accelerators is this process's."""
    text = os.environ.get("LOCAL_RANK") or ""
    return int(text) if text.isdigit() else None


def threads() -> int | None:
    """`LLAMAFLOW_THREADS`, else `OMP_NUM_THREADS`: CPU threads of the arithmetic. None leaves it to the library."""
    text = os.environ.get("LLAMAFLOW_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return int(text) if text.isdigit() and int(text) > 0 else None


def processors() -> int:
    """How many processors this process was given: `threads()` if that is said, else what the scheduler and the cgroup allow."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such cgroup, or "max": no limit
        pass
    return threads() or allowed


def one_tokenizer_thread() -> None:
    """Let the tokenizers library work in this thread alone: for a process that is one of as many as there are processors."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"


def yield_while_waiting() -> None:
    """Let threads of the arithmetic sleep while they wait for each other, unless the environment says otherwise.

    To be called before torch is imported. Spinning is some percent quicker on an idle machine, and where the cores are
    shared it is many times slower: each step of a small model then waits for whole slices of the scheduler.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault(
            "GOMP_SPINCOUNT", "1000"
        )  # some microseconds first: what an idle machine gains by spinning


def precision() -> Literal["auto", "float32"]:
    """`LLAMAFLOW_FP32=1` trains and answers in float32 even where bfloat16 would be quicker."""
    return "float32" if _flag("LLAMAFLOW_FP32") else "auto"


def engine_token() -> str | None:
    """`LLAMAFLOW_ENGINE_TOKEN`: what callers of the inference engine must show."""
    return os.environ.get("LLAMAFLOW_ENGINE_TOKEN") or None


def stub_seconds() -> float:
    """`LLAMAFLOW_STUB_SECONDS`: how long the stub of FINE_TUNE pretends to train, for tests of the orchestration. Default 0."""
    return float(os.environ.get("LLAMAFLOW_STUB_SECONDS") or 0)


def stub_faults() -> list[str]:
    """`LLAMAFLOW_STUB_FAULT`: comma-separated `step=code` or `step=code:once`: those stubs end so, for tests."""
    return [fault for fault in os.environ.get("LLAMAFLOW_STUB_FAULT", "").split(",") if fault]


def stub_slow() -> dict[str, float]:
    """`LLAMAFLOW_STUB_SLOW`: comma-separated `step=seconds`: those stubs last so long, for tests that break in on a step."""
    pairs = (pair.partition("=") for pair in os.environ.get("LLAMAFLOW_STUB_SLOW", "").split(",") if pair)
    return {step: float(seconds) for step, _, seconds in pairs}


def stub_line() -> int:
    """`LLAMAFLOW_STUB_LINE`: how long a line the stub of FINE_TUNE prints, for tests of logs. Default 0: none."""
    return int(os.environ.get("LLAMAFLOW_STUB_LINE") or 0)


def stub_uploads() -> bool:
    """`LLAMAFLOW_STUB_UPLOAD=1`: the stub of UPLOAD_MODEL really uploads the stubs' files, for tests that look at S3."""
    return _flag("LLAMAFLOW_STUB_UPLOAD")


def for_child(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment without secrets, and `extra`: for a subprocess of a step."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS} | extra


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")


def _first(values: dict[str, str], *names: str) -> str | None:
    return next((values[name] for name in names if values.get(name)), None)


def _read(name: str) -> dict[str, str]:
    """The NAME=value lines of a file; `export ` and quotes around values are taken off, `#` lines passed over."""
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is no UTF-8 text"
        raise StepError("access_denied", f"The S3 credentials file {name} cannot be read: {reason}.") from None
    pairs = (
        line.strip().removeprefix("export ").partition("=")
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    )
    return {key.strip(): value.strip().strip("'\"") for key, equals, value in pairs if equals}
