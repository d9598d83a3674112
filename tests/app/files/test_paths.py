"""Which addresses a project may name: whole names of folders count, and nobody reaches another's uploads."""

from __future__ import annotations

import pytest

from app.errors import BadRequest
from app.files import paths

pytestmark = pytest.mark.unit

PREFIXES = ["s3://data/team", "s3://data/shared/", "s3://own/"]
ALLOWED = (
    "s3://data/team/x.jsonl", "s3://data/team/deep/er/x", "s3://data/shared/", "s3://own/anything", "s3://own/x y+z.jsonl",
    "s3://own/files/proj_a/file-1", "s3://own/files-of-mine/x",
)  # fmt: skip
REFUSED = (
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
