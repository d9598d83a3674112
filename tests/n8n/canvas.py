"""A workflow file as a graph: what stands on the canvas, what leads where, and what a user fills in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parents[2] / "n8n" / "workflows"
FILES = sorted(WORKFLOWS.glob("*.json"))

BASE, LANGCHAIN = "n8n-nodes-base.", "@n8n/n8n-nodes-langchain."
STICKY = BASE + "stickyNote"
RESPOND = BASE + "respondToWebhook"
TRIGGERS = {BASE + name for name in ("webhook", "formTrigger", "errorTrigger", "scheduleTrigger")}
TRIGGERS.add(LANGCHAIN + "chatTrigger")


@dataclass(frozen=True)
class Wire:
    """One line on the canvas: from an output of a node to an input of another."""

    source: str
    output: int
    target: str
    kind: str


class Canvas:
    """One workflow.

    Attributes:
        raw: The file, parsed.
        nodes: Name → node, without sticky notes.
        notes: What the sticky notes say.
    """

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.nodes: dict[str, dict[str, Any]] = {n["name"]: n for n in raw["nodes"] if n["type"] != STICKY}
        self.notes = [n["parameters"]["content"] for n in raw["nodes"] if n["type"] == STICKY]
        self.wires = [
            Wire(source, output, end["node"], kind)
            for source, kinds in raw["connections"].items()
            for kind, outputs in kinds.items()
            for output, ends in enumerate(outputs)
            for end in ends
        ]

    @classmethod
    def read(cls, path: Path) -> Canvas:
        """A file of n8n/workflows."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def of_type(self, *types: str) -> list[str]:
        """Names of the nodes of these types."""
        return [name for name, node in self.nodes.items() if node["type"] in types]

    def after(self, name: str, output: int | None = None) -> set[str]:
        """Where the lines of a node lead; of one output, if it is named."""
        return {
            wire.target
            for wire in self.wires
            if wire.source == name and wire.kind == "main" and output in (None, wire.output)
        }

    def reached(self, *names: str) -> set[str]:
        """Every node that can run after these, and they themselves."""
        seen, todo = set(names), list(names)
        while todo:
            for name in self.after(todo.pop()) - seen:
                seen.add(name)
                todo.append(name)
        return seen

    def ends_without(self, start: str, kind: str) -> Iterator[str]:
        """Nodes at which a way from `start` ends without having passed a node of this type."""
        seen, todo = {start}, [start]
        while todo:
            name = todo.pop()
            if self.nodes[name]["type"] == kind:
                continue
            if not self.after(name):
                yield name
            for following in self.after(name) - seen:
                seen.add(following)
                todo.append(following)

    def outputs(self, name: str) -> int:
        """How many main outputs a node has."""
        node, parameters = self.nodes[name], self.nodes[name]["parameters"]
        short = node["type"].rpartition(".")[2]
        if short in ("stopAndError", "lmChatOpenAi", "memoryBufferWindow"):
            return 0
        if short == "if":
            return 2
        if short == "switch":
            return len(parameters["rules"]["values"]) + (parameters["options"].get("fallbackOutput") == "extra")
        return 2 if node.get("onError") == "continueErrorOutput" else 1


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
