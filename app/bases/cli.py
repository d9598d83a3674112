"""`llamaflow models …`: the bases that requests may name, and the aliases they may name them by."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

from app.bases import check as checks
from app.bases.edit import add as add_entry
from app.client import Client
from app.jobs.cli import Commands, console
from app.settings import get_settings
from finetune.exit_codes import StepError
from finetune.model import catalog

FileOption = click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The models file; default LLAMAFLOW_MODELS_FILE.",
)


@click.group(cls=Commands)
def models() -> None:
    """Bases and aliases: the models file."""


@models.command("list")
def list_models() -> None:
    """Every model the service knows for your key."""
    table = Table(Column("id", no_wrap=True, overflow="ignore"), "base", "revision", "license", "limits", box=None)
    with closing(Client.from_settings(get_settings())) as client:
        for row in client.call("GET", "/models")["data"]:
            limits = " ".join(f"{name}={most}" for name, most in (row["limits"] or {}).items())
            table.add_row(row["id"], row["base"] or "", (row["revision"] or "")[:12], row["license"] or "", limits)
    console.print(table)


@models.command()
@click.argument("name")
@click.option("--alias", help="Another name of the file that this one stands for.")
@click.option("--location", help="A Hugging Face id, an S3 prefix or a folder; left out: the name.")
@click.option("--source", type=click.Choice(["hub", "s3", "path", "package"]), help="Default: hub.")
@click.option("--revision", help="A commit of the hub, or the sha256 over the files.")
@click.option("--template", "template_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A chat template that replaces the model's own, as a file.")  # fmt: skip
@click.option("--license", "license_", help="Such as apache-2.0.")
@click.option("--description", help="For people.")
@click.option("--max-length", type=int, help="Tokens of an example that a job may ask for at most.")
@click.option("--max-epochs", type=int, help="Epochs that a job may ask for at most.")
@FileOption
def add(name: str, file: Path | None, template_file: Path | None, license_: str | None, **given: Any) -> None:
    """Add NAME to the models file: a base, or an alias such as gpt-4o-mini-2024-07-18 for one.

    The service reads the file anew when it has changed. A file that is not there yet begins as the one that comes with
    LlamaFlow.
    """
    settings = get_settings()
    target = file or settings.models_file
    if target is None:
        raise click.UsageError("Say which models file with --file, or set LLAMAFLOW_MODELS_FILE.")
    fields = {key: value for key, value in given.items() if value is not None}
    fields |= {"license": license_} if license_ else {}
    if template_file is not None:
        fields["template"] = template_file.read_text(encoding="utf-8")
    try:
        entry = add_entry(target, name, fields)
    except (StepError, OSError) as problem:
        raise click.ClickException(getattr(problem, "message", str(problem))) from problem
    for remark in checks.check({name: entry}, online=False):
        click.echo(str(remark), err=True)
    click.echo(f"{name} is in {target}.")
    if settings.models_file is None:
        click.echo(f"The service reads it when it is started with LLAMAFLOW_MODELS_FILE={target.absolute()}.")


@models.command()
@click.option(
    "--online", is_flag=True, help="Also ask the hub whether its models are there (HF_TOKEN opens gated ones)."
)
@FileOption
def check(file: Path | None, online: bool) -> None:
    """Check the models file; ends with 1 if something is wrong."""
    settings = get_settings()
    try:
        entries = catalog.load(file or settings.models_file)
    except StepError as problem:
        raise click.ClickException(problem.message) from problem
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    remarks = list(checks.check(entries, online=online, token=token))
    for remark in remarks:
        click.echo(str(remark))
    wrong = sum(remark.level == "error" for remark in remarks)
    click.echo(f"{len(entries)} models, {wrong} wrong.")
    sys.exit(1 if wrong else 0)
