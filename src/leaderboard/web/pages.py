"""The web pages: their HTML, the files they load, and their Content-Security-Policy.

All files are installed with the program and served from the same origin, so the policy can forbid other hosts.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import Any

from leaderboard.model import Top
from leaderboard.web.docs_page import render_docs, swagger_ui
from leaderboard.web.home_page import HOME_SIZE, render_home

__all__ = ["HOME_SIZE", "Asset", "Pages"]

_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_STATIC = ("home.css", "home.js", "docs.css", "docs.js", "icon.svg")


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that a page loads."""

    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages.

    `assets` are by their paths, without the root path. A path contains a hash of the content, so that browsers may
    cache the file for ever. The policies are the Content-Security-Policy of each page.
    """

    assets: Mapping[str, Asset]
    home_policy: str
    docs_policy: str
    _home: Template
    _docs: Template
    _names: Mapping[str, str]
    _image_sources: tuple[str, ...]

    @classmethod
    def load(
        cls, *, origin: str = "http://localhost:3000", root_path: str = "", image_sources: Sequence[str] = ()
    ) -> "Pages":
        """Reads the shipped files.

        `origin` is used in curl lines until the script replaces it by that of the browser. `root_path` is put
        before every path in a page.

        `image_sources` are URL prefixes from which users' images may be loaded: `https:` for any host,
        `https://img.example.com/` for one. None by default, because clients choose these URLs: the host would
        learn who looks at the page, or could be in the private network of the visitor. They are put into a header
        unchanged; `config` has checked them.
        """
        folder = resources.files(__package__) / "static"
        files = {name: (folder / name).read_bytes() for name in _STATIC} | swagger_ui()
        assets: dict[str, Asset] = {}
        names = {"origin": origin, "root": root_path}
        for name, content in files.items():
            stem, suffix = PurePath(name).stem, PurePath(name).suffix
            path = f"/assets/{stem}.{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
            assets[path] = Asset(_CONTENT_TYPES[suffix], content)
            names[re.sub(r"\W", "_", name)] = root_path + path
        return cls(
            assets=assets,
            home_policy=_home_policy(image_sources),
            docs_policy=_docs_policy(),
            _home=Template((folder / "home.html").read_text("utf-8")),
            _docs=Template((folder / "docs.html").read_text("utf-8")),
            _names=names,
            _image_sources=tuple(image_sources),
        )

    def home(self, top: Top, *, age_seconds: int | None = None) -> bytes:
        """Returns the home page; `age_seconds` is the age of its numbers while PostgreSQL is unreachable."""
        return render_home(
            self._home, self._names, top, age_seconds=age_seconds, image_sources=self._image_sources
        )

    def docs(self, document: Mapping[str, Any]) -> bytes:
        """Returns the page that shows an OpenAPI 3.1 document."""
        return render_docs(self._docs, self._names, document)


def _home_policy(image_sources: Sequence[str]) -> str:
    """Returns a policy that allows nothing inline and no HTML made from text."""
    return _policy(
        ("img-src 'self'", *image_sources), ("require-trusted-types-for 'script'", "trusted-types 'none'")
    )


def _docs_policy() -> str:
    """Returns a policy without inline scripts. Swagger UI makes HTML, and has icons in its CSS."""
    return _policy(("img-src 'self'", "data:"), ())


def _policy(images: Sequence[str], more: Sequence[str]) -> str:
    """Returns a policy that allows files and requests of the same origin only, and no frames."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            " ".join(images),
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            *more,
        )
    )
