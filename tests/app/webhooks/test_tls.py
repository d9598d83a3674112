"""Https receivers: the certificate must be the named host's, although the connection is made to an address that was checked."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.settings import Settings
from app.webhooks import delivery
from app.webhooks.delivery import Outcome, Sender
from tests.app.worker.receiver import receiving

pytestmark = pytest.mark.unit

SECRET = "whsec_" + "bmV3LXNlY3JldC1uZXctc2VjcmV0LW5ldy1zZWNyZXQ="


@dataclass(frozen=True)
class Authority:
    """Its certificate, and the certificate and key of hooks.example that it made."""

    certificate: Path
    context: ssl.SSLContext


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(folder, "req", *key, "-subj", "/CN=hooks.example", "-keyout", "host.key", "-out", "host.csr")
    (folder / "names").write_text("subjectAltName=DNS:hooks.example\n", encoding="utf-8")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    openssl(folder, "x509", "-req", "-in", "host.csr", *signed, "-out", "host.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "host.pem", folder / "host.key")
    return Authority(folder / "ca.pem", context)


async def send(monkeypatch: pytest.MonkeyPatch, authority: Authority, host: str, known: Path | None) -> Outcome:
    """One attempt to a receiver with the certificate of hooks.example, under the name `host`; the names it asked for in TLS."""

    async def resolve(host: str, port: int, param: str) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr("app.webhooks.target._resolve", resolve)
    with receiving(200, tls=authority.context) as receiver:
        settings = Settings(webhook_allow=[f"{host}:{receiver.port}"], webhook_timeout=10.0, webhook_ca_file=known)
        sender = Sender(settings)
        signed = delivery.headers("evt_1", b"{}", datetime.now(UTC), [SECRET])
        outcome = await sender.attempt(f"https://{host}:{receiver.port}/hook", b"{}", signed)
        await sender.close()
        assert len(receiver.received) == (1 if outcome.delivered else 0)
    return outcome


async def test_a_certificate_of_the_named_host_is_taken(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    asked: list[str | None] = []
    authority.context.sni_callback = lambda _socket, name, _context: asked.append(name)
    assert (await send(monkeypatch, authority, "hooks.example", authority.certificate)).delivered
    assert asked == ["hooks.example"]


@pytest.mark.parametrize(
    ("host", "is_known", "why"),
    [("other.example", True, "Hostname mismatch"), ("hooks.example", False, "unable to get local issuer certificate")],
)
async def test_a_certificate_of_another_host_or_of_nobody_known_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, host: str, is_known: bool, why: str
) -> None:
    outcome = await send(monkeypatch, authority, host, authority.certificate if is_known else None)
    assert (outcome.delivered, outcome.status) == (False, None)
    assert why in str(outcome.error)


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing", encoding="utf-8")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(RuntimeError, match=rf"LLAMAFLOW_WEBHOOK_CA_FILE .*{name}"):
            Sender(Settings(webhook_ca_file=tmp_path / name))
