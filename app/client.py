"""A thin HTTP client of the service for the command line: one address, one key, errors as the service's own sentences."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx

from app.settings import Settings, get_settings

RESUME_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""So long a service that is away is waited for by whoever follows a job."""


class ServiceError(Exception):
    """The service refused or could not be reached; the message is its own sentence."""


class Busy(ServiceError):
    """It is overloaded or away for a moment."""


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

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request; the decoded JSON, or text where the answer is not JSON.

        Raises:
            ServiceError: With the service's own message.
        """
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise self._silent(error) from error
        self._check(response)
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else response.text

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events as they come, oldest first, until it has ended. A cut stream is resumed where it was.

        Raises:
            ServiceError: It refused, or did not answer for PATIENCE_SECONDS.
        """
        path, last = f"/fine_tuning/jobs/{job_id}/events", "0"
        heard = time.monotonic()
        while True:
            try:
                headers = {"accept": "text/event-stream", "last-event-id": last}
                with self._http.stream("GET", path, headers=headers) as response:
                    self._check(response)
                    for number, data in _sent(response.iter_lines()):
                        if data == "[DONE]":
                            return
                        yield json.loads(data)
                        last, heard = number, time.monotonic()
            except (httpx.TransportError, Busy) as problem:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise self._silent(problem) from problem
            time.sleep(RESUME_SECONDS)

    def follow_logs(self, job_id: str, **params: Any) -> Iterator[str]:
        """The job's logs as they come, until it has ended.

        Raises:
            ServiceError: It refused, or the connection was cut.
        """
        patient = httpx.Timeout(None, connect=5.0)
        asked = {"follow": True} | params
        try:
            with self._http.stream(
                "GET", f"/fine_tuning/jobs/{job_id}/logs", params=asked, timeout=patient
            ) as response:
                self._check(response)
                yield from response.iter_text()
        except httpx.TransportError as problem:
            raise self._silent(problem) from problem

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        error = response.json().get("error", {}) if is_json else {"message": response.text}
        refusal = f"{error.get('message', response.reason_phrase)} [{response.status_code}]"
        raise Busy(refusal) if response.status_code in (429, 502, 503, 504) else ServiceError(refusal)

    def _silent(self, problem: Exception) -> ServiceError:
        if isinstance(problem, Busy):
            return ServiceError(str(problem))
        return ServiceError(f"{self._http.base_url} does not answer ({problem}). Is `llamaflow up` running?")


def _sent(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Number and data of each server-sent event, as the service writes them: a line a field."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            yield fields.get("id", ""), fields["data"]
        fields = {}


def call(method: str, path: str, **given: Any) -> Any:
    """One request with the address and key of the settings, as `Client.call` answers it.

    Raises:
        ServiceError: There is no key, or with the service's own message.
    """
    with closing(Client.from_settings(get_settings())) as client:
        return client.call(method, path, **given)
