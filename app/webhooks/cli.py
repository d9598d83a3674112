"""`llamaflow webhooks …`: endpoints, the callbacks' secret and the log of deliveries, as a thin client of the HTTP API."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click
from rich.table import Column, Table

from app.client import call
from app.jobs.cli import Commands, console

ID = Column("id", no_wrap=True, overflow="ignore")


@click.group(cls=Commands)
def webhooks() -> None:
    """Endpoints, secrets and deliveries of callbacks."""


@webhooks.command("list")
def list_endpoints() -> None:
    """The project's endpoints."""
    table = Table(replace(ID), "name", "url", "events", "state", box=None)
    for row in call("GET", "/webhook_endpoints", params={"limit": 100})["data"]:
        state = row["disabled_reason"] or "told"
        table.add_row(row["id"], row["name"], row["url"], " ".join(row["event_types"]), state)
    console.print(table)


@webhooks.command()
@click.argument("url")
@click.option("--name", required=True, help="For people.")
@click.option("--event", "events", multiple=True, help="What it is told of; default: the three ways a job ends.")
def create(url: str, name: str, events: tuple[str, ...]) -> None:
    """Make an endpoint; its id and its secret are printed, the secret this once."""
    body = {"url": url, "name": name} | ({"event_types": list(events)} if events else {})
    _secret(call("POST", "/webhook_endpoints", json=body))


@webhooks.command()
@click.argument("endpoint_id")
def delete(endpoint_id: str) -> None:
    """Delete an endpoint."""
    click.echo(f"{call('DELETE', f'/webhook_endpoints/{endpoint_id}')['id']} is deleted.")


@webhooks.command()
@click.argument("endpoint_id", required=False)
@click.option("--keep-old/--drop-old", default=True, show_default=True, help="Whether the old one signs for a day.")
def rotate(endpoint_id: str | None, keep_old: bool) -> None:
    """Give an endpoint, or without one the callbacks of jobs, a new secret, and print it."""
    if endpoint_id is None:
        if not keep_old:
            raise click.UsageError("The callbacks' old secret always stays valid for 24 hours.")
        click.echo(call("POST", "/webhook_secret/rotate")["secret"])
        return
    body = {"keep_old_secret_active_for_24_hours": keep_old}
    _secret(call("POST", f"/webhook_endpoints/{endpoint_id}/rotate_secret", json=body))


@webhooks.command()
def secret() -> None:
    """The secret that signs the callbacks of jobs; needs a key with the scope admin."""
    click.echo(call("GET", "/webhook_secret")["secret"])


@webhooks.command()
@click.argument("endpoint_id")
@click.option("--event", default="fine_tuning.job.succeeded", show_default=True)
def test(endpoint_id: str, event: str) -> None:
    """Send a made-up event to an endpoint now, and tell what it answers."""
    status = call("POST", f"/webhook_endpoints/{endpoint_id}/test", json={"event_type": event})["status_code"]
    click.echo(f"{endpoint_id} answered {status}.")
    if not 200 <= status < 300:
        raise click.exceptions.Exit(1)


@webhooks.command()
@click.argument("job_id", required=False)
@click.option("--status", type=click.Choice(["pending", "delivered", "dead"]))
@click.option("--limit", default=20, show_default=True)
def deliveries(job_id: str | None, status: str | None, limit: int) -> None:
    """What was sent because of a job, or in the whole project, newest first."""
    path = f"/fine_tuning/jobs/{job_id}/deliveries" if job_id else "/webhook_deliveries"
    if job_id and status:
        raise click.UsageError("--status is for the project's deliveries, without a job.")
    params = {"limit": limit} | ({"status": status} if status else {})
    table = Table(replace(ID), "created", "type", "url", "status", "tries", "last", box=None)
    for row in call("GET", path, params=params)["data"]:
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
        last = row["attempts"][-1] if row["attempts"] else {}
        said = row["waiting"] or last.get("error") or str(last.get("response_status", ""))
        table.add_row(row["id"], created, row["type"], row["url"], row["status"], str(len(row["attempts"])), said)
    console.print(table)


@webhooks.command()
@click.argument("delivery_id")
def redeliver(delivery_id: str) -> None:
    """Send a delivery again, from the start of the schedule."""
    row = call("POST", f"/webhook_deliveries/{delivery_id}/redeliver")
    click.echo(f"{row['id']}: {row['status']}, {row['type']} to {row['url']}")


def _secret(endpoint: dict[str, Any]) -> None:
    click.echo(endpoint["id"])
    click.echo(endpoint["signing_secret"])
    click.echo("The secret is not shown again.", err=True)
