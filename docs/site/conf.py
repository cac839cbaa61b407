"""How Sphinx makes the documentation's site: `make docs`.

The pages are the Markdown files of the repository, where they are, so that their links also work in a clone.
"""

import re
from typing import TYPE_CHECKING, Any

from sphinx.builders.html import StandaloneHTMLBuilder

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Leaderboard"
html_title = "Leaderboard"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "clients/*/README.md", "deploy/helm/leaderboard/README.md"]
exclude_patterns = [".*", "build", "src", "tests", "chaos", "bench"]

html_theme = "furo"
html_use_index = False
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 4
# The answers in the examples are JSON of which parts are left out.
suppress_warnings = ["misc.highlighting_failure"]


class SiteBuilder(StandaloneHTMLBuilder):
    """Builds HTML whose addresses leave out `docs/` and `README`: `tutorial.html`, `clients/python.html`."""

    name = "html"

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        """Returns the address of a page below the site."""
        del typ
        name = docname.removeprefix("docs/")
        if name in {"README", "decisions/README"}:
            return {"README": "overview.html", "decisions/README": "decisions/index.html"}[name]
        return f"{name.removesuffix('/README')}.html"

    def get_output_path(self, page_name: str, /) -> Any:
        """Returns the file of a page."""
        return self.outdir / self.get_target_uri(page_name)


def unlink_folders(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Replaces links to folders of the repository, which are no pages, by their text."""
    folder = (app.srcdir / docname).parent

    def text_of(link: re.Match[str]) -> str:
        return link[1] if (folder / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^\]]+)\]\(([^()\s:#]+)\)", text_of, source[0])


def setup(app: "Sphinx") -> None:
    """Registers the builder and what is done to the pages."""
    app.add_builder(SiteBuilder, override=True)
    app.connect("source-read", unlink_folders)
