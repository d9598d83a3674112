"""`llamaflow jobs …`: a thin client of the HTTP API; nothing here knows more than the API says."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from app.client import Client, ServiceError
from app.settings import get_settings
from finetune.estimate.result import Estimate, sentence

console = Console() if sys.stdout.isatty() else Console(width=240)
"""Ids are never cut: whoever pipes the list elsewhere gets them whole."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and the ends of lines."""


class Commands(click.Group):
    """Shows the service's own sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ServiceError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands)
def jobs() -> None:
    """Create and follow fine-tuning jobs."""


def _client() -> Client:
    client = Client.from_settings(get_settings())
    click.get_current_context().call_on_close(client.close)
    return client


@jobs.command()
@click.option("--model", help="A name of the models file, a Hugging Face id, or id@revision.")
@click.option("--training-file", help="file-… or s3://bucket/key.")
@click.option("--validation-file", help="file-… or s3://bucket/key.")
@click.option("--suffix", help="Part of the new model's name.")
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Any other field, such as hyperparameters.n_epochs=3. Repeatable.",
)
@click.option(
    "--json",
    "body_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The request body as a file; options add to it.",
)
@click.option("--callback-url", help="Where the signed callback goes.")
@click.option("--watch/--no-watch", default=False, help="Follow the job to its end.")
@click.option("--estimate", is_flag=True, help="Only say what the job would take; nothing is created.")
def create(body_file: Path | None, options: tuple[str, ...], watch: bool, estimate: bool, **fields: str | None) -> None:
    """Create a job and print its id."""
    body: dict[str, Any] = json.loads(body_file.read_text(encoding="utf-8")) if body_file else {}
    body |= {name: value for name, value in fields.items() if value is not None}
    for option in options:
        _put(body, option)
    client = _client()
    if estimate:
        _estimate(client, body)
        return
    job = client.call("POST", "/fine_tuning/jobs", json=body)
    console.print(job["id"], highlight=False)
    if watch:
        _watch(client, job["id"])


def _estimate(client: Client, body: dict[str, Any]) -> None:
    found = Estimate.model_validate(client.call("POST", "/fine_tuning/jobs/estimate", json=body))
    if found.error is not None:
        raise click.ClickException(found.error.message)
    for warning in found.warnings:
        click.echo(warning, err=True)
    steps = " to ".join(f"{bound:,}" for bound in sorted(set(found.total_steps or ())))
    console.print(f"{steps} steps. {sentence(found)}.", highlight=False)


def _put(body: dict[str, Any], option: str) -> None:
    """Write `a.b=value` into a nested body; the value is JSON if it parses, else text."""
    name, separator, raw = option.partition("=")
    if not separator:
        raise click.BadParameter(f"{option!r} is not FIELD=VALUE", param_hint="--set")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = raw
    *path, last = name.split(".")
    for part in path:
        body = body.setdefault(part, {})
    body[last] = value


@jobs.command("list")
@click.option("--limit", default=20, show_default=True)
def list_jobs(limit: int) -> None:
    """The newest jobs."""
    table = Table(box=None)
    for name in ("id", "status", "progress", "created", "model", "fine-tuned model"):
        table.add_column(
            name, no_wrap=name != "fine-tuned model", overflow="fold" if name == "fine-tuned model" else "ignore"
        )
    for job in _client().call("GET", "/fine_tuning/jobs", params={"limit": limit})["data"]:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
        percent = (job.get("progress") or {}).get("percent")
        shown = f"{percent:.0f} %" if percent is not None else ""
        table.add_row(job["id"], job["status"], shown, created, job["model"], job["fine_tuned_model"] or "")
    console.print(table)


@jobs.command()
@click.argument("job_id")
def get(job_id: str) -> None:
    """A job as JSON."""
    console.print_json(data=_client().call("GET", f"/fine_tuning/jobs/{job_id}"))


@jobs.command()
@click.argument("job_id")
def watch(job_id: str) -> None:
    """Follow a job's events to its end; exit 1 unless it succeeded."""
    _watch(_client(), job_id)


def _watch(client: Client, job_id: str) -> None:
    for event in client.events(job_id):
        at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
        style = {"error": "red", "warn": "yellow"}.get(event["level"], "")
        console.print(f"{at}  {plain(event['message'])}", style=style, highlight=False, markup=False)
    if client.call("GET", f"/fine_tuning/jobs/{job_id}")["status"] != "succeeded":
        raise click.exceptions.Exit(1)


@jobs.command()
@click.argument("job_id")
@click.option("--stage", help="One stage, such as FINE_TUNE.")
@click.option("--tail", type=int, help="Only the last lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on with each line as it comes, until the job has ended.")
def logs(job_id: str, stage: str | None, tail: int | None, follow: bool) -> None:
    """A job's log."""
    params = {name: value for name, value in {"stage": stage, "tail": tail}.items() if value is not None}
    if follow:
        for text in _client().follow_logs(job_id, **params):
            click.echo(plain(text), nl=False)
    else:
        click.echo(plain(_client().call("GET", f"/fine_tuning/jobs/{job_id}/logs", params=params)), nl=False)


def plain(text: str) -> str:
    """Text that others wrote, without codes that would steer the terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@jobs.command()
@click.argument("job_id")
def cancel(job_id: str) -> None:
    """Ask for a job to be cancelled."""
    job = _client().call("POST", f"/fine_tuning/jobs/{job_id}/cancel")
    click.echo(f"{job['id']}: {job['status']}" + ("" if job["status"] == "cancelled" else ", cancel requested"))


@jobs.command()
@click.argument("job_id")
def pause(job_id: str) -> None:
    """Ask for a job to be paused; a training under way saves a checkpoint first."""
    job = _client().call("POST", f"/fine_tuning/jobs/{job_id}/pause")
    click.echo(f"{job['id']}: {job['status']}" + ("" if job["status"] == "paused" else ", pause requested"))


@jobs.command()
@click.argument("job_id")
def resume(job_id: str) -> None:
    """Let a paused job go on where it was."""
    job = _client().call("POST", f"/fine_tuning/jobs/{job_id}/resume")
    click.echo(f"{job['id']}: {job['status']}")


@jobs.command()
@click.argument("job_id")
@click.option("--watch/--no-watch", default=False, help="Follow the new job to its end.")
def retry(job_id: str, watch: bool) -> None:
    """Make a new job of one that failed or was cancelled, and print its id."""
    client = _client()
    job = client.call("POST", f"/fine_tuning/jobs/{job_id}/retry")
    console.print(job["id"], highlight=False)
    if watch:
        _watch(client, job["id"])
