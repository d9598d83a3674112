"""`llamaflow import-openai` and `llamaflow recreate`: the way over from OpenAI's hosted fine-tuning."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict

import click

from app.client import Client, ServiceError
from app.importing import bring
from app.importing.reader import Reader, ReadError
from app.importing.recreate import Line, recreate
from app.settings import ImportSettings, get_settings


@contextmanager
def _told() -> Iterator[None]:
    """Shows a refusal's sentence instead of a traceback."""
    try:
        yield
    except (ServiceError, ReadError) as problem:
        raise click.ClickException(str(problem)) from problem


@click.command("import-openai")
@click.option("--dry-run", is_flag=True, help="Only list what there is.")
@click.option("--files/--no-files", default=True, show_default=True, help="Datasets and result files.")
@click.option("--jobs/--no-jobs", default=True, show_default=True, help="Jobs with their events and checkpoints.")
def import_openai(dry_run: bool, files: bool, jobs: bool) -> None:
    """Bring files, jobs, events and hyperparameters over from OpenAI.

    The key is OPENAI_API_KEY of the environment; it is sent to OpenAI alone and stored nowhere. Run it as often as you like:
    what is here is not asked for again, and what was cut off goes on.
    """
    with _told(), closing(Reader.from_settings(ImportSettings())) as reader:
        if dry_run:
            for line in bring.listing(reader):
                click.echo(line)
            return
        with closing(Client.from_settings(get_settings())) as client:
            done = bring.bring(reader, client, click.echo, files=files, jobs=jobs)
    click.echo(
        f"{done.files} files, {done.jobs} jobs and {done.events:,} events brought; {done.there} were here already."
    )
    for failed in done.failed:
        click.echo(f"not brought: {failed}", err=True)
    sys.exit(1 if done.failed else 0)


@click.command("recreate")
@click.argument("jobs", nargs=-1)
@click.option(
    "--map",
    "mapped",
    multiple=True,
    metavar="MODEL=BASE",
    help="What is trained here for one of OpenAI's models. Repeatable; an alias in the models file needs none.",
)
@click.option("--wait", is_flag=True, help="Follow each job to its end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def recreate_jobs(jobs: tuple[str, ...], mapped: tuple[str, ...], wait: bool, as_json: bool) -> None:
    """Make imported JOBS again on open bases, and print old model → new model.

    JOBS are ids of OpenAI's jobs or models; left out: every imported job that succeeded. A job is made once: typed again, the
    command says how far it is.
    """
    pairs = [pair.rpartition("=") for pair in mapped]
    if wrong := [pair for pair, (model, _, base) in zip(mapped, pairs, strict=True) if not (model and base)]:
        raise click.BadParameter(f"{wrong[0]!r} is not MODEL=BASE", param_hint="--map")

    def say(line: Line) -> None:
        click.echo(json.dumps(asdict(line)) if as_json else str(line))

    with _told(), closing(Client.from_settings(get_settings())) as client:
        bases = {model: base for model, _, base in pairs}
        lines = recreate(client, set(jobs) or None, bases, wait=wait, say=say)
    if not lines:
        click.echo("There is nothing to recreate: bring jobs over with llamaflow import-openai.", err=True)
    sys.exit(0 if all(line.job for line in lines) else 1)
