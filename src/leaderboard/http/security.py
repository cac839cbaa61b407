"""The headers that tell a browser what a response must not do. Encoded once, at the start.

Strict-Transport-Security is not here: over plain HTTP, which this service speaks, it has no effect. The proxy that
terminates TLS sets it (docs/deploy.md).
"""

from collections.abc import Mapping

from leaderboard.http.response import Headers

_ALWAYS: Mapping[str, str] = {
    # Responses contain names that users chose. They must not be taken for another content type.
    "X-Content-Type-Options": "nosniff",
    # Other sites cannot load a response through <img> or <script>.
    "Cross-Origin-Resource-Policy": "same-origin",
    # JSON viewers make links of image URLs. The hosts of those do not learn where the link was.
    "Referrer-Policy": "no-referrer",
}
RESOURCE_POLICY = b"cross-origin-resource-policy"
_NOT_A_PAGE = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
"""Opened as a document, in a frame or not, the response loads nothing and runs nothing."""

DATA: Mapping[str, str] = {**_ALWAYS, **_NOT_A_PAGE, "Cache-Control": "no-store"}
"""For what is not a page. Not cached, as a cached response shows an older board."""
STORABLE: Mapping[str, str] = {**DATA, "Cache-Control": "no-cache"}
"""For data with an ETag. A browser may store them, but has to ask the service before it uses them."""
ASSET: Mapping[str, str] = {
    **_ALWAYS,
    **_NOT_A_PAGE,
    "Cache-Control": "public, max-age=31536000, immutable",
}
"""For a file whose path changes with its content."""


def page(content_security_policy: str) -> Mapping[str, str]:
    """Returns the headers of a page with this policy."""
    return {
        **_ALWAYS,
        "Content-Security-Policy": content_security_policy,
        "Cache-Control": "no-store",
        # For browsers that do not know `frame-ancestors`.
        "X-Frame-Options": "DENY",
    }


def encode_headers(content_type: str | None, headers: Mapping[str, str] = DATA) -> Headers:
    """Returns the headers as ASGI sends them, with the content type if there is one."""
    pairs = (({"Content-Type": content_type} if content_type else {}) | dict(headers)).items()
    return tuple((name.lower().encode(), value.encode()) for name, value in pairs)
