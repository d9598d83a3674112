"""A Kubernetes manifest that serves one version of an adapter: ConfigMap, Deployment and Service, as YAML.

The `trainer` image's engine; an init container brings base and adapter into its cache first and compares every byte with the
manifest whose sha256 stands in the ConfigMap, so that the pod serves that version or does not start. Pure text; nothing is sent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from finetune.steps import FetchStep, ModelSource, Parent

PORT = 8001
USER = 10001
DIGEST = re.compile(r"[a-z0-9][a-z0-9./:_-]*@sha256:[0-9a-f]{64}")
CACHE, STEP = "/cache", "/etc/llamaflow/fetch.json"


@dataclass(frozen=True)
class Place:
    """Where and how it is to run.

    Attributes:
        image: The trainer image, by digest.
        namespace: Of Kubernetes.
        replicas: Pods.
        secret: The Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3 and LLAMAFLOW_ENGINE_TOKEN.
        gpus: Of each pod.
        memory: Of each pod, such as 4Gi.
    """

    image: str
    namespace: str = "default"
    replicas: int = 1
    secret: str = "llamaflow-engine"  # noqa: S105  the name of a Secret, not what is in it
    gpus: int = 0
    memory: str = "4Gi"


def manifest(lineage: dict[str, Any], place: Place) -> str:
    """The three objects, one YAML document each.

    Args:
        lineage: Of the version, as the API answers it.
        place: Where.
    Raises:
        ValueError: The image is not named by its digest; as a sentence.
    """
    if DIGEST.fullmatch(place.image) is None:
        raise ValueError(f"The image must be named by its digest (name@sha256:…), not {place.image!r}: a tag may move.")
    name = f"adapter-{lineage['adapter']}"[:63].rstrip("-")
    labels = {"app.kubernetes.io/name": "llamaflow-engine", "app.kubernetes.io/instance": name}
    told = {
        "llamaflow/adapter": lineage["adapter"],
        "llamaflow/version": str(lineage["version"]),
        "llamaflow/model": lineage["model"],
        "llamaflow/manifest-sha256": lineage["manifest_sha256"],
    }
    meta = {"name": name, "namespace": place.namespace, "labels": labels, "annotations": told}
    documents = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"fetch.json": fetch_step(lineage)}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": _deployment(name, labels, told, place),
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
        },
    ]
    return "---\n".join("\n".join(lines(document)) + "\n" for document in documents)


def fetch_step(lineage: dict[str, Any]) -> str:
    """fetch.json of a version: its base at its revision, its adapter by its manifest's sha256."""
    base = lineage["base"]
    uri = str(lineage["manifest"]).removesuffix("manifest.json")
    parent = Parent(
        id=lineage["model"],
        uri=f"{uri}adapter/",
        manifest_uri=lineage["manifest"],
        manifest_sha256=lineage["manifest_sha256"],
    )
    given = {key: base.get(key) for key in ("id", "kind", "location", "revision", "template")}
    return FetchStep(model=ModelSource(**given, parent=parent), cache_dir=CACHE).text()


def _deployment(name: str, labels: dict[str, str], told: dict[str, str], place: Place) -> dict[str, Any]:
    limits: dict[str, Any] = {"memory": place.memory} | ({"nvidia.com/gpu": place.gpus} if place.gpus else {})
    shared = {
        "image": place.image,
        "envFrom": [{"secretRef": {"name": place.secret}}],
        "env": [{"name": "LLAMAFLOW_CACHE_DIR", "value": CACHE}, {"name": "HOME", "value": "/tmp"}],  # noqa: S108
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"memory": place.memory}, "limits": limits},
    }
    mounts = [{"name": "cache", "mountPath": CACHE}, {"name": "scratch", "mountPath": "/tmp"}]  # noqa: S108  the pod's own
    bring = ["python", "-m", "finetune", "fetch", "--job", STEP, "--out", "/tmp"]  # noqa: S108
    serve = ["python", "-m", "finetune", "serve", "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104
    health = {"httpGet": {"path": "/healthz", "port": "http"}}
    containers = [
        {
            "name": "engine",
            **shared,
            "command": serve,
            "ports": [{"name": "http", "containerPort": PORT}],
            "readinessProbe": health | {"periodSeconds": 5},
            "livenessProbe": health | {"periodSeconds": 10, "failureThreshold": 6},
            "volumeMounts": mounts,
        }
    ]
    step = {"name": "step", "mountPath": STEP, "subPath": "fetch.json", "readOnly": True}
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [{"name": "fetch", **shared, "command": bring, "volumeMounts": [*mounts, step]}],
        "containers": containers,
        "volumes": [
            {"name": "cache", "emptyDir": {}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "step", "configMap": {"name": name}},
        ],
    }
    return {
        "replicas": place.replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": labels, "annotations": told}, "spec": pod},
    }


def lines(value: Any, indent: str = "") -> list[str]:
    """A value as block YAML; texts and numbers are written as JSON, which YAML contains."""
    if isinstance(value, dict) and value:
        found = []
        for key, inner in value.items():
            nested = lines(inner, f"{indent}  ")
            plain = not isinstance(inner, dict | list) or not inner
            found += (
                [f"{indent}{json.dumps(key)}: {nested[0].strip()}"]
                if plain
                else [f"{indent}{json.dumps(key)}:", *nested]
            )
        return found
    if isinstance(value, list) and value:
        found = []
        for inner in value:
            first, *rest = lines(inner, f"{indent}  ")
            found += [f"{indent}- {first.strip()}", *rest]
        return found
    return [f"{indent}{json.dumps(value, ensure_ascii=False)}"]
