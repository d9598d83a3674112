"""The workflow files are what both generations of n8n import, hold nobody's data, and leave no way without an end."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import pytest

from tests.n8n.canvas import BASE, FILES, LANGCHAIN, RESPOND, STICKY, TRIGGERS, Canvas, strings

pytestmark = pytest.mark.unit

ERRORS = "llamaFlowError04"
KNOWN = {
    BASE + name: version
    for name, version in {
        "aggregate": 1, "code": 2, "convertToFile": 1.1, "crypto": 1, "errorTrigger": 1, "extractFromFile": 1.1,
        "filter": 2.3, "formTrigger": 2.3, "httpRequest": 4.3, "if": 2.3, "merge": 3.2, "noOp": 1, "postgres": 2.6,
        "readWriteFile": 1, "removeDuplicates": 2, "respondToWebhook": 1.5, "s3": 1, "scheduleTrigger": 1.3,
        "set": 3.4, "stickyNote": 1, "stopAndError": 1, "switch": 3.4, "wait": 1.1, "webhook": 2.1,
    }.items()
} | {
    LANGCHAIN + name: version
    for name, version in {
        "agent": 3, "chatTrigger": 1.4, "lmChatOpenAi": 1.3, "memoryBufferWindow": 1.3, "openAi": 2.1,
    }.items()
}  # fmt: skip
"""Node types with the version that ran; another version may behave in another way."""
BY_CODE = {"2-collect-and-prepare.json"}
"""Workflows with a Code node; each has a sibling without."""


def workflow(path: Path) -> Canvas:
    return Canvas.read(path)


files = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_there_are_workflows() -> None:
    assert len(FILES) >= 8


def test_ids_and_addresses_are_used_once() -> None:
    every = [workflow(path) for path in FILES]
    ids = [canvas.raw["id"] for canvas in every]
    nodes = [node["id"] for canvas in every for node in canvas.raw["nodes"]]
    hooks = [node["webhookId"] for canvas in every for node in canvas.nodes.values() if "webhookId" in node]
    paths = [canvas.nodes[name]["parameters"]["path"] for canvas in every for name in canvas.of_type(BASE + "webhook")]
    for found in (ids, nodes, hooks, paths):
        assert len(found) == len(set(found))


@files
def test_both_generations_of_n8n_import_it(path: Path) -> None:
    raw = workflow(path).raw
    assert raw["active"] is False
    assert re.fullmatch(r"[A-Za-z0-9]{16}", raw["id"])
    assert uuid.UUID(raw["versionId"])
    assert raw["settings"]["executionOrder"] == "v1"
    assert raw["pinData"] == {}
    assert path.read_text(encoding="utf-8") == json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


@files
def test_its_nodes_are_of_versions_that_ran(path: Path) -> None:
    for node in workflow(path).raw["nodes"]:
        assert (node["type"], node["typeVersion"]) in KNOWN.items(), node["name"]
        assert uuid.UUID(node["id"])


@files
def test_it_holds_no_credentials_and_no_host_but_placeholders(path: Path) -> None:
    canvas = workflow(path)
    assert [node["name"] for node in canvas.raw["nodes"] if "credentials" in node] == []
    said = [text for node in canvas.raw["nodes"] for text in strings(node["parameters"])]
    hosts = {host for text in said for host in re.findall(r"https?://([\w.-]+)", text)}
    assert {host for host in hosts if not host.endswith("example.com")} <= {"your-llamaflow"}
    assert not [text for text in said if re.search(r"whsec_\w{8}|\blf-\w{8}|\bsk-\w{8}|\d+\.\d+\.\d+\.\d+", text)]


@files
def test_its_notes_say_what_to_fill_in(path: Path) -> None:
    canvas = workflow(path)
    assert [note.startswith("## ") for note in canvas.notes if "### Fill in" in note] == [True]
    named = {name for note in canvas.notes for name in re.findall(r"\*\*([^*]+)\*\*", note)}
    assert named, "no node is named"
    assert named <= set(canvas.nodes)
    calls = [
        name
        for name, node in canvas.nodes.items()
        if node["parameters"].get("nodeCredentialType") or node["type"].startswith(LANGCHAIN + "openAi")
    ]
    assert set(calls) <= named, "a node that needs a credential is not named"


@files
def test_every_node_is_connected_and_every_output_leads_somewhere(path: Path) -> None:
    canvas = workflow(path)
    for wire in canvas.wires:
        assert {wire.source, wire.target} <= set(canvas.nodes)
    triggers = canvas.of_type(*TRIGGERS)
    fed = {wire.source for wire in canvas.wires if wire.kind != "main"}
    assert canvas.reached(*triggers) | fed == set(canvas.nodes)
    last = (*canvas.of_type(RESPOND, BASE + "noOp", LANGCHAIN + "agent"), "Alert")
    for name in set(canvas.nodes) - fed - set(last):
        for output in range(canvas.outputs(name)):
            assert canvas.after(name, output), f"output {output} of {name} leads nowhere"


@files
def test_every_way_from_a_webhook_ends_with_an_answer(path: Path) -> None:
    canvas = workflow(path)
    for name in canvas.of_type(BASE + "webhook"):
        assert canvas.nodes[name]["parameters"]["responseMode"] == "responseNode"
        assert list(canvas.ends_without(name, RESPOND)) == []


@files
def test_expressions_name_nodes_that_are_there(path: Path) -> None:
    canvas = workflow(path)
    for node in canvas.nodes.values():
        for text in strings(node["parameters"]):
            assert set(re.findall(r"\$\('([^']+)'\)", text)) <= set(canvas.nodes), node["name"]
            assert text.count("{{") == text.count("}}")
            assert "{{" not in text or text.startswith("="), f"{node['name']}: an expression without ="


@files
def test_it_names_the_workflow_that_alerts(path: Path) -> None:
    raw = workflow(path).raw
    assert raw["id"] == ERRORS or raw["settings"]["errorWorkflow"] == ERRORS


@files
def test_code_is_never_the_only_way(path: Path) -> None:
    assert bool(workflow(path).of_type(BASE + "code")) == (path.name in BY_CODE)


@files
def test_a_job_is_asked_for_once_however_often_it_is_posted(path: Path) -> None:
    canvas = workflow(path)
    for node in canvas.nodes.values():
        parameters = node["parameters"]
        if parameters.get("method") == "POST" and str(parameters["url"]).endswith("/fine_tuning/jobs"):
            (header,) = parameters["headerParameters"]["parameters"]
            assert header["name"] == "Idempotency-Key"
            assert "$workflow.id" in header["value"]
            assert "$execution.id" in header["value"]


@files
def test_nothing_lies_upon_anything(path: Path) -> None:
    boxes = []
    for node in workflow(path).raw["nodes"]:
        x, y = node["position"]
        note = node["type"] == STICKY
        size = (node["parameters"]["width"], node["parameters"]["height"]) if note else (100, 100)
        boxes.append((node["name"], x, y, x + size[0], y + size[1]))
    for at, (one, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[at + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, f"{one} and {other}"
