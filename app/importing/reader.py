"""OpenAI's API as far as its fine-tuning goes: lists to their end, files to their last byte, patient with 429 and cut connections.

Needs the user's own key, which goes to that address alone and is written nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.settings import ImportSettings

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
PAGE = 100
WORTH_A_RETRY = {408, 409, 429, 500, 502, 503, 504}
NEAR = {"127.0.0.1", "::1", "localhost"}


class ReadError(Exception):
    """OpenAI refused, or could not be reached; says what and how to go on.

    Attributes:
        status: Of the refusal; None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class Reader:
    """OpenAI's files and fine-tuning jobs.

    Args:
        url: Such as https://api.openai.com/v1.
        key: `sk-…`.
        organization, project: Sent where they are given.
    """

    def __init__(self, url: str, key: str, *, organization: str | None = None, project: str | None = None) -> None:
        given = {"openai-organization": organization, "openai-project": project}
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"authorization": f"Bearer {key}"} | {name: value for name, value in given.items() if value},
            timeout=httpx.Timeout(120.0, connect=10.0),
            trust_env=urlsplit(url).hostname not in NEAR,
        )

    @classmethod
    def from_settings(cls, settings: ImportSettings) -> Reader:
        """As the settings say.

        Raises:
            ReadError: There is no key.
        """
        if settings.openai_api_key is None:
            raise ReadError("No key: set OPENAI_API_KEY to a key of OpenAI's that may read files and fine-tuning jobs.")
        return cls(
            settings.import_url,
            settings.openai_api_key.get_secret_value(),
            organization=settings.openai_organization,
            project=settings.openai_project,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def files(self) -> Iterator[dict[str, Any]]:
        """Every file for fine-tuning, and every result file."""
        for purpose in ("fine-tune", "fine-tune-results"):
            yield from self._all("/files", purpose=purpose)

    def jobs(self) -> Iterator[dict[str, Any]]:
        """Every fine-tuning job, newest first."""
        yield from self._all("/fine_tuning/jobs")

    def events(self, job_id: str) -> Iterator[list[dict[str, Any]]]:
        """A job's events, newest first, a page at a time."""
        yield from self._pages(f"/fine_tuning/jobs/{job_id}/events")

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """A job's checkpoints."""
        return list(self._all(f"/fine_tuning/jobs/{job_id}/checkpoints"))

    def download(self, file: dict[str, Any], into: Path) -> None:
        """A file's content, whole.

        Args:
            file: As listed: its size is compared.
            into: Written anew.
        Raises:
            ReadError: It is not to be had, or other than its size says.
        """
        self._patiently(f"/files/{file['id']}/content", lambda path: self._save(path, into, file.get("bytes")))

    def _save(self, path: str, into: Path, size: int | None) -> None:
        with self._http.stream("GET", path) as response:
            if not response.is_success:
                response.read()
                raise _refusal(response)
            with into.open("wb") as out:
                for piece in response.iter_bytes():
                    out.write(piece)
        if size is not None and into.stat().st_size != size:
            raise httpx.RemoteProtocolError(f"{into.stat().st_size:,} of {size:,} bytes came")

    def _all(self, path: str, **params: str) -> Iterator[dict[str, Any]]:
        for page in self._pages(path, **params):
            yield from page

    def _pages(self, path: str, **params: str) -> Iterator[list[dict[str, Any]]]:
        """Each page of a list; ends as the official client does: at has_more false, an empty page, or a row without an id."""
        after: str | None = None
        while True:
            asked = {**params, "limit": str(PAGE)} | ({"after": after} if after else {})
            body = self._patiently(path, lambda path, asked=asked: self._get(path, asked))  # type: ignore[misc]
            rows = body.get("data") or []
            if rows:
                yield rows
            last = rows[-1].get("id") if rows else None
            if not body.get("has_more") or last is None or last == after:
                return
            after = last

    def _get(self, path: str, params: dict[str, str]) -> dict[str, Any]:
        response = self._http.get(path, params=params)
        if not response.is_success:
            raise _refusal(response)
        try:
            body: dict[str, Any] = response.json()
        except ValueError as problem:
            raise httpx.RemoteProtocolError(f"no JSON: {problem}") from problem
        return body

    def _patiently(self, path: str, ask: Callable[[str], Any]) -> Any:
        """What `ask` answers; asked again after a cut connection, or when told to come back."""
        wait = FIRST_WAIT
        for left in reversed(range(TRIES)):
            try:
                return ask(path)
            except httpx.TransportError as problem:
                if not left:
                    raise ReadError(f"{self._http.base_url} broke off at {path}: {problem}. Run it again.") from problem
                pause = wait
            except _Later as problem:
                if not left:
                    raise ReadError(f"{problem} Run it again later: it goes on where it was.", problem.status) from None
                pause = wait if problem.after is None else problem.after
            time.sleep(min(pause, LONGEST_WAIT))
            wait = min(wait * 2, LONGEST_WAIT)
        raise AssertionError("unreachable")


class _Later(ReadError):
    """Asked to come back, after so many seconds if it said."""

    def __init__(self, message: str, status: int, after: float | None) -> None:
        super().__init__(message, status)
        self.after = after


def _refusal(response: httpx.Response) -> ReadError:
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text[:200] or response.reason_phrase
    message = f"{response.request.url.path}: {said} [{response.status_code}]"
    if response.status_code not in WORTH_A_RETRY:
        return ReadError(message, response.status_code)
    try:
        after = max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        after = None
    return _Later(message, response.status_code, after)
