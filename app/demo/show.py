"""What the demonstration prints: a numbered line a step, a progress bar while the model trains, answers side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.demo.dataset import Question

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 150)


class Stage:
    """A step under way: its bar can be moved, its closing line be set."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.result = ""

    def move(self, done: float, total: float, text: str) -> None:
        """Show `done` of `total` and what is being done."""
        self._progress.update(self._task, completed=done, total=total, note=text)

    def note(self, text: str) -> None:
        """Show what is being done."""
        self._progress.update(self._task, note=text)


class Show:
    """Prints the steps of one demonstration and keeps their seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[Stage]:
        """One numbered step: a bar while it runs, one clear line when it is done."""
        began = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            stage = Stage(progress, progress.add_task(title, total=None, note=""))
            if not console.is_terminal:
                console.print(f"… {title}")
            yield stage
        self.seconds[title] = time.monotonic() - began
        number = len(self.seconds)
        console.print(
            f"[green]✓[/] [bold]{number}. {title}[/] [dim]({self.seconds[title]:.1f} s)[/]"
            + (f"\n     {stage.result}" if stage.result else "")
        )

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began


def side_by_side(questions: list[Question], base: list[str], tuned: list[str], *, rows: int = 8) -> None:
    """A table of the first of every few questions with both models' answers, right ones green."""
    table = Table(
        "question",
        "base",
        "fine-tuned",
        show_lines=False,
        expand=False,
        title="The same held-out questions, asked of both models",
    )
    every = max(1, len(questions) // rows)
    for question, before, after in list(zip(questions, base, tuned, strict=True))[::every]:
        table.add_row(question.text, _mark(question, before), _mark(question, after))
    console.print(table)


def _mark(question: Question, answer: str) -> str:
    text = " ".join(answer.split())
    text = text if len(text) <= 60 else text[:57] + "…"
    return f"[green]{text}[/]" if question.right(answer) else f"[red]{text}[/]"
