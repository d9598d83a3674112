"""The Kubernetes manifest of a version: what a YAML parser makes of it, and that it pins every byte that is served."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.adapters import kubernetes
from app.adapters.kubernetes import Place
from finetune.steps import FetchStep

pytestmark = pytest.mark.unit

IMAGE = "registry.example.org/llamaflow/trainer@sha256:" + "a" * 64
LINEAGE: dict[str, Any] = {
    "adapter": "kpi", "version": 3, "model": "ft:org/base:default:kpi: #x'\"\\:abc", "manifest_sha256": "b" * 64,
    "manifest": "s3://llamaflow-data/model/ftjob-x/manifest.json", "image": IMAGE,
    "base": {
        "id": "org/base", "kind": "hub", "location": "org/base", "revision": "c" * 40, "template": "{{ a }}\n# b: c\n",
        "parameters": 1, "template_sha256": "",
    },
}  # fmt: skip


def objects(**place: Any) -> dict[str, Any]:
    """By kind."""
    return {row["kind"]: row for row in yaml.safe_load_all(kubernetes.manifest(LINEAGE, Place(IMAGE, **place)))}


def test_three_objects_that_belong_together() -> None:
    made = objects(namespace="models", replicas=2, gpus=1)
    assert list(made) == ["ConfigMap", "Deployment", "Service"]
    assert {row["metadata"]["namespace"] for row in made.values()} == {"models"}
    assert {row["metadata"]["name"] for row in made.values()} == {"adapter-kpi"}
    spec = made["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels == made["Service"]["spec"]["selector"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]["maxUnavailable"]) == (2, 0)
    pod = spec["template"]["spec"]
    [engine], [fetch] = pod["containers"], pod["initContainers"]
    assert engine["image"] == fetch["image"] == IMAGE
    assert engine["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for container in (engine, fetch) for mount in container["volumeMounts"]} <= volumes
    assert all(isinstance(value, str) for row in made.values() for value in row["metadata"]["annotations"].values())
    assert engine["ports"][0]["name"] == made["Service"]["spec"]["ports"][0]["targetPort"]
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_pod_fetches_the_version_by_its_digest() -> None:
    made = objects()
    step = FetchStep.model_validate_json(made["ConfigMap"]["data"]["fetch.json"])
    assert step.model.parent is not None
    assert (step.model.parent.manifest_sha256, step.model.revision) == ("b" * 64, "c" * 40)
    assert step.model.parent.uri == "s3://llamaflow-data/model/ftjob-x/adapter/"
    assert step.model.template == LINEAGE["base"]["template"]
    told = made["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert (told["llamaflow/manifest-sha256"], told["llamaflow/model"]) == ("b" * 64, LINEAGE["model"])
    assert step.s3.credentials_file is None


@pytest.mark.parametrize("image", ["", "trainer:latest", "trainer@sha256:abc"])
def test_an_image_by_its_tag_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match="by its digest"):
        kubernetes.manifest(LINEAGE, Place(image))


@pytest.mark.parametrize(
    "value",
    [{"a": [], "b": {}, "c": [{"d": [1, [2, 3]], "e": None}], "f": "x: y\n- z", "g": True, "1": 0.5}, [[], [{}]]],
)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert yaml.safe_load("\n".join(kubernetes.lines(value))) == value
