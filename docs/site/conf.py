"""How Sphinx makes the documentation's site: `make docs`.

The pages are the Markdown files of the repository, where they are, so that their links also work in a clone.
"""

from typing import TYPE_CHECKING, Any

from sphinx.builders.html import StandaloneHTMLBuilder

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

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


def show_folder(_app: "Sphinx", env: "BuildEnvironment", node: "Element", text: "Element") -> "Element | None":
    """Returns the text of a link to a folder of the repository, which is no page. Other links stay broken."""
    folder = (env.srcdir / node["refdoc"]).parent / node["reftarget"]
    return text if folder.is_dir() else None


def setup(app: "Sphinx") -> None:
    """Registers the builder."""
    app.add_builder(SiteBuilder, override=True)
    app.connect("missing-reference", show_folder)
