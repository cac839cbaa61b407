"""The API reference at `/docs`: Swagger UI, and a table of the problem codes.

The table is what the `type` of a problem points to. It is complete without JavaScript.
"""

from collections.abc import Mapping
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from string import Template
from typing import Any

_PACKAGE = "offapi"
_FILES = {"swagger-ui.js": "swagger_bundle.js", "swagger-ui.css": "swagger_style.css"}


def swagger_ui() -> dict[str, bytes]:
    """Returns the files of Swagger UI by name.

    The package that contains them is not imported: that would format every page it has, of some 9 MB.
    """
    package = distribution(_PACKAGE)
    return {
        name: Path(str(package.locate_file(f"{_PACKAGE}/{file}"))).read_bytes() for name, file in _FILES.items()
    }


def render_docs(template: Template, names: Mapping[str, str], document: Mapping[str, Any]) -> bytes:
    """Returns the page for an OpenAPI document, whose `x-problems` are the rows of the table.

    `names` are the values of `template` that do not depend on the document.
    """
    info = document["info"]
    page = template.substitute(
        names,
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info["description"]),
        problems="\n".join(_row(code, **problem) for code, problem in document["x-problems"].items()),
    )
    return page.encode()


def _row(code: str, status: int, title: str) -> str:
    code = escape(code)
    return (
        f'<tr id="{code}"><th scope="row"><code>{code}</code></th><td>{status}</td><td>{escape(title)}</td></tr>'
    )
