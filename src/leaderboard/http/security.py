"""What every answer tells a browser to refrain from: the one place, joined to other headers once, at the start.

Strict-Transport-Security is not here: we speak plain HTTP, where it means nothing. It belongs to whoever
terminates TLS, who alone knows that there is TLS for good (docs/deploy.md).
"""

from collections.abc import Mapping

from leaderboard.http.call import Headers

EVERYWHERE: Mapping[str, str] = {
    # Names are strangers' text: whatever they look like, the answer is what its Content-Type says.
    "X-Content-Type-Options": "nosniff",
    # Another site can read nothing of ours through an <img> or <script> of its own.
    "Cross-Origin-Resource-Policy": "same-origin",
    # Viewers of JSON make links of image URLs: their hosts need not learn from where they were followed.
    "Referrer-Policy": "no-referrer",
}
_INERT = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
"""Opened as a document, in a frame or not, the answer loads nothing and runs nothing."""

DATA: Mapping[str, str] = {**EVERYWHERE, **_INERT, "Cache-Control": "no-store"}
"""For what is no page: nobody may keep it, since an answer that was kept is an older board."""
ASSET: Mapping[str, str] = {**EVERYWHERE, **_INERT, "Cache-Control": "public, max-age=31536000, immutable"}
"""For what never changes under its path."""


def page(content_security_policy: str) -> Mapping[str, str]:
    """For a page, which says itself what it needs."""
    return {
        **EVERYWHERE,
        "Content-Security-Policy": content_security_policy,
        "Cache-Control": "no-store",
        # For browsers that do not know `frame-ancestors`.
        "X-Frame-Options": "DENY",
    }


def wire(content_type: str, headers: Mapping[str, str] = DATA) -> Headers:
    """The headers as they are sent, with the content's type."""
    pairs = {"Content-Type": content_type, **headers}.items()
    return tuple((name.lower().encode(), value.encode()) for name, value in pairs)
