"""`llamaflow projects …` and `llamaflow keys …`: for whoever runs the service, straight at its database.

The database is LLAMAFLOW_DATABASE_URL's, else that of the `llamaflow up` running on the state folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.embedded.beside import completed
from app.errors import ApiError
from app.models import ApiKey
from app.projects import service
from app.settings import get_settings
from app.webhooks.signing import new_webhook_secret

T = TypeVar("T")
KEEP = click.option(
    "--keep-completions", type=click.FloatRange(0, 3650), metavar="DAYS", help="Keep its chat completions; 0: none."
)
SHARED = "(the setting's: LLAMAFLOW_PATH_ALLOW)"


class Commands(click.Group):
    """Shows a refusal's sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ApiError as refused:
            raise click.ClickException(refused.message) from refused
        except RuntimeError as problem:
            raise click.ClickException(str(problem)) from problem


def _do(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """What `work` answers, in one transaction."""

    async def once() -> T:
        database = Database.from_settings(completed(get_settings()), pool_size=1)
        try:
            async with database.transaction() as db:
                return await work(db)
        finally:
            await database.close()

    return asyncio.run(once())


@click.group(cls=Commands)
def projects() -> None:
    """Make and list projects."""


@projects.command("create")
@click.argument("name")
@click.option("--path-allow", multiple=True, metavar="S3-PREFIX", help="What its jobs may read and write. Repeatable.")
def create_project(name: str, path_allow: tuple[str, ...]) -> None:
    """Make a project; then make it a key."""
    allowed = list(path_allow) or None
    row = _do(lambda db: service.create_project(db, name, path_allow=allowed, webhook_secret=new_webhook_secret()))
    click.echo(f"{row.id}  {row.name}. Its first key: llamaflow keys create --project {row.name}")


@projects.command("set")
@click.argument("name")
@click.option("--path-allow", multiple=True, metavar="S3-PREFIX", help="What its jobs may read and write. Repeatable.")
def set_project(name: str, path_allow: tuple[str, ...]) -> None:
    """Change which S3 prefixes a project may use; with none, those of LLAMAFLOW_PATH_ALLOW."""
    row = _do(lambda db: service.set_paths(db, name, list(path_allow) or None))
    click.echo(f"{row.name}: {', '.join(row.path_allow or [SHARED])}")


@projects.command("list")
def list_projects() -> None:
    """Every project and what it may read and write."""
    for row in _do(service.projects):
        click.echo(f"{row.id}  {row.name}  {', '.join(row.path_allow or [SHARED])}")


@click.group(cls=Commands)
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create")
@click.option("--project", default="default", show_default=True)
@click.option("--name", default="", help="For you, such as n8n.")
@click.option(
    "--scope", "scopes", multiple=True, default=("read", "write"), show_default=True, help="read, write, admin."
)
@KEEP
def create_key(project: str, name: str, scopes: tuple[str, ...], keep_completions: float | None) -> None:
    """Make a key and print it: this once, for only its hash is kept."""

    async def make(db: AsyncSession) -> tuple[ApiKey, str]:
        made = await service.create_key(db, project, name=name, scopes=list(scopes))
        await service.keep_completions(db, made[0].id, keep_completions or 0)
        return made

    row, key = _do(make)
    click.echo(key)
    click.echo(f"{row.id}: {', '.join(row.scopes)} in project {project}. It is not shown again.", err=True)


@keys.command("set")
@click.argument("key_id")
@KEEP
def set_key(key_id: str, keep_completions: float | None) -> None:
    """Change whether the chat completions asked for with a key are kept, so that feedback can be given on them."""
    if keep_completions is None:
        raise click.UsageError("Say --keep-completions DAYS; 0 keeps none.")
    row = _do(lambda db: service.keep_completions(db, key_id, keep_completions))
    kept = (
        f"kept for {keep_completions:g} days" if row.keep_completions else "not kept, and those that were are deleted"
    )
    click.echo(f"{row.id}: its completions are {kept}.")


@keys.command("list")
@click.option("--project", help="Of one project.")
def list_keys(project: str | None) -> None:
    """Every key, without the key itself."""
    for row, owner in _do(lambda db: service.keys(db, project)):
        state = f"revoked {row.revoked_at:%Y-%m-%d %H:%M}" if row.revoked_at else "valid"
        click.echo(f"{row.id}  {owner}  {','.join(row.scopes)}  {row.created_at:%Y-%m-%d %H:%M}  {state}  {row.name}")


@keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """End a key. Jobs it made go on."""
    row = _do(lambda db: service.revoke(db, key_id))
    click.echo(f"{row.id} is revoked.")
