"""`llamaflow loops …`: adapters that are trained again, as a thin client of the HTTP API."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from app.client import call
from app.jobs.cli import Commands, console


@click.group(cls=Commands)
def loops() -> None:
    """Train adapters again as feedback comes in."""


@loops.command()
@click.argument("adapter")
@click.option("--every", help="Such as 12h or 7d.")
@click.option("--min-new-examples", type=int, help="Corrections that begin a round.")
@click.option("--metric", required=True, help="Of the gate: loss, token_accuracy, exact_match, contains, chrf.")
@click.option("--min", "least", type=float, help="What the metric must reach.")
@click.option("--min-delta", type=float, help="By how much it must be better.")
@click.option("--confidence", type=float, help="Such as 0.95.")
@click.option("--better-than", type=click.Choice(["base", "current"]), default="current", show_default=True)
def create(
    adapter: str, every: str | None, min_new_examples: int | None, metric: str, least: float | None, **gate: Any
) -> None:
    """Train an adapter again when there are enough corrections."""
    gate = {"metric": metric, "min": least, **gate}
    body = {"adapter": adapter, "every": every, "min_new_examples": min_new_examples, "gate": gate}
    _told(call("POST", "/loops", json=body))


@loops.command("list")
def list_loops() -> None:
    """The project's loops."""
    table = Table("id", "adapter", "status", "rounds", "last", "waits for", box=None)
    for row in call("GET", "/loops")["data"]:
        last = row["rounds"][0] if row["rounds"] else None
        told = f"{last['job_id']} {last['verdict'] or last['job_status']}" if last else ""
        number = str(last["number"]) if last else "0"
        table.add_row(
            row["id"], row["adapter"], row["status"], number, told, row["paused_reason"] or row["waits_for"] or ""
        )
    console.print(table)


@loops.command()
@click.argument("loop_id")
def get(loop_id: str) -> None:
    """A loop with its rounds, as JSON."""
    console.print_json(data=call("GET", f"/loops/{loop_id}"))


@loops.command()
@click.argument("loop_id")
def pause(loop_id: str) -> None:
    """Begin no more rounds."""
    _told(call("POST", f"/loops/{loop_id}/pause"))


@loops.command()
@click.argument("loop_id")
def resume(loop_id: str) -> None:
    """Begin rounds again."""
    _told(call("POST", f"/loops/{loop_id}/resume"))


@loops.command()
@click.argument("loop_id")
def delete(loop_id: str) -> None:
    """Forget a loop; its jobs and versions stay."""
    call("DELETE", f"/loops/{loop_id}")
    click.echo(f"{loop_id} is deleted.")


def _told(loop: dict[str, Any]) -> None:
    click.echo(f"{loop['id']} of {loop['adapter']}: {loop['status']}")
