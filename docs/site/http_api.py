"""Writes the page about the HTTP API, made from the OpenAPI document.

`python docs/site/http_api.py docs/http-api.md`
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leaderboard.config import Settings
from leaderboard.credentials import KeyRing, parse_keys
from leaderboard.http import openapi, problems
from leaderboard.http.access import Access
from leaderboard.http.routes import ROUTES
from leaderboard.tokens import UserTokens

JsonObject = dict[str, Any]

HEAD = """# HTTP API

This page is made from the OpenAPI document, which a running service has at `/openapi.json` and shows at `/docs`.
Requests and answers are JSON. The [overview](../README.md#the-api-by-example) explains the calls with examples.

The *scope* is what a key must have once `API_KEYS` has keys; without any, all calls are open
([keys](settings.md#keys)). A user's token is enough where that is said; a write then has to be about that user
([tokens](settings.md#users-tokens)). Every refusal is a [problem](errors.md) with a `code`.
"""

CHAPTERS = {
    "The board default": r"/leaderboard.*|/users/{id}/score",
    "Users": r"/users.*",
    "Boards and seasons": r"/boards(/{board}(/seasons)?)?",
    "Entries of boards": r"/boards/.*",
    "The process": r".*",
}
"""By title: which paths a chapter has. A path is in the first that matches it."""

BODIES: dict[str, Any] = {
    "set_score": {"score": 1815},
    "create_user": {"username": "ada", "score": 1815},
    "put_user": {"username": "zoe"},
    "update_user": {"hidden": True},
    "put_board": {"keeps": "sum", "season": {"every": "week", "timezone": "Europe/Berlin"}},
    "end_season": {"season": 1},
    "change_entry": {"increment": 5},
    "change_entries": {"scores": [{"userId": 1, "increment": 5}]},
}
"""By operation: the body of its example."""

EXAMPLES = {"put_user": {"id": "@steam:7656"}, "find_users": {"username": "ada"}}
"""By operation: parameters of its example that differ from those in the document."""


def document() -> JsonObject:
    """Returns the OpenAPI document of a service that has keys and users' tokens, and the default settings."""
    keys = KeyRing(parse_keys("documentation:read:a-key-of-nobody-here"))
    access = Access(keys, UserTokens(["HS256"], "documentation" * 3), user_writes=True)
    max_top_n = Settings.model_fields["max_top_n"].default
    return openapi.document(ROUTES, version("leaderboard"), access, settings={"max_top_n": max_top_n})


def page(api: JsonObject) -> str:
    """Returns the page as Markdown. Raises KeyError if an operation takes a body that has no example here."""
    operations = [(path, method, each) for path, item in api["paths"].items() for method, each in item.items()]
    chapters: dict[str, list[str]] = {title: [] for title in CHAPTERS}
    for path, method, operation in operations:
        title = next(title for title, paths in CHAPTERS.items() if re.fullmatch(paths, path))
        chapters[title].append("\n".join(_operation(path, method.upper(), operation)))
    parts = [HEAD]
    for title, sections in chapters.items():
        parts += [f"## {title}\n", *sections]
    parts += ["## Objects\n", *("\n".join(_object(*item)) for item in api["components"]["schemas"].items())]
    return "\n".join(parts)


def _operation(path: str, method: str, operation: JsonObject) -> Iterator[str]:
    yield f"### {method} {path}\n"
    scopes = [text for choice in operation["security"] for name in choice for text in choice[name]]
    tokens = " or a user's token" if any("token" in choice for choice in operation["security"]) else ""
    optional = " Needed with `READS=key` only." if {} in operation["security"] else ""
    scope = f"Scope: `{scopes[0]}`{tokens}.{optional}" if scopes else "Needs no key."
    yield f"{operation['summary']}. {scope}\n"
    parameters = operation.get("parameters", [])
    if parameters:
        yield "| parameter | in | | |\n|---|---|---|---|"
        for each in parameters:
            required = "" if each.get("required") else "optional"
            texts = (_type(each["schema"]), _cell(each.get("description", "")))
            yield f"| `{each['name']}` | {each['in']} | {required} | {'. '.join(filter(None, texts))} |"
        yield ""
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody']['content'])}\n"
    yield "| answer | |\n|---|---|"
    refusals = []
    for status, response in operation["responses"].items():
        if "application/problem+json" in response.get("content", {}):
            refusals.append(status)
            continue
        headers = "".join(f", `{name}`" for name in response.get("headers", {}))
        yield f"| {status} | {_content(response.get('content', {})) or _cell(response['description'])}{headers} |"
    for status in refusals:
        links = (
            _problem(kind)
            for kind in problems.KINDS
            if f"(`{kind.code}`)" in operation["responses"][status]["description"]
        )
        yield f"| {status} | {', '.join(links)} |"
    yield f"\n```sh\n{_curl(path, method, operation)}\n```\n"


def _problem(kind: problems.Kind) -> str:
    return f"[`{kind.code}`](errors.md#{kind.code}--{kind.status})"


def _curl(path: str, method: str, operation: JsonObject) -> str:
    values = {"board": "weekly", **EXAMPLES.get(operation["operationId"], {})}
    query = []
    for each in operation.get("parameters", []):
        name = each["name"]
        if each["in"] == "path":
            path = path.replace(f"{{{name}}}", str(values.get(name, each["example"])))
        elif name in values:
            query.append(f"{name}={values[name]}")
    address = f"localhost:3000{path}" + (f"?{'&'.join(query)}" if query else "")
    words = ["curl", *(["-X", method] if method in {"PUT", "PATCH", "DELETE"} else []), address]
    if "requestBody" in operation:
        body = json.dumps(BODIES[operation["operationId"]])
        words.append(f"-H 'content-type: application/json' -d '{body}'")
    return " ".join(words)


def _content(content: Mapping[str, JsonObject]) -> str:
    texts = []
    for media_type, described in content.items():
        text = _type(described["schema"])
        texts.append(text if media_type == "application/json" else f"`{media_type}`")
    return ", ".join(texts)


def _object(name: str, schema: JsonObject) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield f"{schema['description']}\n"
    required = schema.get("required", [])
    yield "| member | | | |\n|---|---|---|---|"
    for member, described in schema.get("properties", {}).items():
        text = _cell(described.get("description", ""))
        default = f"default `{json.dumps(described['default'])}`" if "default" in described else ""
        presence = "" if member in required else default or "optional"
        yield f"| `{member}` | {_type(described)} | {presence} | {text} |"
    yield ""


def _type(schema: JsonObject) -> str:
    """Returns in words what a schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    text = kind if isinstance(kind, str) else " or ".join(kind)
    if kind == "array":
        text = f"array of {_type(schema['items'])}"
    bounds = []
    for least, most, of in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ):
        if least in schema or most in schema:
            ends = [f"{word} {schema[key]}" for word, key in (("from", least), ("to", most)) if key in schema]
            bounds.append(f"{' '.join(ends)}{of}")
    if len(schema.get("pattern", "")) in range(1, 61):
        bounds.append(f"`{_cell(schema['pattern'])}`")
    return ", ".join([text, *bounds])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(document()), "utf-8")
