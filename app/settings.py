"""The one door to the environment: every `LLAMAFLOW_*` variable with its meaning and default.

Read once at start (`get_settings()`), then passed on. S3 is set by the usual `AWS_*` names, which boto3 users know.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent

SplitList = Annotated[list[str], NoDecode]


class Settings(BaseSettings):
    """All settings of the service. Names are upper-cased with the prefix LLAMAFLOW_ unless an alias is given."""

    model_config = SettingsConfigDict(
        env_prefix="LLAMAFLOW_", extra="ignore", env_ignore_empty=True, populate_by_name=True
    )

    # Where things lie
    state_dir: Path = Field(
        Path(".llamaflow"), description="State of the embedded service: keys, database, objects, runs, logs."
    )
    runs_dir: Path | None = Field(
        None, description="A folder a job: step files, train/, Nextflow's launch folder. Default: <state>/runs."
    )
    cache_dir: Path | None = Field(
        None, description="Content-addressed cache of datasets, bases and tokens. Default: <state>/cache."
    )
    tools_dir: Path | None = Field(None, description="JRE and jars. Default: <state>/tools.")
    models_file: Path | None = Field(None, description="models.toml; default: the one that comes with LlamaFlow.")
    nextflow: Path | None = Field(None, description="A Nextflow launcher to use instead of the embedded one.")

    # The service
    host: str = Field("127.0.0.1", description="Address the API binds to.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 for a free one.")
    public_url: str | None = Field(None, description="How users reach the API, for links it prints.")
    database_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host:port/name; default: the embedded Postgres."
    )
    engine_url: str | None = Field(None, description="The inference engine, such as http://127.0.0.1:8001.")
    engine_token: SecretStr | None = Field(None, description="Bearer token between API and engine.")
    vllm_urls: SplitList = Field(
        [], description="Comma-separated: servers of vLLM that answer chats instead of the engine. See docs/serving.md."
    )
    vllm_token: SecretStr | None = Field(None, description="What vLLM's servers want to be shown (--api-key).")
    vllm_adapters_dir: Path | None = Field(
        None,
        description="A folder that vLLM's servers see too: adapters are brought there. Default: <state>/vllm-adapters.",
    )
    vllm_adapters_seen_at: str | None = Field(None, description="Where vLLM's servers see that folder, if elsewhere.")
    vllm_max_adapters: int = Field(16, ge=1, description="Adapters one of them holds (--max-cpu-loras).")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field("json", pattern="^(json|console)$", description="json or console.")

    # Limits
    max_body_bytes: int = Field(1 << 20, description="Of a JSON request.")
    max_upload_bytes: int = Field(512 << 20, description="Of an uploaded file.")
    validate_bytes: int = Field(256 << 20, description="How much of a dataset is read before the job is queued.")
    rate_limit: float = Field(
        500.0, gt=0, description="Requests a second of one API key, for each API process; twice as many in a burst."
    )
    max_open_jobs: int = Field(1000, ge=1, description="Jobs of one API key that have not ended.")
    max_uploads: int = Field(8, ge=1, description="Uploads of one API key under way at once, for each API process.")
    max_streams: int = Field(2000, ge=1, description="Live streams of one API key at once, for each API process.")
    max_streams_in_all: int = Field(8000, ge=1, description="Live streams at once of one API process.")
    stream_heartbeat: float = Field(
        15.0, gt=0, description="Seconds of silence after which a live stream of events sends a comment."
    )
    auth_failures: int = Field(20, ge=1, description="Unknown keys a minute from one address; more are not looked up.")
    stall_seconds: float = Field(
        60.0, gt=0, description="A client that begins a request and sends nothing for so long is hung up on."
    )
    proxies: SplitList = Field(
        [], description="Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."
    )

    # Estimates
    prices: dict[str, float] = Field(
        {},
        description='What an hour costs, as JSON: {"local": 0.05, "slurm/H100": 2.1, "slurm/H100/spot": 0.9, "slurm/gpu": 1.5, "*": 0.1}, by profile and GPU; for one GPU, else for one machine.',
    )
    currency: str = Field("USD", max_length=8, description="What LLAMAFLOW_PRICES is in.")
    max_estimates: int = Field(4, ge=1, description="Estimates of one API key under way at once, for each API process.")
    estimate_seconds: float = Field(20.0, gt=0, description="How long an estimate may read from S3.")

    # S3
    s3_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        description="S3 address, such as http://127.0.0.1:9000; left out: AWS.",
    )
    s3_region: str = Field(
        "us-east-1", validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"), description="S3 region."
    )
    s3_access_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"), description="S3 access key."
    )
    s3_secret_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"), description="S3 secret key."
    )
    s3_session_token: SecretStr | None = Field(
        None, validation_alias="AWS_SESSION_TOKEN", description="For temporary S3 credentials."
    )
    path_allow: SplitList = Field(
        ["s3://llamaflow-data/"], description="Comma-separated S3 prefixes jobs may read and write."
    )
    files_prefix: str = Field(
        "s3://llamaflow-data/files/", description="Where uploads are kept, and logs of jobs whose folder was cleared."
    )
    hf_token: SecretStr | None = Field(None, validation_alias="HF_TOKEN", description="Reaches only FETCH_MODEL.")

    # The command line
    url: str | None = Field(None, description="The service, for `llamaflow jobs …`. Default: http://127.0.0.1:<port>.")
    api_key: SecretStr | None = Field(
        None, description="Key for `llamaflow jobs …`. Default: the one in <state>/api_key."
    )

    # The worker
    worker_slots: int | None = Field(
        None, ge=0, le=64, description="Runs this worker holds at once. Default: one per GPU, else one."
    )
    worker_profiles: SplitList = Field(
        ["local"], description="Comma-separated: where this worker starts runs, by the files of pipeline/conf/."
    )
    worker_memory: float | None = Field(
        None, gt=0, description="GB that runs on this worker's machine may ask for together; default: any."
    )
    lease_seconds: float = Field(15.0, gt=0, description="How long a claim holds without a heartbeat.")
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often a worker renews its leases.")
    poll_seconds: float = Field(1.0, gt=0, description="Polling is the truth; NOTIFY only shortens the wait.")
    host_lost_after: float = Field(
        600.0, gt=0, description="Seconds after which another host's runs are resumed elsewhere."
    )
    pause_timeout: float = Field(
        600.0, gt=0, description="Seconds a training has to save after a pause was asked for; then it is ended."
    )
    host_id: str | None = Field(None, description="Name of this machine, which no other has; default: its host name.")
    boot_id_file: Path = Field(
        Path("/proc/sys/kernel/random/boot_id"), description="Changes when the machine restarts."
    )
    task_env: SplitList = Field([], description="Names of environment variables passed on to the pipeline's tasks.")
    unshared_profiles: SplitList = Field(
        ["awsbatch"],
        description="Profiles whose tasks do not see LLAMAFLOW_RUNS_DIR: their trainings keep their state on S3, by a run token.",
    )
    tasks_url: str | None = Field(
        None,
        description="How such tasks reach the API, over https unless it is this machine. Default: LLAMAFLOW_PUBLIC_URL, else http://<host>:<port>.",
    )
    run_token_seconds: float = Field(
        3600.0, gt=0, description="How long a run token holds when neither worker nor training renews it."
    )
    train_lease_seconds: float = Field(
        30.0, gt=0, description="How long a training that shares no disk stays its owner without a heartbeat."
    )
    stub_run: bool = Field(False, description="Run the pipeline's stubs: for tests of the orchestration.")

    # Retention
    keep_feedback: float = Field(
        365 * 86400.0, gt=0, description="Seconds for which feedback is kept, with the conversation it is about."
    )
    loop_seconds: float = Field(30.0, gt=0, description="Between two looks of a worker at loops that may be due.")
    housekeeping_seconds: float = Field(600.0, gt=0, description="Between two sweeps of a worker.")
    keep_succeeded: float = Field(
        24 * 3600.0,
        ge=0,
        description="Seconds the folder of a succeeded or cancelled job stays; its logs go to S3 first.",
    )
    keep_failed: float = Field(7 * 24 * 3600.0, ge=0, description="The same of a failed job.")
    keep_paused: float = Field(
        30 * 24 * 3600.0, ge=0, description="Seconds after which a paused job keeps only its checkpoints."
    )
    keep_attempts: float = Field(
        30 * 24 * 3600.0, ge=0, description="Seconds the attempts of settled deliveries are kept."
    )
    keep_responses: float = Field(
        30 * 24 * 3600.0, ge=0, description="Seconds a response of /v1/responses can be gone on from; 0 keeps none."
    )
    keep_orphans: float = Field(
        24 * 3600.0, ge=3600, description="Seconds an upload that never became a file stays on S3."
    )
    cache_bytes: int = Field(
        100 << 30, ge=0, description="Of datasets, bases and tokens in the cache; over it the longest unused go."
    )
    adapter_cache_bytes: int = Field(10 << 30, ge=0, description="Of adapters that the engine brought from S3.")

    # Webhooks
    webhook_allow: SplitList = Field(
        [], description="Comma-separated host:port that callbacks may reach although loopback or private."
    )
    webhook_timeout: float = Field(15.0, gt=0, description="Seconds a receiver has to answer.")
    webhook_ca_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("LLAMAFLOW_WEBHOOK_CA_FILE", "SSL_CERT_FILE"),
        description="Certificate authorities (PEM) that https receivers may have, besides the public ones.",
    )

    @field_validator(
        "worker_profiles",
        "path_allow",
        "webhook_allow",
        "task_env",
        "proxies",
        "unshared_profiles",
        "vllm_urls",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @property
    def runs(self) -> Path:
        """Absolute folder of the runs."""
        return (self.runs_dir or self.state_dir / "runs").resolve()

    @property
    def cache(self) -> Path:
        """Absolute folder of the content-addressed cache."""
        return (self.cache_dir or self.state_dir / "cache").resolve()

    @property
    def tools(self) -> Path:
        """Absolute folder of JRE and jars."""
        return (self.tools_dir or self.state_dir / "tools").resolve()

    @property
    def hostname(self) -> str:
        """Name of this machine as runs record it."""
        return self.host_id or socket.gethostname()

    @property
    def sqlalchemy_url(self) -> str:
        """The database as SQLAlchemy takes it, with psycopg 3."""
        if self.database_url is None:
            raise RuntimeError(
                "LLAMAFLOW_DATABASE_URL is not set. `llamaflow up` starts an embedded Postgres and sets it."
            )
        url = self.database_url.get_secret_value()
        for scheme in ("postgresql+psycopg://", "postgresql://", "postgres://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url[len(scheme) :]
        raise RuntimeError("LLAMAFLOW_DATABASE_URL must start with postgresql:// - only Postgres is supported.")


class ImportSettings(BaseSettings):
    """What `llamaflow import-openai` alone reads: no part of the service ever holds the user's key of OpenAI's."""

    model_config = SettingsConfigDict(
        env_prefix="LLAMAFLOW_", extra="ignore", env_ignore_empty=True, populate_by_name=True
    )

    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias="OPENAI_API_KEY",
        description="Your own key of OpenAI's, for `llamaflow import-openai` alone: sent to OpenAI, stored nowhere.",
    )
    openai_organization: str | None = Field(
        None, validation_alias="OPENAI_ORG_ID", description="For `llamaflow import-openai`, where the key has several."
    )
    openai_project: str | None = Field(
        None,
        validation_alias="OPENAI_PROJECT_ID",
        description="For `llamaflow import-openai`, where the key has several.",
    )
    import_url: str = Field("https://api.openai.com/v1", description="Where `llamaflow import-openai` reads.")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


def child_environment(extra: dict[str, str], *, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """An allow-listed environment for a child process.

    Args:
        extra: Variables to set.
        keep: Names to pass on from this process besides the few every program needs.
    Returns:
        PATH, HOME, locale, temp folder, certificates and time zone of this process, `keep`, then `extra`.
    """
    needed = (
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "COVERAGE_PROCESS_START",
    )
    return {name: os.environ[name] for name in (*needed, *keep) if name in os.environ} | extra
