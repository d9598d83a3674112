"""What a user fills in after the import, and nothing else: values of Settings, the secret, credentials."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tests.n8n.canvas import BASE, LANGCHAIN, Canvas

PLACEHOLDER = "PASTE-WHAT-STANDS-BEHIND-whsec_"
OPENAI, POSTGRES, S3 = (
    {"id": f"{name}Credential"[:16], "name": name} for name in ("openAiForTests", "postgresForTests", "s3ForTestsOfIt")
)


def credentials(service: str, key: str, s3: Any, postgres: dict[str, Any]) -> list[dict[str, Any]]:
    """The credentials, as n8n's command line imports them.

    Args:
        service: Its address.
        key: Of its API.
        s3: With endpoint, access_key and secret_key.
        postgres: host, port, database, user, password.
    """
    store = {
        "endpoint": s3.endpoint, "region": "us-east-1", "accessKeyId": s3.access_key,
        "secretAccessKey": s3.secret_key, "forcePathStyle": True, "ignoreSSLIssues": False,
    }  # fmt: skip
    rows = {"ssl": "disable", "allowUnauthorizedCerts": False, "maxConnections": 5, **postgres}
    return [
        {**OPENAI, "type": "openAiApi", "data": {"apiKey": key, "url": f"{service}/v1"}},
        {**S3, "type": "s3", "data": store},
        {**POSTGRES, "type": "postgres", "data": rows},
    ]


def filled(path: Path, secret: str, values: dict[str, Any]) -> dict[str, Any]:
    """A workflow as its user leaves it.

    Args:
        path: The file.
        secret: `whsec_…`.
        values: What Settings shall say, by name; names that a workflow does not have are passed over.
    """
    raw: dict[str, Any] = copy.deepcopy(Canvas.read(path).raw)
    for node in raw["nodes"]:
        parameters = node["parameters"]
        if node["name"] == "Settings":
            for row in parameters["assignments"]["assignments"]:
                row["value"] = values.get(row["name"], row["value"])
        if PLACEHOLDER in str(parameters.get("secret")):
            parameters["secret"] = parameters["secret"].replace(PLACEHOLDER, secret.removeprefix("whsec_"))
        if node["type"] in (LANGCHAIN + "openAi", LANGCHAIN + "lmChatOpenAi") or "nodeCredentialType" in parameters:
            node["credentials"] = {"openAiApi": OPENAI}
        if node["type"] == BASE + "postgres":
            node["credentials"] = {"postgres": POSTGRES}
        if node["type"] == BASE + "s3":
            node["credentials"] = {"s3": S3}
    return raw
