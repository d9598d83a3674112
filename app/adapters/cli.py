"""`llamaflow adapters …`: the registry, as a thin client of the HTTP API."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

from app.adapters import kubernetes
from app.client import Client, call
from app.jobs.cli import Commands, console
from app.settings import get_settings
from finetune.model.peft_folder import CONFIG, TEMPLATE, WEIGHTS

IMPORT_SECONDS = 600.0
UPLOADED = {"config": CONFIG, "weights": WEIGHTS, "template": TEMPLATE}
"""Field of the request → file of the folder; the last one may be missing."""


@click.group(cls=Commands)
def adapters() -> None:
    """Named adapters: versions, promotion, import, lineage."""


@adapters.command("list")
def list_adapters() -> None:
    """The project's adapters."""
    table = Table(
        Column("name", no_wrap=True, overflow="ignore"), "promoted", "versions", "base", "description", box=None
    )
    for row in call("GET", "/adapters")["data"]:
        newest = row["versions"][0] if row["versions"] else {}
        promoted = str(row["promoted_version"] or "")
        table.add_row(row["name"], promoted, str(len(row["versions"])), newest.get("base", ""), row["description"])
    console.print(table)


@adapters.command()
@click.argument("name")
def get(name: str) -> None:
    """An adapter with its versions, as JSON."""
    console.print_json(data=call("GET", f"/adapters/{name}"))


@adapters.command()
@click.argument("name")
@click.argument("text")
def describe(name: str, text: str) -> None:
    """Give an adapter a description; "" takes it away."""
    call("PATCH", f"/adapters/{name}", json={"description": text})
    click.echo(f"{name} is described.")


@adapters.command()
@click.argument("name")
@click.argument("version", type=int)
@click.option("--expected", type=int, help="Only if this version is promoted now.")
@click.option("--reason", default="", help="Why, for the history.")
def promote(name: str, version: int, expected: int | None, reason: str) -> None:
    """Let a name answer with a version."""
    body = {"version": version, "expected": expected, "reason": reason}
    _told(call("POST", f"/adapters/{name}/promote", json=body))


@adapters.command()
@click.argument("name")
@click.option("--expected", type=int, help="Only if this version is promoted now.")
@click.option("--reason", default="", help="Why, for the history.")
def rollback(name: str, expected: int | None, reason: str) -> None:
    """Let a name answer with the version that was promoted before."""
    _told(call("POST", f"/adapters/{name}/rollback", json={"expected": expected, "reason": reason}))


def _told(adapter: dict[str, Any]) -> None:
    click.echo(f"{adapter['name']} answers with version {adapter['promoted_version']}.")


@adapters.command()
@click.argument("name")
@click.argument("members", nargs=-1, required=True)
@click.option("--method", type=click.Choice(["route", "arrow", "cat", "ties"]), default="route", show_default=True)
@click.option("--threshold", type=float, help="Of route: the score below which the base answers.")
@click.option("--density", type=float, help="Of ties: the share of each adapter's weights that is kept.")
def combine(name: str, members: tuple[str, ...], method: str, **more: float | None) -> None:
    """Let a name answer with several adapters: NAME MEMBER MEMBER …, each perhaps with its weight as in schema=0.7."""
    parts = [
        {"name": member} | ({"weight": weight} if weight else {})
        for member, _, weight in (given.partition("=") for given in members)
    ]
    body: dict[str, Any] = {"name": name, "adapters": parts, "method": method}
    body |= {key: value for key, value in more.items() if value is not None}
    made = call("POST", "/adapters/combine", json=body, timeout=IMPORT_SECONDS)
    version = f", version {made['version']}" if made["version"] else ""
    click.echo(f"{name} answers with {' and '.join(part['name'] for part in made['adapters'])} by {method}{version}.")


@adapters.command()
@click.argument("name")
@click.option("--limit", default=20, show_default=True)
def history(name: str, limit: int) -> None:
    """Which version a name answered with: who changed it, when and why; newest first."""
    table = Table("when", "from", "to", "kind", "who", "why", box=None)
    for row in call("GET", f"/adapters/{name}/promotions", params={"limit": limit})["data"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
        who = row["job_id"] or row["api_key_name"] or row["api_key_id"] or ""
        versions = [str(row[name] or "-") for name in ("from_version", "to_version")]
        table.add_row(when, *versions, row["kind"], who, row["reason"])
    console.print(table)


@adapters.command()
@click.argument("name")
@click.argument("version", type=int)
def lineage(name: str, version: int) -> None:
    """Where a version comes from, as JSON."""
    console.print_json(data=call("GET", f"/adapters/{name}/versions/{version}/lineage"))


@adapters.command()
@click.argument("name")
@click.option("--version", type=int, help="Which one; left out: the promoted one.")
@click.option("--image", help="The trainer image by digest; left out: the one the version was trained in.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--secret", default="llamaflow-engine", show_default=True, help="The Secret with S3's keys and the engine's token."
)
@click.option("--gpus", default=0, show_default=True, type=click.IntRange(0, 64), help="Of each pod.")
@click.option("--memory", default="4Gi", show_default=True, help="Of each pod.")
def manifest(name: str, version: int | None, image: str | None, **place: Any) -> None:
    """Print a Kubernetes manifest that serves a version: `llamaflow adapters manifest kpi | kubectl apply -f -`."""
    if version is None:
        version = call("GET", f"/adapters/{name}")["promoted_version"]
    if version is None:
        raise click.ClickException(f"No version of {name} is promoted: say --version.")
    found = call("GET", f"/adapters/{name}/versions/{version}/lineage")
    try:
        click.echo(kubernetes.manifest(found, kubernetes.Place(image or found["image"] or "", **place)), nl=False)
    except ValueError as problem:
        raise click.ClickException(f"{problem} Say --image.") from None


@adapters.command()
@click.argument("name")
@click.option("--version", type=int, help="This version alone; left out: the adapter with all of them.")
@click.option("--force", is_flag=True, help="Also what is promoted.")
def delete(name: str, version: int | None, force: bool) -> None:
    """Forget an adapter, or one version. Results of jobs stay on S3."""
    path = f"/adapters/{name}" + (f"/versions/{version}" if version is not None else "")
    call("DELETE", path, params={"force": force})
    click.echo(f"{name} is deleted." if version is None else f"Version {version} of {name} is deleted.")


@adapters.command("import")
@click.argument("folder")
@click.option("--name", help="The adapter's name; left out: the folder's.")
@click.option("--base", help="A name of the models file, or name@revision; left out: what adapter_config.json says.")
@click.option("--description", help="Of the adapter.")
@click.option("--promote/--keep", default=True, show_default=True, help="Whether the name answers with it at once.")
@click.option("--reason", default="", help="Why, for the history.")
def import_adapter(folder: str, name: str | None, promote: bool, **more: str | None) -> None:
    """Make a version of a PEFT folder: a local one, which is uploaded, or s3://bucket/folder/."""
    given = {key: value for key, value in more.items() if value}
    body = given | {"name": name or Path(folder.rstrip("/")).resolve().name, "promote": promote}
    with closing(Client.from_settings(get_settings())) as client, ExitStack() as uploads:
        if folder.startswith("s3://"):
            body["uri"] = folder
        else:
            body["files"] = _upload(client, Path(folder), uploads)
        made = client.call("POST", "/adapters/import", json=body, timeout=IMPORT_SECONDS)
    promoted = "promoted" if made["promoted"] else "not promoted"
    click.echo(f"Version {made['version']} of {body['name']}, {promoted}: {made['model']}")


def _upload(client: Client, folder: Path, uploads: ExitStack) -> dict[str, str]:
    """Upload a folder's files; their ids by field. They are deleted again at the end: the import has a copy."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise click.UsageError(f"{folder} holds no {name}; a PEFT folder saved with safetensors is expected.")
    found = {}
    for field, name in UPLOADED.items():
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                made = client.call(
                    "POST",
                    "/files",
                    files={"file": (name, file)},
                    data={"purpose": "fine-tune"},
                    timeout=IMPORT_SECONDS,
                )
            found[field] = made["id"]
            uploads.callback(client.call, "DELETE", f"/files/{made['id']}")
    return found
