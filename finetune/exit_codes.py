"""How a step ends: one table of names, exit statuses, fault, retry, and the sentences a user reads.

The table is the only home of these facts. `pipeline/conf/exit_codes.config` is generated from it, the worker settles
jobs with it, the API documents it. Statuses lie in 64-99: below are shells' and Python's own, from 126 on are signals.
Imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Who can do something about a failure."""

    USER = "user"
    SERVICE = "service"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True)
class ExitCode:
    """One way a step can end.

    Attributes:
        name: The `error.code` of a failed job, stable.
        status: The process exit status, 64-99.
        fault: Who can mend it.
        retry: Whether Nextflow starts the task again.
        sentence: What happened, for a user.
        remedy: What to do about it, for a user.
    """

    name: str
    status: int
    fault: Fault
    retry: bool
    sentence: str
    remedy: str


_U, _S, _I = Fault.USER, Fault.SERVICE, Fault.INFRASTRUCTURE

TABLE: tuple[ExitCode, ...] = (
    ExitCode(
        "invalid_step_file",
        64,
        _S,
        False,
        "A step was started with a file it cannot read.",
        "Check the step file against docs/pipeline.md.",
    ),
    ExitCode(
        "invalid_file_format",
        65,
        _U,
        False,
        "The dataset has rows that cannot be used.",
        "Correct the lines named and submit the job again.",
    ),
    ExitCode(
        "file_not_found",
        66,
        _U,
        False,
        "The dataset is not where the job says.",
        "Check the bucket and key of training_file and validation_file.",
    ),
    ExitCode(
        "invalid_n_examples",
        67,
        _U,
        False,
        "The dataset has too few examples.",
        "Add examples: at least 10 are needed.",
    ),
    ExitCode(
        "no_trainable_tokens",
        68,
        _U,
        False,
        "No token of the dataset would be trained.",
        'Give every example an assistant answer, or set data.train_on to "all".',
    ),
    ExitCode(
        "s3_unavailable",
        69,
        _I,
        True,
        "S3 did not answer.",
        "It is tried again by itself; check the S3 endpoint if it stays so.",
    ),
    ExitCode(
        "internal_error",
        70,
        _S,
        False,
        "The step stopped on an error of its own.",
        "Read the stage's log; if it says nothing you can act on, report it with that log.",
    ),
    ExitCode(
        "overlength_examples",
        71,
        _U,
        False,
        "Examples are longer than max_length.",
        'Shorten them, raise hyperparameters.max_length, or set data.overlength to "drop" or "truncate".',
    ),
    ExitCode(
        "special_tokens_in_text",
        72,
        _U,
        False,
        "Text of the dataset contains special tokens of the model.",
        "Remove them from the lines named.",
    ),
    ExitCode(
        "model_not_found",
        73,
        _U,
        False,
        "The model or its revision does not exist.",
        "Check model (id@revision), or add it to models.toml.",
    ),
    ExitCode(
        "model_gated",
        74,
        _U,
        False,
        "The model is gated.",
        "Accept its licence on the hub and set HF_TOKEN for the worker.",
    ),
    ExitCode("access_denied", 75, _U, False, "S3 refused access.", "Check the credentials and the bucket policy."),
    ExitCode(
        "object_changed",
        76,
        _U,
        False,
        "The dataset changed after the job was checked.",
        "Submit the job again; leave the object unchanged while it runs.",
    ),
    ExitCode(
        "loss_diverged",
        77,
        _U,
        False,
        "The loss became NaN or infinite.",
        "Lower the learning rate, or look for broken examples.",
    ),
    ExitCode(
        "out_of_memory",
        78,
        _U,
        True,
        "The training ran out of memory.",
        "Lower batch_size or max_length, or give the job more memory.",
    ),
    ExitCode(
        "model_unavailable",
        79,
        _I,
        True,
        "The model could not be fetched: its source did not answer.",
        "It is tried again by itself; check the network or the models file.",
    ),
    ExitCode("paused", 80, _U, False, "The training was paused.", "Resume the job."),
    ExitCode(
        "interrupted",
        81,
        _I,
        True,
        "The step was asked to stop before it was done.",
        "It goes on from its last checkpoint.",
    ),
    ExitCode(
        "max_runtime_exceeded",
        82,
        _U,
        False,
        "The training took longer than execution.max_runtime_seconds.",
        "Raise the limit; the last checkpoint is kept.",
    ),
    ExitCode(
        "unsupported_model",
        83,
        _U,
        False,
        "The model cannot be trained here.",
        "Choose a causal language model with safetensors weights and no remote code.",
    ),
    ExitCode(
        "disk_full",
        84,
        _I,
        False,
        "The disk is full.",
        "Free space below LLAMAFLOW_RUNS_DIR or LLAMAFLOW_CACHE_DIR and submit the job again.",
    ),
    ExitCode(
        "manifest_mismatch",
        85,
        _S,
        False,
        "An adapter does not match its manifest or its base.",
        "Use the base the manifest names, or train again.",
    ),
    ExitCode(
        "gate_rejected",
        86,
        _U,
        False,
        "The new adapter was not better than the one it was compared with.",
        "See evaluation in the manifest.",
    ),
    ExitCode(
        "unsupported_operation",
        87,
        _U,
        False,
        "The job asks for something this version does not offer.",
        "See the message for what to leave out.",
    ),
    ExitCode(
        "crash_loop",
        88,
        _S,
        False,
        "The run was lost three times without any progress between.",
        "Look for what ends it: the machine's memory, its disk, or its log. Then submit the job again.",
    ),
    ExitCode(
        "ownership_lost",
        89,
        _I,
        True,
        "Another process trains in this one's place, or the run it belongs to is over.",
        "There is nothing to do: the training goes on where it was taken over.",
    ),
    ExitCode(
        "service_unavailable",
        90,
        _I,
        True,
        "LlamaFlow did not answer the training.",
        "It is tried again by itself; check that tasks reach LLAMAFLOW_TASKS_URL.",
    ),
    ExitCode(
        "merge_mismatch",
        91,
        _S,
        False,
        "The merged model does not compute what base and adapter compute.",
        "Leave output.merge and output.gguf out: the adapter itself is not concerned.",
    ),
)

BY_NAME: dict[str, ExitCode] = {code.name: code for code in TABLE}
BY_STATUS: dict[int, ExitCode] = {code.status: code for code in TABLE}

SIGNALLED = (130, 137, 143)
"""Exit statuses of tasks ended from outside (INT, KILL, TERM): node lost, preempted, or killed for memory."""


class StepError(Exception):
    """A step cannot go on, for a reason in the table.

    Args:
        name: A name of the table.
        message: What a user reads; the table's sentence and remedy when left out.
        param: The request field it is about, such as `training_file`.
        lines: Line numbers of the dataset it is about.
    """

    def __init__(
        self, name: str, message: str | None = None, *, param: str | None = None, lines: list[int] | None = None
    ) -> None:
        self.code = BY_NAME[name]
        self.message = message or f"{self.code.sentence} {self.code.remedy}"
        self.param = param
        self.lines = lines or []
        super().__init__(self.message)

    def as_error(self) -> dict[str, str | None]:
        """The `error` object of a job: code, message, param."""
        return {"code": self.code.name, "message": self.message, "param": self.param}


def nextflow_config() -> str:
    """The text of `pipeline/conf/exit_codes.config`: which exit statuses are tried again."""
    retried = sorted([code.status for code in TABLE if code.retry] + list(SIGNALLED))
    return (
        "// Generated from finetune/exit_codes.py by `python -m finetune exit-codes`; a test compares.\n"
        "// Integer.MAX_VALUE is a task without an exit status: its node is gone.\n"
        "process {\n"
        f"    errorStrategy = {{ task.exitStatus in {retried} || task.exitStatus == Integer.MAX_VALUE ? 'retry' : 'terminate' }}\n"
        "    maxRetries = 3\n"
        "}\n"
    )
