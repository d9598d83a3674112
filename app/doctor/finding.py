"""What a doctor is given and what it finds: plain sentences, each with the way out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from app.db import Database
from app.settings import Settings


@dataclass(frozen=True)
class Patient:
    """The service that is looked at.

    Attributes:
        repair: Mend what can be mended.
        quick: Compare sizes on S3, and do not read every adapter whole.
        project: Whose the results are to be that the database does not know; None if there is one project only.
    """

    settings: Settings
    database: Database
    repair: bool = False
    quick: bool = False
    project: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        subject: What it is about, such as `job ftjob-…`.
        problem: What is wrong.
        way_out: What mends it.
        repaired: What was done about it; None if nothing was.
    """

    subject: str
    problem: str
    way_out: str = "llamaflow doctor --repair"
    repaired: str | None = None

    def line(self) -> str:
        """As it is printed."""
        if self.repaired is not None:
            return f"repaired  {self.subject}: {self.problem} {self.repaired}"
        return f"wrong     {self.subject}: {self.problem} Way out: {self.way_out}"


@dataclass(frozen=True)
class Sign:
    """One part of the surroundings: whether it is well, and what is to be said of it."""

    part: str
    well: bool
    said: str

    def line(self) -> str:
        """As it is printed."""
        return f"{'ok' if self.well else 'wrong':9} {self.part}: {self.said}"


@dataclass(frozen=True)
class Report:
    """Everything that was looked at."""

    signs: list[Sign]
    findings: list[Finding]

    @property
    def well(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(sign.well for sign in self.signs) and all(found.repaired is not None for found in self.findings)

    def lines(self) -> list[str]:
        """Plain lines, the last one a summary."""
        wrong = sum(not sign.well for sign in self.signs) + sum(found.repaired is None for found in self.findings)
        repaired = sum(found.repaired is not None for found in self.findings)
        said = [f"{repaired} repaired"] if repaired else []
        said += [f"{wrong} wrong"] if wrong else ["nothing is wrong" + (" any more" if repaired else "")]
        shown = [sign.line() for sign in self.signs] + [found.line() for found in self.findings]
        return [*shown, ", ".join(said).capitalize() + "."]

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "ok": self.well,
            "surroundings": [asdict(sign) for sign in self.signs],
            "findings": [asdict(found) for found in self.findings],
        }
