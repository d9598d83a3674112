"""Where a version comes from: of its manifest on S3, which must be the one that was registered, and of its job's row."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.schemas import Dataset, Lineage, LineageJob
from app.errors import BadRequest
from app.files.storage import Storage
from app.models import Adapter, AdapterVersion, Job
from finetune.model.peft_folder import Imported, vouched
from finetune.steps import Manifest

MANIFEST_BYTES = 16 << 20


async def job_of(db: AsyncSession, version: AdapterVersion) -> Job | None:
    """The job that made a version; None for an imported one."""
    return await db.get(Job, version.job_id) if version.job_id else None


async def trace(storage: Storage, adapter: Adapter, version: AdapterVersion, job: Job | None) -> Lineage:
    """The lineage of a version; what only the manifest tells is left out when it cannot be believed, and `problem` says why.

    Raises:
        Unavailable: `s3_unavailable`.
    """
    uri = version.uri.rstrip("/") + "/manifest.json"
    manifest, problem = await _manifest(storage, uri, version.manifest_sha256)
    told = Lineage(
        adapter=adapter.name, version=version.version or 0, model=version.model, base=version.base,
        metrics=version.metrics, manifest=uri, manifest_sha256=version.manifest_sha256, problem=problem,
        imported_from=version.imported_from, job=_job(job) if job else None,
        config=job.spec if job else None, resolved=job.resolved if job else None,
        parent=(job.base.get("parent") if job else None), training=_asked(job),
    )  # fmt: skip
    return told.model_copy(update=_of_manifest(manifest)) if isinstance(manifest, Manifest) else told


async def _manifest(storage: Storage, uri: str, sha256: str) -> tuple[Manifest | Imported | None, str | None]:
    try:
        found = await storage.head(uri)
        content = await storage.part(uri, 0, min(found.size, MANIFEST_BYTES)) if found.size else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            return None, f"{uri} is not the manifest that was registered."
        return vouched(content), None
    except BadRequest as problem:
        return None, problem.message
    except ValidationError:
        return None, f"{uri} is no manifest."


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    resolved, split = manifest.resolved, manifest.dataset.files
    result = manifest.result
    return {
        "training": [_dataset(file) for file in split if file.split == "train"],
        "validation": [_dataset(file) for file in split if file.split == "validation"],
        "training_rows": resolved.n_examples,
        "validation_rows": resolved.n_validation,
        "data_sha256": resolved.data_sha256,
        "config": manifest.config,
        "resolved": resolved.model_dump(mode="json"),
        "code_version": manifest.code_version or None,
        "image": manifest.image,
        "versions": result.versions,
        "metrics": result.model_dump(mode="json", include={"train_loss", "valid_loss", "valid_mean_token_accuracy"})
        | (manifest.evaluation.model_dump(mode="json", exclude={"samples"}) if manifest.evaluation else {}),
        "parent": result.parent.model_dump(mode="json") if result.parent else None,
    }


def _dataset(file: Any) -> Dataset:
    return Dataset(uri=file.uri, etag=file.etag, sha256=file.sha256, bytes=file.size)


def _asked(job: Job | None) -> list[Dataset]:
    """The training data as the job's row tells it: pinned, without hashes."""
    objects = job.training_objects or [] if job else []
    return [Dataset(uri=row["uri"], etag=row.get("etag"), sha256=None, bytes=row.get("size")) for row in objects]


def _job(job: Job) -> LineageJob:
    return LineageJob(
        id=job.id,
        status=job.status,
        created_at=int(job.created_at.timestamp()),
        finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        training_file=job.training_file,
        validation_file=job.validation_file,
        retry_of=job.retry_of,
    )
