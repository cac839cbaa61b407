"""The OpenAPI 3.1 document, made from the route table, the structs that are sent and the table of problems."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from leaderboard.http import problems
from leaderboard.http.access import Access
from leaderboard.http.call import Call
from leaderboard.model import INT32_MAX

_PARAMETER = re.compile(r"\{(\w+)\}")
_AGE = {
    "description": "Seconds. Present only while PostgreSQL is unreachable: the answer may be as old as that.",
    "schema": {"type": "integer", "minimum": 1},
}

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A name for this request, such as a random UUID. Sent again with the same body within 24 hours,"
    " it is not done again and gets the first answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "One of the keys in `API_KEYS`, with that scope."},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's own token: for reading and, where it is allowed, for setting that user's score.",
    },
}


def document(
    calls: Iterable[Call], version: str, max_top_n: int, access: Access, root_path: str = ""
) -> dict[str, Any]:
    """The document as plain data, of a process with this policy that is reached below `root_path`."""
    calls = [call for call in calls if call.documented]
    structs: list[Any] = [problems.Problem]
    for call in calls:
        structs += [type_ for type_ in (call.answer, call.body) if isinstance(type_, type)]
    schemas, components = msgspec.json.schema_components(
        list(dict.fromkeys(structs)), ref_template="#/components/schemas/{name}"
    )
    references = dict(zip(dict.fromkeys(structs), schemas, strict=True))
    kinds = {kind.code: kind for kind in problems.KINDS}

    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        operation: dict[str, Any] = {"summary": call.summary, "operationId": _operation_id(call)}
        limits = {"n": max_top_n, "id": INT32_MAX}
        parameters: list[dict[str, Any]] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "integer", "minimum": 1, "maximum": limits[name]},
                "example": {"n": 10, "id": 1}[name],
            }
            for name in _PARAMETER.findall(call.path)
        ]
        if call.query is not None:
            parameters += _query(call.query)
        if call.body is not None:
            parameters.append(_IDEMPOTENCY_KEY)
        if parameters:
            operation["parameters"] = parameters
        if call.body is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": references[call.body]}},
            }
        operation["security"] = _security(call, access)
        operation["responses"] = _responses(call, references, kinds)
        if call.status == 201:
            operation["responses"]["201"]["links"] = _links(calls)
        paths.setdefault(call.path, {})[call.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Leaderboard",
            "version": version,
            "description": "Ranks are exact; an answer reflects every write acknowledged before it was asked for.",
        },
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
        "x-problems": {kind.code: {"status": kind.status, "title": kind.title} for kind in problems.KINDS},
    }


def _query(struct: type) -> list[dict[str, Any]]:
    """The parameters of a query string; one that may be left out has no null, which cannot be written there."""
    (_, components) = msgspec.json.schema_components([struct])
    parameters = []
    for name, schema in components[struct.__name__]["properties"].items():
        given = next((way for way in schema.get("anyOf", ()) if way != {"type": "null"}), schema)
        described = {key: value for key, value in given.items() if key != "description"}
        if schema.get("default") is None:
            described.pop("default", None)
        parameters.append({"name": name, "in": "query", "description": given["description"], "schema": described})
    return parameters


def _responses(
    call: Call, references: dict[Any, Any], kinds: dict[str, problems.Kind]
) -> dict[str, dict[str, Any]]:
    responses: dict[str, dict[str, Any]] = {}
    if isinstance(call.answer, str):
        content = {call.answer: {"schema": {"type": "object" if call.answer == "application/json" else "string"}}}
    else:
        content = {"application/json": {"schema": references[call.answer]}}
    responses[str(call.status)] = {"description": call.summary, "content": content}
    if call.path == "/":
        responses["200"]["content"] = content | {"text/html": {"schema": {"type": "string"}}}
    if call.status == 201:
        responses["201"]["headers"] = {
            "Location": {"description": "Path of the new user", "schema": {"type": "string"}}
        }
    elif call.aged:
        responses["200"]["headers"] = {"Age": _AGE}
    for status, type_ in call.also.items():
        responses[str(status)] = {
            "description": "Not now",
            "content": {"application/json": {"schema": references[type_]}},
        }
    by_status: dict[int, list[problems.Kind]] = {}
    for code in call.problems:
        by_status.setdefault(kinds[code].status, []).append(kinds[code])
    for status, found in sorted(by_status.items()):
        response: dict[str, Any] = {
            "description": "; ".join(f"{kind.title} (`{kind.code}`)" for kind in found),
            "content": {"application/problem+json": {"schema": references[problems.Problem]}},
        }
        names = {name for kind in found for name, _ in kind.headers}
        if b"retry-after" in names:
            response["headers"] = {
                "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
            }
        responses[str(status)] = response
    return responses


def _links(calls: Iterable[Call]) -> dict[str, dict[str, Any]]:
    """What can be done with the user that was created."""
    return {
        _operation_id(call): {"operationId": _operation_id(call), "parameters": {"id": "$response.body#/userId"}}
        for call in calls
        if "{id}" in call.path
    }


def _security(call: Call, access: Access) -> list[dict[str, list[str]]]:
    """The credentials that do, any one of them; an empty one stands for none."""
    if call.needs is None:
        return []
    ways: list[dict[str, list[str]]] = [{"key": [call.needs]}]
    if access.users_may(call):
        ways.append({"token": []})
    return ways if access.needs(call) else [{}, *ways]


def _operation_id(call: Call) -> str:
    return call.handler.__name__.lstrip("_")
