"""The page at `/docs`: what the OpenAPI document says, for people, with a curl line and a form for each call.

Ours rather than Swagger UI, whose script is fifty times this page, stays blank under our policy, and comes
from PyPI only with Django or a year late (docs/decisions). The lines can be pasted without JavaScript; a
script shows the forms, and each input writes into its span in the line above it: a query string has one for all.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from string import Template
from urllib.parse import quote, urlencode

from leaderboard.web.schema import Node, compact, example, first, has_example, kind, limits, resolve

_METHODS = ("get", "put", "post", "patch", "delete")
_FIELD = ("Name", "Type", "Meaning")
_ANSWER = ("Status", "Type", "Meaning")


def render_docs(template: Template, names: Mapping[str, str], document: Node) -> bytes:
    """`document` as a page; `names` are the addresses that the skeleton refers to."""
    reader = _Reader(document, names["origin"], names["root"])
    info = document["info"]
    page = template.substitute(
        names,
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=_prose(info.get("description", "")),
        key_hidden="" if reader.has_keys else "hidden",
        contents="\n".join(
            f'<li><a href="#{_anchor(method, path)}">{_heading(method, path)}</a></li>'
            for method, path, _ in reader.operations()
        ),
        operations="\n".join(reader.operation(*found) for found in reader.operations()),
        schemas="\n".join(reader.schemas()),
        problems=reader.problems(),
    )
    return page.encode()


class _Reader:
    """Turns the parts of one document into HTML."""

    def __init__(self, document: Node, origin: str, root_path: str) -> None:
        self._document = document
        self._components: Node = document.get("components", {})
        self._origin = origin
        self._root_path = root_path
        self.has_keys = any(self._keyed(operation) for _, _, operation in self.operations())

    def operations(self) -> Iterator[tuple[str, str, Node]]:
        """Method, path and operation, in the document's order."""
        for path, item in self._document["paths"].items():
            shared = item.get("parameters", ())
            for method in _METHODS:
                if method in item:
                    own = item[method]
                    yield method, path, {**own, "parameters": [*shared, *own.get("parameters", ())]}

    def operation(self, method: str, path: str, operation: Node) -> str:
        """One call: what it does, takes and answers."""
        parameters = [resolve(self._document, each) for each in operation["parameters"]]
        body = first(resolve(self._document, operation.get("requestBody", {})).get("content", {}))
        keyed = self._keyed(operation)
        parts = (
            f"<h2>{_heading(method, path)}</h2>",
            _prose(operation.get("summary", "")),
            _prose(operation.get("description", "")),
            self._line(method, path, parameters, body, keyed=keyed),
            self._form(method, path, parameters, body, keyed=keyed),
            _table(
                "Parameters",
                _FIELD,
                (_field(p["name"], p, required=p.get("required", False)) for p in parameters),
            ),
            self._fields(body["schema"], "Body") if "schema" in body else "",
            _table("Answers", _ANSWER, self._answers(operation.get("responses", {}))),
        )
        return f'<section class="operation" id="{_anchor(method, path)}">{"".join(parts)}</section>'

    def _keyed(self, operation: Node) -> bool:
        """Whether the call needs a credential; an empty way in says that it does not."""
        ways = operation.get("security", self._document.get("security"))
        return bool(ways) and {} not in ways

    def schemas(self) -> Iterator[str]:
        """Every named schema."""
        for name, schema in self._components.get("schemas", {}).items():
            yield (
                f'<section class="schema" id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
                f"{_prose(schema.get('description', ''))}{self._fields(schema, 'Fields')}</section>"
            )

    def problems(self) -> str:
        """Every code that a refusal may carry: the targets of the addresses in a problem's `type`."""
        rows = (
            f'<tr id="{escape(code)}"><th scope="row"><code>{escape(code)}</code></th>'
            f'<td><code class="status-{str(problem["status"])[0]}">{problem["status"]}</code></td>'
            f"<td>{_inline(problem['title'])}</td></tr>"
            for code, problem in self._document.get("x-problems", {}).items()
        )
        return _table("Refusals", ("Code", "Status", "Meaning"), rows)

    def _fields(self, schema: Node, caption: str) -> str:
        schema = resolve(self._document, schema)
        if "properties" not in schema:
            return f"<p>{kind(schema)}{limits(schema)}</p>"
        required = schema.get("required", ())
        rows = (
            _field(name, {**field, "schema": field}, required=name in required)
            for name, field in schema["properties"].items()
        )
        return _table(caption, _FIELD, rows)

    def _answers(self, responses: Node) -> Iterator[str]:
        for status, reference in sorted(responses.items()):
            response = resolve(self._document, reference)
            media = first(response.get("content", {}))
            examples = "".join(
                f"<details><summary>{escape(name)}</summary><pre><code>"
                f"{escape(json.dumps(resolve(self._document, given)['value'], ensure_ascii=False, indent=2))}"
                "</code></pre></details>"
                for name, given in media.get("examples", {}).items()
            )
            headers = "".join(
                f"<small><code>{escape(name)}</code> {_inline(header.get('description', ''))}</small>"
                for name, header in response.get("headers", {}).items()
            )
            yield (
                f'<tr><th scope="row"><code class="status-{escape(status[0])}">{escape(status)}</code></th>'
                f"<td>{kind(media['schema']) if 'schema' in media else ''}</td>"
                f"<td>{_prose(response.get('description', ''))}{headers}{examples}</td></tr>"
            )

    def _line(self, method: str, path: str, parameters: Iterable[Node], body: Node, *, keyed: bool) -> str:
        address = escape(self._root_path + path)
        in_query = {}
        for each in parameters:
            name = escape(each["name"])
            value = self._tried(each)
            if each["in"] == "path":
                span = f'<span data-for="{name}">{quote(value, safe="")}</span>'
                address = address.replace(f"{{{name}}}", span)
            elif each["in"] == "query":
                in_query[each["name"]] = value
        if in_query:
            query = urlencode({name: value for name, value in in_query.items() if value})
            address += f"<span data-query>{'?' if query else ''}{escape(query)}</span>"
        verb = "" if method == "get" else f" -X {method.upper()}"
        line = f"curl{verb} '<span data-origin>{escape(self._origin)}</span>{address}'"
        if keyed:
            line += ' \\\n  -H "authorization: Bearer $LEADERBOARD_KEY"'
        if body:
            sample = escape(compact(example(self._document, body)).replace("'", "'\\''"))
            line += " \\\n  -H 'content-type: application/json'"
            line += f" \\\n  -d '<span data-for=\"body\">{sample}</span>'"
        return f'<pre tabindex="0"><code>{line}</code></pre>'

    def _tried(self, parameter: Node) -> str:
        """What a parameter is tried with; nothing if it may be left out and the document has no example of it."""
        if not parameter.get("required", False) and not has_example(self._document, parameter):
            return ""
        return str(example(self._document, parameter))

    def _form(self, method: str, path: str, parameters: Iterable[Node], body: Node, *, keyed: bool) -> str:
        inputs = "".join(
            f'<label>{escape(each["name"])} <input name="{escape(each["name"])}"'
            f' value="{escape(self._tried(each))}" data-in="{escape(each["in"])}"'
            ' autocomplete="off" spellcheck="false"></label>'
            for each in parameters
            if each["in"] != "header"
        )
        if body:
            inputs += (
                '<label class="wide">body <textarea name="body" data-in="body" rows="2" spellcheck="false">'
                f"{escape(compact(example(self._document, body)))}</textarea></label>"
            )
        attributes = f'data-method="{method}" data-path="{escape(self._root_path + path)}" data-keyed="{keyed:d}"'
        return (
            f'<form class="try" {attributes} hidden>{inputs}<button>Send</button>'
            '<output tabindex="0"></output></form>'
        )


def _field(name: str, described: Node, *, required: bool) -> str:
    schema = described["schema"]
    need = "" if required else "<small>optional</small>"
    meaning = _prose(described.get("description") or schema.get("description", ""))
    return (
        f'<tr><th scope="row"><code>{escape(name)}</code>{need}</th><td>{kind(schema)}</td>'
        f"<td>{meaning}{limits(schema)}</td></tr>"
    )


def _table(caption: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    body = "".join(rows)
    if not body:
        return ""
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _heading(method: str, path: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span> <code>{escape(path)}</code>'


def _anchor(method: str, path: str) -> str:
    return "-".join([method, *re.findall(r"[A-Za-z0-9]+", path)])


def _prose(text: str) -> str:
    """Of CommonMark, what our descriptions use: paragraphs and `code`."""
    return "".join(f"<p>{each}</p>" for each in re.split(r"\n\s*\n", _inline(text.strip())) if each)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
