"""Settings for a command beside a running `llamaflow up`: what the embedded service has started is found in its state folder."""

from __future__ import annotations

from pydantic import SecretStr

from app.embedded import folder, s3
from app.settings import Settings


def completed(settings: Settings) -> Settings:
    """The settings, with the database and the S3 server of the running `up` where none are named."""
    told, kept = folder.read_json(settings.state_dir / "up.json"), s3.read_env(settings.state_dir)
    found: dict[str, object] = {}
    if settings.database_url is None and told.get("database_url"):
        found["database_url"] = SecretStr(str(told["database_url"]))
    if settings.s3_endpoint is None and settings.s3_access_key is None and kept:
        found |= {
            "s3_endpoint": kept["AWS_ENDPOINT_URL_S3"],
            "s3_region": kept["AWS_REGION"],
            "s3_access_key": SecretStr(kept["AWS_ACCESS_KEY_ID"]),
            "s3_secret_key": SecretStr(kept["AWS_SECRET_ACCESS_KEY"]),
        }
    return settings.model_copy(update=found)
