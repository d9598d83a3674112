"""A thin HTTP client of the service for the command line: one address, one key, errors as the service's own sentences."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx

from app.models import FINAL
from app.settings import Settings


class ServiceError(Exception):
    """The service refused or could not be reached; the message is its own sentence."""


class Client:
    """The service at `base_url` with `api_key`.

    Args:
        base_url: Such as http://127.0.0.1:8000, without /v1.
        api_key: `lf-…`.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        self._http = httpx.Client(
            base_url=base_url.rstrip("/") + "/v1",
            headers={"authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(60.0, connect=5.0),
            trust_env=False,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Client:
        """The service and key the settings name; the embedded service's own key file when none is set.

        Raises:
            ServiceError: There is no key.
        """
        key_file = settings.state_dir / "api_key"
        if settings.api_key is not None:
            key = settings.api_key.get_secret_value()
        elif key_file.exists():
            key = key_file.read_text(encoding="utf-8").strip()
        else:
            raise ServiceError(
                f"No API key: set LLAMAFLOW_API_KEY, or start the embedded service, which writes {key_file}."
            )
        return cls(settings.url or f"http://127.0.0.1:{settings.port}", key)

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request; the decoded JSON, or text where the answer is not JSON.

        Raises:
            ServiceError: With the service's own message.
        """
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise ServiceError(
                f"{self._http.base_url} does not answer ({error}). Is `llamaflow up` running?"
            ) from error
        is_json = response.headers.get("content-type", "").startswith("application/json")
        if response.is_success:
            return response.json() if is_json else response.text
        error_body = response.json().get("error", {}) if is_json else {"message": response.text}
        raise ServiceError(f"{error_body.get('message', response.reason_phrase)} [{response.status_code}]")

    def events_since(self, job_id: str, seen: set[str]) -> list[dict[str, Any]]:
        """The job's events not yet in `seen`, oldest first; adds them to it."""
        fresh: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = self.call(
                "GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100} | ({"after": after} if after else {})
            )
            new = [event for event in page["data"] if event["id"] not in seen]
            fresh += new
            if not page["has_more"] or len(new) < len(page["data"]):
                break
            after = page["data"][-1]["id"]
        seen.update(event["id"] for event in fresh)
        return fresh[::-1]

    def watch(self, job_id: str, *, every: float = 1.0) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """(job, its new events) each time there is something new, until the job has ended."""
        seen: set[str] = set()
        while True:
            job = self.call("GET", f"/fine_tuning/jobs/{job_id}")
            fresh = self.events_since(job_id, seen)
            yield job, fresh
            if job["status"] in FINAL:
                return
            time.sleep(every)
