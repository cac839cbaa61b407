"""`Pages` is all that the routes need to serve the web pages: bytes, their assets and their headers.

Nothing is asked of any other host: what a page needs is shipped in `assets/` and served from this origin, so
the Content-Security-Policy can forbid the rest. Knows no web framework; `http/routes.py` does the serving.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import Any

from leaderboard.http import security
from leaderboard.http.page.board import render_board
from leaderboard.http.page.docs import render_docs
from leaderboard.model import Top

_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ASSETS = ("style.css", "board.js", "docs.js", "icon.svg")


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages, loaded once by the composition root.

    `assets` maps a path, without the root path, to its content type and bytes. The paths carry a hash of the
    content, so that `asset_headers` may let it be cached for a year; `headers` go with the HTML.
    """

    assets: Mapping[str, tuple[str, bytes]]
    asset_headers: Mapping[str, str]
    headers: Mapping[str, str]
    _board: Template
    _docs: Template
    _names: Mapping[str, str]
    _image_sources: tuple[str, ...]

    @classmethod
    def load(
        cls, *, origin: str = "http://localhost:3000", root_path: str = "", image_sources: Sequence[str] = ()
    ) -> "Pages":
        """Read the shipped files.

        `origin` stands in the curl lines until the script puts the browser's own there. `root_path` stands before
        every path that a page names.

        `image_sources` are the places users' images may come from, as URL prefixes: `https:` for any,
        `https://img.example.com/` for one host. Empty by default: the image URL of whoever may create a user
        would have each visitor's browser ask a host of a stranger's choice, which then learns who looks, or
        which stands in the visitor's own network. They stand in a header as they are: `config` has checked them.
        """
        folder = resources.files(__package__) / "assets"
        assets: dict[str, tuple[str, bytes]] = {}
        names = {"origin": origin, "root": root_path}
        for name in _ASSETS:
            content = (folder / name).read_bytes()
            file = PurePath(name)
            path = f"/assets/{file.stem}.{hashlib.sha256(content).hexdigest()[:12]}{file.suffix}"
            assets[path] = (_CONTENT_TYPES[file.suffix], content)
            names[name.replace(".", "_")] = root_path + path
        return cls(
            assets=assets,
            asset_headers=security.ASSET,
            headers=security.page(content_security_policy(image_sources)),
            _board=Template((folder / "board.html").read_text("utf-8")),
            _docs=Template((folder / "docs.html").read_text("utf-8")),
            _names=names,
            _image_sources=tuple(image_sources),
        )

    def board(self, top: Top, *, age_seconds: int | None = None) -> bytes:
        """The board; `age_seconds` is how old its numbers are when PostgreSQL cannot be asked."""
        return render_board(
            self._board, self._names, top, age_seconds=age_seconds, image_sources=self._image_sources
        )

    def docs(self, document: Mapping[str, Any]) -> bytes:
        """What an OpenAPI 3.1 document says, for people. The document does not change: keep the answer."""
        return render_docs(self._docs, self._names, document)


def content_security_policy(image_sources: Sequence[str] = ()) -> str:
    """Scripts, styles and calls of our own only; nothing inline, no frames, no HTML made from text."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            " ".join(("img-src 'self'", *image_sources)),
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
