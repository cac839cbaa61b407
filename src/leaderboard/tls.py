"""TLS contexts for the connections to PostgreSQL and Redis."""

import ssl


def client_context(
    *, authorities: str = "", certificate: str = "", key: str = "", verify: bool = True, check_host: bool = True
) -> ssl.SSLContext:
    """Return a context for a client, from files in PEM. Without `authorities` the system's are trusted.

    `verify`: verify the server's certificate. `check_host`: verify that it is for the host, too. Raises ValueError
    whose message says what is allowed.
    """
    try:
        context = ssl.create_default_context(cafile=authorities or None)
    except (OSError, ssl.SSLError):
        raise ValueError("empty, or a file that can be read, of certificates in PEM") from None
    if certificate:
        try:
            # With no password, OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(certificate, key, password="")  # nosec B106  # pragma: allowlist secret
        except (OSError, ssl.SSLError):
            raise ValueError("empty, or a file that can be read, of the certificate's key in PEM") from None
    # Since 3.13 Python requires fields that libpq does not, and that many private authorities omit.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = verify and check_host
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context
