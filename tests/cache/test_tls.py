"""A certificate of a private authority is verified the same way by every Python version, as by libpq."""

import ssl
from pathlib import Path

import pytest

from leaderboard import tls
from tests.deploy.certificates import Authority

HOST = "db.example"


@pytest.fixture(autouse=True)
def strict_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes strict contexts, as Python does from 3.13 on."""
    create = ssl.create_default_context

    def strict(*, cafile: str | None = None) -> ssl.SSLContext:
        context = create(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


def shake_hands(client: ssl.SSLContext, authority: Authority) -> None:
    """Connects, in memory, to a server with a certificate of this authority. Raises ssl.SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*authority.issue("server", HOST))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=HOST),
    ]
    while sides:
        for side in [*sides]:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)


def test_a_certificate_is_accepted_without_the_fields_that_libpq_does_not_need(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    shake_hands(tls.client_context(authorities=str(authority.file)), authority)


def test_a_certificate_of_another_authority_is_rejected(tmp_path: Path) -> None:
    context = tls.client_context(authorities=str(Authority(tmp_path / "ours").file))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(context, Authority(tmp_path / "another"))
