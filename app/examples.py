"""Bodies that the document shows for requests whose schema brings no example; each is sent to the service by the tests.

Where one names what must be there first, that is: the dataset of `make demo`, an adapter `support` with two versions, an upload.
"""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "AdapterImport": {"name": "support", "uri": "s3://llamaflow-data/adapters/support/"},
    "AdapterUpdate": {"description": "Answers of the support team."},
    "EndpointCreate": {
        "name": "n8n",
        "url": "http://127.0.0.1:5678/webhook/llamaflow",
        "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
    },
    "EndpointUpdate": {"event_types": ["fine_tuning.job.failed"]},
    "ImportEvents": {
        "events": [{"id": "ftevent-abc", "created_at": 1767225600, "level": "info", "message": "Step 1/10"}]
    },
    "Promote": {"version": 1, "reason": "better on last week's questions"},
    "Rollback": {"reason": "worse on the new questions"},
    "Rotate": {"keep_old_secret_active_for_24_hours": True},
    "TestCreate": {"event_type": "fine_tuning.job.succeeded"},
    "UploadComplete": {"part_ids": ["part_abc"]},
    "UploadCreate": {
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "bytes": 1024,
        "mime_type": "application/jsonl",
    },
}
"""By the schema's name."""
