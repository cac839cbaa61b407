"""Makes the TLS context of a client: the authorities it trusts, and its own certificate."""

import ssl


def client_context(
    *, authorities: str = "", certificate: str = "", key: str = "", verify: bool = True, check_host: bool = True
) -> ssl.SSLContext:
    """A context for connecting, from files in PEM; without `authorities` the system's are trusted.

    `verify`: whether the server's certificate is verified; `check_host`: also that it is for the host that is
    connected to. Raises ValueError that says what is needed.
    """
    try:
        context = ssl.create_default_context(cafile=authorities or None)
    except (OSError, ssl.SSLError):
        raise ValueError("empty, or a file that can be read, of certificates in PEM") from None
    if certificate:
        try:
            # An empty password instead of none: OpenSSL would ask for it on the terminal.
            context.load_cert_chain(certificate, key, password="")  # nosec B106  # pragma: allowlist secret
        except (OSError, ssl.SSLError):
            raise ValueError("empty, or a file that can be read, of the certificate's key in PEM") from None
    # From 3.13 on Python also asks for fields that libpq does not, and that many private authorities leave out.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = verify and check_host
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context
