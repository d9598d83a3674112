"""Golden tests of Nextflow's command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.nextflow import command
from app.nextflow.command import Order

pytestmark = pytest.mark.unit

SESSION = "11111111-2222-3333-4444-555555555555"
FOLDER = Path("/srv/runs/ftjob-abc")
FIRST = Order("ftjob-abc", FOLDER, FOLDER / "run-1", SESSION, resume=False, profile="local")


def build(order: Order) -> command.Launch:
    return command.build(
        order,
        nextflow=["/jre/bin/java", "nextflow.cli.Launcher"],
        pipeline=Path("/app/pipeline/main.nf"),
        env={"PATH": "/usr/bin", "NXF_OFFLINE": "true"},
        bin_dir=Path("/venv/bin"),
    )


def test_the_first_launch_names_its_session_by_the_environment() -> None:
    launch = build(FIRST)
    assert " ".join(launch.argv) == (
        "/jre/bin/java nextflow.cli.Launcher -log /srv/runs/ftjob-abc/run-1/nextflow.log run /app/pipeline/main.nf"
        " -ansi-log false -work-dir /srv/runs/ftjob-abc/work -params-file /srv/runs/ftjob-abc/run-1/params.json"
        " -with-trace /srv/runs/ftjob-abc/run-1/trace.tsv -profile local"
    )
    assert launch.cwd == FOLDER / "launch"
    assert launch.env == {
        "PATH": "/venv/bin:/usr/bin",
        "NXF_OFFLINE": "true",
        "NXF_UUID": SESSION,
        "LLAMAFLOW_RUN": "ftjob-abc",
    }


def test_a_later_launch_resumes_the_session_with_logs_of_its_own() -> None:
    launch = build(replace(FIRST, run_folder=FOLDER / "run-2", resume=True, stub=True))
    assert launch.argv[-3:] == ("-resume", SESSION, "-stub-run")
    assert "/srv/runs/ftjob-abc/run-2/trace.tsv" in launch.argv
    assert "NXF_UUID" not in launch.env


def test_parameters_hold_only_what_the_service_made() -> None:
    assert json.loads(command.parameters(FIRST)) == {"run_label": "ftjob-abc", "steps": "/srv/runs/ftjob-abc/steps"}


def test_where_no_disk_is_shared_they_name_the_file_that_leads_to_the_service() -> None:
    apart = replace(FIRST, access=FOLDER / "access.json")
    assert json.loads(command.parameters(apart))["access"] == "/srv/runs/ftjob-abc/access.json"
    assert build(apart) == build(FIRST)


@pytest.mark.parametrize(
    "wrong", [{"job": "a b"}, {"job": "$(id)"}, {"profile": "../x"}, {"session": "last"}, {"job": ""}]
)
def test_nothing_but_names_reaches_the_command_line(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        replace(FIRST, **wrong)
