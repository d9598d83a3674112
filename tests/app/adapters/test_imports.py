"""Adapters made elsewhere: looked at, copied, pinned, vouched for; and every kind of folder that is none."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.adapters import imports
from app.doctor.results import problem_of
from app.files.upload import PART_BYTES
from app.models import AdapterVersion
from finetune.exit_codes import StepError
from finetune.inference.adapters import obtain
from finetune.inference.request import AdapterSource
from finetune.model.peft_folder import Imported
from finetune.steps import S3, Base
from tests.app.adapters import folders
from tests.app.conftest import BUCKET, MODEL, Service

pytestmark = pytest.mark.db


def ask(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/adapters/import", json=body)


def test_an_imported_adapter_is_a_pinned_version_that_its_manifest_vouches_for(
    http: httpx.Client, service: Service
) -> None:
    uri = folders.put(service.s3, "elsewhere/one", **{"chat_template.jinja": b"{{ messages }}"})
    made = ask(http, name="brought", uri=uri, description="From elsewhere.", reason="first").json()
    assert (made["version"], made["promoted"], made["job_id"], made["imported_from"]) == (1, True, None, uri)
    assert (made["base"], made["base_revision"]) == (MODEL, folders.REVISION)
    key = made["uri"].removeprefix(f"s3://{BUCKET}/")
    assert key.startswith("files/proj_alpha/adapters/brought/adv_")
    content = service.s3.get_object(Bucket=BUCKET, Key=f"{key}manifest.json")["Body"].read()
    assert hashlib.sha256(content).hexdigest() == made["manifest_sha256"]
    files = {file.path: file for file in Imported.model_validate_json(content).files}
    assert set(files) == {f"adapter/{name}" for name in imports.LIMITS}
    assert files["adapter/adapter_model.safetensors"].sha256 == hashlib.sha256(folders.weights()).hexdigest()
    row = AdapterVersion(uri=made["uri"], manifest_sha256=made["manifest_sha256"], model=made["model"])
    assert problem_of(service.s3, row, quick=False) is None
    adapter = http.get("/v1/adapters/brought").json()
    assert (adapter["description"], adapter["promoted_version"]) == ("From elsewhere.", 1)
    told = http.get("/v1/adapters/brought/versions/1/lineage").json()
    assert (told["imported_from"], told["problem"], told["job"], told["base"]["revision"]) == (
        uri, None, None, folders.REVISION,
    )  # fmt: skip
    assert http.get(f"/v1/models/{made['model']}").json()["id"] == made["model"]


def test_a_later_change_of_the_folder_does_not_reach_the_version(http: httpx.Client, service: Service) -> None:
    uri = folders.put(service.s3, "elsewhere/two")
    made = ask(http, name="kept-apart", uri=uri).json()
    folders.put(service.s3, "elsewhere/two", adapter_model=folders.weights(other="one"))
    row = AdapterVersion(uri=made["uri"], manifest_sha256=made["manifest_sha256"], model=made["model"])
    assert problem_of(service.s3, row, quick=False) is None


def test_the_engine_takes_what_was_imported(http: httpx.Client, service: Service, tmp_path: Path) -> None:
    made = ask(http, name="for-the-engine", uri=folders.put(service.s3, "elsewhere/engine")).json()
    keys = tmp_path / "credentials"
    secret = service.settings.s3_secret_key, service.settings.s3_access_key
    lines = zip(("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"), secret, strict=True)
    keys.write_text("".join(f"{name}={value.get_secret_value()}\n" for name, value in lines if value is not None))
    access = S3(endpoint=service.settings.s3_endpoint, credentials_file=str(keys))
    source = AdapterSource(
        id=made["model"], uri=made["uri"] + "adapter/", manifest_uri=made["uri"] + "manifest.json",
        manifest_sha256=made["manifest_sha256"],
    )  # fmt: skip
    base = Base(id=MODEL, kind="package", location="x", revision=folders.REVISION, parameters=1, template_sha256="")
    taken = obtain(source, base, access, tmp_path / "cache", allow_local=False)
    assert (taken.lora["r"], (taken.folder / "adapter_model.safetensors").read_bytes()) == (4, folders.weights())
    with pytest.raises(StepError, match="not on"):
        obtain(source, base.model_copy(update={"revision": "b" * 64}), access, tmp_path / "cache", allow_local=False)


def test_large_weights_are_copied_in_parts(http: httpx.Client, service: Service) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.{}.weight"
    large = folders.safetensors({name.format("lora_A"): [4, 1 << 20], name.format("lora_B"): [1 << 19, 4]})
    assert len(large) > 2 * PART_BYTES
    made = ask(http, name="large", uri=folders.put(service.s3, "elsewhere/large", adapter_model=large)).json()
    key = made["uri"].removeprefix(f"s3://{BUCKET}/")
    copy = service.s3.get_object(Bucket=BUCKET, Key=f"{key}adapter/adapter_model.safetensors")["Body"].read()
    assert copy == large


NAME = "base_model.model.model.layers.0.self_attn.q_proj"
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("no config", {"adapter_config": None}, "file_not_found", "adapter_config.json"),
    ("a pickle", {"adapter_model": None, "adapter_model.bin": b"\x80"}, "invalid_adapter", "pickle"),
    ("no JSON", {"adapter_config": b"{"}, "invalid_adapter", "no JSON"),
    ("another method", {"adapter_config": folders.config(peft_type="IA3")}, "invalid_adapter", "no LoRA"),
    ("more than LoRA", {"adapter_config": folders.config(modules_to_save=["x"])}, "invalid_adapter", "modules_to_save"),
    ("no safetensors", {"adapter_model": b"PK\x03\x04" + bytes(99)}, "invalid_adapter", "no safetensors"),
    ("cut", {"adapter_model": folders.weights(cut=8)}, "invalid_adapter", "cut or damaged"),
    ("integers", {"adapter_model": folders.weights(dtype="I16")}, "invalid_adapter", "F32, F16 and BF16"),
    ("foreign", {"adapter_model": folders.safetensors({"lm_head.weight": [2, 2]})}, "invalid_adapter", "lm_head.weight"),
    ("half", {"adapter_model": folders.safetensors({f"{NAME}.lora_A.weight": [4, 16]})}, "invalid_adapter", "together"),
    ("another rank", {"adapter_config": folders.config(r=8)}, "invalid_adapter", "rank 4"),
    ("other modules", {"adapter_config": folders.config(target_modules=["k_proj"])}, "invalid_adapter", "target_modules"),
    ("a base unheard of", {"adapter_config": folders.config(base_model_name_or_path="/home/me/base")}, "model_not_found", "models file"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "files", "code", "said"), CASES, ids=[case[0] for case in CASES])
def test_what_is_no_adapter_is_refused_with_the_reason(
    http: httpx.Client, service: Service, what: str, files: dict[str, Any], code: str, said: str
) -> None:
    uri = folders.put(service.s3, "refused/" + what.replace(" ", "-"), **files)
    answer = ask(http, name="refused", uri=uri)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code), error
    assert said in error["message"]
    assert http.get("/v1/adapters/refused").status_code == 404
    left = service.s3.list_objects_v2(Bucket=BUCKET, Prefix="files/proj_alpha/adapters/refused/")
    assert "Contents" not in left


def test_the_revision_must_be_pinned_and_the_base_the_adapters_own(http: httpx.Client, service: Service) -> None:
    uri = folders.put(service.s3, "elsewhere/unpinned", adapter_config=folders.config(revision="main"))
    with service.http("beta") as beta:
        unpinned = ask(beta, name="unpinned", uri=uri).json()["error"]
        assert (unpinned["code"], unpinned["param"]) == ("revision_not_pinned", "base")
        branch = ask(beta, name="unpinned", uri=uri, base=f"{MODEL}@main").json()["error"]
        assert branch["code"] == "revision_not_pinned"
        made = ask(beta, name="unpinned", uri=uri, base=f"{MODEL}@{'c' * 40}").json()
    assert made["base_revision"] == "c" * 40


def test_paths_and_bodies_are_checked(http: httpx.Client, service: Service) -> None:
    said = [
        ask(http, name="x", uri="s3://elsewhere-bucket/x/"),
        ask(http, name="x", uri=f"s3://{BUCKET}/files/proj_beta/adapters/y/"),
        ask(http, name="x"),
        ask(http, name="X", uri=f"s3://{BUCKET}/x/"),
        ask(http, name="x", files={"config": "file-none", "weights": "file-none"}),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) for answer in said] == [
        (400, "path_not_allowed", "uri"),
        (400, "path_not_allowed", "uri"),
        (400, "invalid_value", "uri"),
        (400, "invalid_value", "name"),
        (400, "file_not_found", "files.config"),
    ]  # fmt: skip


async def llamaflow(service: Service, *words: str) -> tuple[int, str]:
    """`llamaflow adapters …` with alpha's key."""
    env = os.environ | {"LLAMAFLOW_URL": service.url, "LLAMAFLOW_API_KEY": "lf-alpha", "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from app.cli import main; main()", "adapters", *words,
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_a_local_folder_is_imported_on_the_command_line(
    http: httpx.Client, service: Service, tmp_path: Path
) -> None:
    folder = tmp_path / "my-desk"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(folders.config())
    status, said = await llamaflow(service, "import", str(folder))
    assert (status, "holds no adapter_model.safetensors" in said) == (2, True)
    (folder / "adapter_model.safetensors").write_bytes(folders.weights())
    before = len((await asyncio.to_thread(http.get, "/v1/files")).json()["data"])
    for number in (1, 2):
        status, said = await llamaflow(service, "import", str(folder), "--reason", "by hand")
        assert (status, said.split(":")[0]) == (0, f"Version {number} of my-desk, promoted")
    assert len((await asyncio.to_thread(http.get, "/v1/files")).json()["data"]) == before
    assert (await llamaflow(service, "rollback", "my-desk"))[1] == "my-desk answers with version 1.\n"
    assert (await llamaflow(service, "promote", "my-desk", "2"))[1] == "my-desk answers with version 2.\n"
    assert "by hand" in (await llamaflow(service, "history", "my-desk"))[1]
    assert json.loads((await llamaflow(service, "lineage", "my-desk", "2"))[1])["imported_from"] == "upload"
    status, said = await llamaflow(service, "delete", "my-desk")
    assert (status, "--force" in said or "force=true" in said) == (1, True)
    assert (await llamaflow(service, "delete", "my-desk", "--force"))[1] == "my-desk is deleted.\n"
