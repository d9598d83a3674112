"""The service's internal routes as a training calls them, and the S3 addresses it gets from there.

Away is what may pass: no answer, an answer that says so, an S3 that does not take an object. What will not pass is a StepError.
Knows no folders and no threads; waits for nothing.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from finetune.exit_codes import StepError
from finetune.mirror import Access, Mirror, Piece
from finetune.s3 import CHUNK, is_near

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0


class Away(Exception):
    """It did not work this time; it may the next."""


class Missing(Exception):
    """An object is not on S3, or not the one that its name says."""


@dataclass(frozen=True)
class Lease:
    """The answer to a heartbeat. held: whether we are the one who trains; seconds: for how long; intent: what is asked of us."""

    held: bool
    seconds: float
    intent: str | None


class Service:
    """The service, as one process of one run may use it.

    Args:
        access: Where it is, and the run's token.
        holder: The name of this process.
    """

    def __init__(self, access: Access, holder: str) -> None:
        self._holder = holder
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.Client(
            base_url=f"{access.url}/internal/runs",
            headers={"authorization": f"Bearer {access.token.get_secret_value()}"},
            timeout=timeout,
            trust_env=not is_near(access.url),
        )
        self._far, self._near = httpx.Client(timeout=timeout), httpx.Client(timeout=timeout, trust_env=False)

    def lease(self, train_key: str, *, renew: bool) -> Lease:
        """Become the one who trains, or (renew) stay it."""
        answer = self._call("PUT", "/lease", {"train_key": train_key, "holder": self._holder, "renew": renew})
        return Lease(answer["held"], answer["seconds"], answer["intent"])

    def release(self) -> None:
        """Let the next one train."""
        self._call("POST", "/lease/release", {"holder": self._holder})

    def send_lines(self, start: int, text: str) -> int:
        """Hand over lines that stand at byte `start`; where to go on."""
        return int(self._call("POST", "/lines", {"holder": self._holder, "start": start, "text": text})["end"])

    def lines(self, start: int) -> str:
        """A page of progress.jsonl from byte `start` on; empty at its end."""
        return str(self._call("GET", f"/lines?start={start}")["text"])

    def record(self) -> Mirror | None:
        """What the mirror holds."""
        found = self._call("GET", "/mirror")["mirror"]
        return None if found is None else Mirror.model_validate(found)

    def write_record(self, mirror: Mirror) -> None:
        """Say what the mirror holds; its objects are there."""
        self._call("PUT", "/mirror", {"holder": self._holder, "mirror": mirror.model_dump(mode="json")})

    def addresses(self, method: Literal["get", "put"], pieces: list[Piece]) -> dict[str, str]:
        """Where objects are read or written, by sha256."""
        wanted = [{"sha256": piece.sha256, "size": piece.size} for piece in pieces]
        asked = {"holder": self._holder, "method": method, "objects": wanted}
        return dict(self._call("POST", "/objects", asked)["urls"]) if wanted else {}

    def put(self, url: str, source: Path, piece: Piece) -> None:
        """Write an object."""
        checksum = base64.b64encode(bytes.fromhex(piece.sha256)).decode()
        headers = {"content-length": str(piece.size), "x-amz-checksum-sha256": checksum}
        with source.open("rb") as content:
            try:
                answer = self._s3(url).put(url, content=iter(lambda: content.read(CHUNK), b""), headers=headers)
            except httpx.HTTPError as problem:
                raise Away(f"S3 did not take an object: {type(problem).__name__}") from problem
        if answer.status_code != 200:
            raise Away(f"S3 did not take an object: {answer.status_code} {answer.text[:200]}")

    def get(self, url: str, target: Path, piece: Piece) -> None:
        """Bring an object.

        Raises:
            Missing: It is not there, or has another content than its name says.
        """
        digest = hashlib.sha256()
        try:
            with self._s3(url).stream("GET", url) as answer, target.open("wb") as file:
                if answer.status_code == 404:
                    raise Missing(piece.sha256)
                if answer.status_code != 200:
                    raise Away(f"S3 did not give an object: {answer.status_code}")
                for chunk in answer.iter_bytes(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
        except httpx.HTTPError as problem:
            raise Away(f"S3 did not give an object: {type(problem).__name__}") from problem
        if digest.hexdigest() != piece.sha256:
            raise Missing(piece.sha256)

    def close(self) -> None:
        """Hang up."""
        for client in (self._http, self._far, self._near):
            client.close()

    def _s3(self, url: str) -> httpx.Client:
        return self._near if is_near(url) else self._far

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as problem:
            raise Away(f"LlamaFlow did not answer: {type(problem).__name__}") from problem
        if answer.status_code < 300:
            return dict(answer.json()) if answer.content else {}
        code, message = _said(answer)
        if answer.status_code in (401, 403) or code == "lease_lost":
            raise StepError("ownership_lost")
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise Away(f"LlamaFlow did not answer: {answer.status_code} {message}")
        raise StepError("internal_error", f"LlamaFlow refused {method} {path}: {answer.status_code} {message}")


def _said(answer: httpx.Response) -> tuple[str | None, str]:
    try:
        error = answer.json()["error"]
        return error["code"], str(error["message"])
    except (ValueError, KeyError, TypeError):
        return None, answer.text[:200]
