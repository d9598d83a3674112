"""Which addresses a project may name: whole names of folders count, and nobody reaches another's uploads."""

from __future__ import annotations

import pytest

from app.errors import BadRequest
from app.files import paths

pytestmark = pytest.mark.unit

PREFIXES = ["s3://data/team", "s3://data/shared/", "s3://own/"]
ALLOWED = (
    "s3://data/team/x.jsonl", "s3://data/team/deep/er/x", "s3://data/shared/", "s3://own/anything", "s3://own/x y+z.jsonl",
    "s3://own/files/proj_a/file-1", "s3://own/files-of-mine/x", "s3://own/%2e%2e/x", "s3://own/..%2ffiles/x", "s3://own/\u202efiles",
)  # fmt: skip
JOB = "ftjob-" + "aB3" * 8
REFUSED = (
    "s3://data/team/../team-secret/x", "s3://data/team\\..\\secret", "s3://data/Team/x", "s3://data/te\u0301am/x", "s3://data/%74eam/x",
    "s3://data/team%2fx", "s3://data/team\u2215x", "s3://data/team\u200b/x", "s3://own/FILES/proj_b/file-1", "s3://own/Files/",
    "s3://own/files/proj_a/../proj_b/x", "s3://own/files/proj_a%2f..%2fproj_b/../x", "s3://own/./files/proj_b/x",
    "s3://data/team-secret/x", "s3://data/teamx", "s3://data/x", "s3://data/", "s3://other/team/x", "s3://owner/x",
    "s3://data/team/../x", "s3://data/team/./x", "s3://data/team//x", "s3://own//x", "s3://data/shared/..",
    "s3://own/files/proj_b/file-1", "s3://own/files/", "s3://own/files/proj_ab/x", "s3://own/",
)  # fmt: skip


def allow(uri: str, param: str = "training_file") -> str:
    return paths.allow(uri, prefixes=PREFIXES, uploads="s3://own/files/", project_id="proj_a", param=param)


@pytest.mark.parametrize("uri", ALLOWED)
def test_what_lies_below_an_allowed_prefix_passes(uri: str) -> None:
    assert allow(uri) == uri


@pytest.mark.parametrize("uri", REFUSED)
def test_what_lies_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(BadRequest) as refused:
        allow(uri)
    assert (refused.value.code, refused.value.param) == ("path_not_allowed", "training_file")


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "https://own/x", "s3:/own/x", "s3://own", "s3://OWN/x", "s3://own/a\nb", "own/x"]
)
def test_what_is_no_s3_address_is_refused(uri: str) -> None:
    with pytest.raises(BadRequest) as refused:
        allow(uri)
    assert refused.value.code == "invalid_value"


def test_results_may_go_to_the_root_of_a_bucket_but_not_among_uploads() -> None:
    assert allow("s3://own/", "output.path")
    with pytest.raises(BadRequest, match="uploads"):
        allow("s3://own/files/proj_b/", "output.path")


def test_results_never_go_into_the_folder_of_a_job() -> None:
    for path in (f"s3://own/{JOB}/", f"s3://own/model/{JOB}/adapter/", f"s3://own/{JOB.upper()}/"):
        with pytest.raises(BadRequest, match="folder of a job"):
            allow(path, "output.path")


@pytest.mark.parametrize(
    ("uri", "jobs"),
    [
        (f"s3://own/model/{JOB}/metrics.csv", {JOB}),
        (f"s3://own/{JOB.upper()}/x", {JOB.upper()}),
        (f"s3://own/{JOB}x/{JOB[:-1]}/x", set()),
        (f"s3://own/{JOB}", {JOB}),
    ],
)
def test_a_folder_named_by_a_jobs_id_is_known_in_every_case(uri: str, jobs: set[str]) -> None:
    assert paths.jobs_in(uri) == jobs


def test_a_folder_means_what_is_below_it_but_no_results_of_jobs_it_does_not_name() -> None:
    assert paths.of_folder("s3://own/data/", "s3://own/data/deep/x.jsonl")
    assert not paths.of_folder("s3://own/data/", f"s3://own/data/{JOB}/x.jsonl")
    assert paths.of_folder(f"s3://own/data/{JOB}/", f"s3://own/data/{JOB}/x.jsonl")
