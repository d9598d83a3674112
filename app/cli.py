"""The command line `llamaflow`: runs the service or its parts, and talks to a running one.

Imports each part only when its command runs, so that `--help` is quick and the API never loads what it does not need.
"""

from __future__ import annotations

import json
import sys

import click

from app.adapters.cli import adapters
from app.bases.cli import models
from app.feedback.cli import feedback
from app.importing.cli import import_openai, recreate_jobs
from app.jobs.cli import jobs
from app.loops.cli import loops
from app.projects.cli import keys, projects
from app.settings import get_settings
from app.webhooks.cli import webhooks


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llamaflow", prog_name="llamaflow")
def main() -> None:
    """LlamaFlow: fine-tuning as a service."""


main.add_command(jobs)
main.add_command(adapters)
main.add_command(models)
main.add_command(feedback)
main.add_command(loops)
main.add_command(webhooks)
main.add_command(projects)
main.add_command(keys)
main.add_command(import_openai)
main.add_command(recreate_jobs)


@main.command()
def up() -> None:
    """Run the whole embedded service in the foreground: Postgres, S3 server, API, worker, inference engine."""
    from app.embedded import supervisor

    sys.exit(supervisor.main(get_settings()))


@main.command()
def demo() -> None:
    """Show one real job from a dataset on S3 to better answers, in a few minutes."""
    from app.demo import run

    sys.exit(run.main(get_settings()))


@main.command()
@click.option("--host", help="Address to bind; default LLAMAFLOW_HOST.")
@click.option("--port", type=int, help="Port; default LLAMAFLOW_PORT.")
def serve(host: str | None, port: int | None) -> None:
    """Run the HTTP API alone."""
    from app import main as api

    settings = get_settings()
    sys.exit(
        api.serve(
            settings.model_copy(update={"host": host or settings.host, "port": settings.port if port is None else port})
        )
    )


@main.command()
def worker() -> None:
    """Run a worker alone: it claims jobs, runs pipelines, delivers callbacks."""
    from app.worker.__main__ import main as work

    sys.exit(work())


@main.command()
def engine() -> None:
    """Run the embedded inference engine alone, at LLAMAFLOW_ENGINE_URL."""
    from app.embedded import engine as embedded

    sys.exit(embedded.run_foreground(get_settings()))


@main.command()
def migrate() -> None:
    """Bring the database at LLAMAFLOW_DATABASE_URL to the newest schema."""
    import migrations

    migrations.upgrade(get_settings().sqlalchemy_url)
    click.echo("The database is at the newest schema.")


@main.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
def housekeeping(dry_run: bool) -> None:
    """Clear once what is past its time: folders of ended jobs, orphans on S3, old rows, the cache."""
    from app.embedded.beside import completed
    from app.housekeeping import sweep

    for line in sweep.main(completed(get_settings()), dry_run=dry_run) or ["There was nothing to clear."]:
        click.echo(line)


@main.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@click.option("--quick", is_flag=True, help="Compare sizes on S3 instead of reading every adapter whole.")
@click.option("--project", help="Whose results are to be that the database does not know.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(repair: bool, quick: bool, project: str | None, as_json: bool) -> None:
    """Find where database, S3 and running tasks disagree, as after a restore; ends with 1 if something is wrong."""
    from app.doctor import visit
    from app.embedded.beside import completed

    report = visit.main(completed(get_settings()), repair=repair, quick=quick, project=project)
    click.echo(json.dumps(report.as_json(), indent=1) if as_json else "\n".join(report.lines()))
    sys.exit(0 if report.well else 1)


@main.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def nextflow(arguments: tuple[str, ...]) -> None:
    """Run the embedded Nextflow, such as `llamaflow nextflow run pipeline/main.nf --input s3://…`."""
    from app.nextflow import process

    sys.exit(process.run_nextflow(get_settings(), list(arguments)))
