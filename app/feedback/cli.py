"""`llamaflow feedback …`: what answers were worth, as a thin client of the HTTP API."""

from __future__ import annotations

import click
from rich.table import Table

from app.client import call
from app.jobs.cli import Commands, console


@click.group(cls=Commands)
def feedback() -> None:
    """Ratings and corrections of answers, and training data made of them."""


@feedback.command()
@click.argument("completion")
@click.option("--rating", type=click.Choice(["good", "bad"]))
@click.option("--correction", help="What should have been answered.")
@click.option("--comment", default="")
def give(completion: str, rating: str | None, correction: str | None, comment: str) -> None:
    """Rate or correct an answer by its completion's id."""
    body = {"completion_id": completion, "rating": rating, "correction": correction, "comment": comment}
    row = call("POST", "/feedback", json=body)
    click.echo(
        f"{row['id']}: {row['rating']}" + (f", version {row['version']} of {row['adapter']}" if row["adapter"] else "")
    )


@feedback.command("list")
@click.option("--adapter", help="On versions of this one.")
@click.option("--rating", type=click.Choice(["good", "bad"]))
@click.option("--limit", default=20, show_default=True)
def list_feedback(adapter: str | None, rating: str | None, limit: int) -> None:
    """What was said, newest first."""
    asked = {
        key: value for key, value in (("adapter", adapter), ("rating", rating), ("limit", limit)) if value is not None
    }
    table = Table("id", "model", "version", "rating", "asked", "answered", "corrected", box=None)
    for row in call("GET", "/feedback", params=asked)["data"]:
        question = row["messages"][-1]["content"] if row["messages"] else ""
        shown = [question, row["answer"], row["correction"] or ""]
        table.add_row(row["id"], row["model"], str(row["version"] or ""), row["rating"], *(text[:40] for text in shown))
    console.print(table)


@feedback.command()
@click.option("--adapter", help="Of this one.")
def rates(adapter: str | None) -> None:
    """How many answers of each version were rated, and how many bad."""
    table = Table("adapter", "version", "ratings", "bad", "rate", "corrections", box=None)
    for row in call("GET", "/feedback/rates", params={"adapter": adapter} if adapter else {})["data"]:
        numbers = (row["version"], row["ratings"], row["bad"], f"{row['bad_rate']:.0%}", row["corrections"])
        table.add_row(row["adapter"], *(str(number) for number in numbers))
    console.print(table)


@feedback.command()
@click.argument("adapter")
@click.option("--uri", help="s3://bucket/key; left out: a file of the project.")
@click.option("--include-good", is_flag=True, help="Also answers rated good.")
def export(adapter: str, uri: str | None, include_good: bool) -> None:
    """Write an adapter's corrections as a dataset."""
    made = call("POST", "/feedback/export", json={"adapter": adapter, "uri": uri, "include_good": include_good})
    left = made["already_trained"] + made["held_out"] + made["repeated"]
    click.echo(f"{made['examples']} examples, {left} left out: {made['file_id'] or made['uri']}")


@feedback.command()
@click.argument("feedback_id")
def delete(feedback_id: str) -> None:
    """Forget what was said, with the conversation."""
    call("DELETE", f"/feedback/{feedback_id}")
    click.echo(f"{feedback_id} is deleted.")
