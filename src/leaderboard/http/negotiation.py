"""Content negotiation: whether a client prefers HTML to JSON, by its header Accept."""

from collections.abc import Iterable

_HTML = {"text/html", "application/xhtml+xml"}
_JSON = {"application/json", "application/*", "*/*"}


def prefers_html(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Returns True if Accept gives HTML a higher quality than anything that JSON matches."""
    accept = b",".join(value for name, value in headers if name == b"accept").decode("latin-1")
    html = json = 0.0
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        if media_type in _HTML:
            html = max(html, _quality(parameters))
        elif media_type in _JSON:
            json = max(json, _quality(parameters))
    return html > json


def _quality(parameters: Iterable[str]) -> float:
    """Returns the value of the last `q`: 1 if there is none, 0 if it is not a number."""
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                quality = 0.0
    return quality
