"""Builds the OpenAPI 3.1 document from the routes, the structs of bodies and the problems."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from leaderboard.http import problems
from leaderboard.http.access import Access
from leaderboard.http.board_bodies import GIVEN_MEMBERS
from leaderboard.http.route import Parameter, Route, TextParameter, UserParameter
from leaderboard.model import INT32_MAX
from leaderboard.rules import EXTERNAL_ID_PATTERN

_AGE = {
    "description": "Seconds. Present only while PostgreSQL is unreachable: the answer may be as old as that.",
    "schema": {"type": "integer", "minimum": 1},
}
_ETAG = {
    "description": "Names this answer. Missing only in an answer with `Age`.",
    "schema": {"type": "string", "pattern": '^"[^"]+"$'},
}
_RETRY_AFTER = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
_LOCATION = {"description": "Path of what was created", "schema": {"type": "string"}}

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A name for this request, such as a random UUID. Sent again with the same body within 24 hours,"
    " the request is not done again and gets the first answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of the last answer. While the answer is the same, it is 304 without a body.",
    "schema": {"type": "string"},
}

_SECURITY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "One of the keys in `API_KEYS`, with that scope."},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's own token: for reading and, where it is allowed, for setting that user's score.",
    },
}


def document(
    routes: Iterable[Route],
    version: str,
    access: Access,
    *,
    settings: Mapping[str, int],
    root_path: str = "",
) -> dict[str, Any]:
    """Returns the document of a process with this access policy, reached below `root_path`.

    `settings` are those that parameters name as their maximum.
    """
    routes = [route for route in routes if route.documented]
    references, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, access, settings, references)
        if "userId" in _fields(route.answer) and route.status == 201:
            operation["responses"]["201"]["links"] = _links(routes)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Leaderboard",
            "version": version,
            "description": "Ranks are exact. An answer reflects every write acknowledged before the request.",
        },
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
        "x-problems": {kind.code: {"status": kind.status, "title": kind.title} for kind in problems.KINDS},
    }


def _schemas(routes: Iterable[Route]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Returns a reference to the schema of each struct that is sent or received, and the named schemas."""
    structs: dict[Any, None] = {problems.Problem: None}
    for route in routes:
        types = (route.answer, *route.other_answers, route.body)
        structs.update({type_: None for type_ in types if isinstance(type_, type)})
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for struct, keywords in GIVEN_MEMBERS.items():
        components[struct.__name__] |= keywords
    for component in components.values():
        _leave_out_null(component)
    return dict(zip(structs, schemas, strict=True)), components


def _leave_out_null(component: dict[str, Any]) -> None:
    """Takes null from the types of an external id, which answers leave out where there is none."""
    shown = component.get("properties", {}).get("externalId")
    if shown is not None and "default" in shown:
        component["properties"]["externalId"] = shown["anyOf"][0] | {"description": shown["description"]}


def _operation(
    route: Route, access: Access, settings: Mapping[str, int], references: Mapping[Any, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": route.summary, "operationId": route.name}
    parameters = [_path_parameter(parameter, settings) for parameter in route.parameters]
    if route.query is not None:
        parameters += _query_parameters(route.query)
    if route.takes_key:
        parameters.append(_IDEMPOTENCY_KEY)
    if route.conditional:
        parameters.append(_IF_NONE_MATCH)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[route.body]}},
        }
    operation["security"] = _security(route, access)
    operation["responses"] = {**_responses(route, references), **_problem_responses(route, references)}
    return operation


def _path_parameter(
    parameter: Parameter | UserParameter | TextParameter, settings: Mapping[str, int]
) -> dict[str, Any]:
    schema: dict[str, Any]
    if isinstance(parameter, UserParameter):
        number = {"type": "integer", "minimum": 1, "maximum": INT32_MAX}
        schema = {"anyOf": [number, {"type": "string", "pattern": f"^@{EXTERNAL_ID_PATTERN}$"}]}
    elif isinstance(parameter, TextParameter):
        schema = {"type": "string", "pattern": f"^{parameter.pattern}$"}
    else:
        maximum = parameter.maximum
        if parameter.maximum_setting is not None:
            maximum = settings[parameter.maximum_setting]
        schema = {"type": "integer", "minimum": 1, "maximum": maximum}
    return {
        "name": parameter.name,
        "in": "path",
        "required": True,
        "schema": schema,
        "example": parameter.example,
    }


def _query_parameters(struct: type) -> list[dict[str, Any]]:
    """Returns the parameters of a query string, where an optional one cannot be null."""
    (_, components) = msgspec.json.schema_components([struct])
    described_struct = components[struct.__name__]
    parameters = []
    for name, schema in described_struct["properties"].items():
        not_null = next((choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}), schema)
        described = {key: value for key, value in not_null.items() if key != "description"}
        if schema.get("default") is None:
            described.pop("default", None)
        parameter = {"name": name, "in": "query", "description": not_null["description"], "schema": described}
        if name in described_struct.get("required", ()):
            parameter["required"] = True
        parameters.append(parameter)
    return parameters


def _responses(route: Route, references: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """Returns the responses that are not problems, by status."""
    content: dict[str, Any]
    if route.answer is None:
        return {str(route.status): {"description": route.summary}}
    if isinstance(route.answer, str):
        schema = {"type": "object" if route.answer == "application/json" else "string"}
        content = {route.answer: {"schema": schema}}
    else:
        schemas = [references[type_] for type_ in (route.answer, *route.other_answers)]
        content = {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    content |= {media_type: {"schema": {"type": "string"}} for media_type in route.media_types}
    success: dict[str, Any] = {"description": route.summary, "content": content}
    headers: dict[str, Any] = {}
    if route.status == 201:
        headers["Location"] = _LOCATION
    if route.may_be_stale:
        headers["Age"] = _AGE
    others: dict[str, dict[str, Any]] = {}
    if route.conditional:
        headers["ETag"] = _ETAG
        others["304"] = {"description": "The client has this answer already", "headers": {"ETag": _ETAG}}
    if headers:
        success["headers"] = headers
    for status, struct in route.other_responses.items():
        content = {"application/json": {"schema": references[struct]}}
        others[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
        if status == HTTPStatus.CREATED:
            others[str(status)]["headers"] = {"Location": _LOCATION}
    return {str(route.status): success, **others}


def _problem_responses(route: Route, references: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """Returns the responses that are problems, by status: several problems may have the same one."""
    by_code = {kind.code: kind for kind in problems.KINDS}
    by_status: dict[int, list[problems.Kind]] = {}
    for code in route.problems:
        by_status.setdefault(by_code[code].status, []).append(by_code[code])
    responses: dict[str, dict[str, Any]] = {}
    for status, kinds in sorted(by_status.items()):
        response: dict[str, Any] = {
            "description": "; ".join(f"{kind.title} (`{kind.code}`)" for kind in kinds),
            "content": {"application/problem+json": {"schema": references[problems.Problem]}},
        }
        if any(name == b"retry-after" for kind in kinds for name, _ in kind.headers):
            response["headers"] = {"Retry-After": _RETRY_AFTER}
        responses[str(status)] = response
    return responses


def _links(routes: Iterable[Route]) -> dict[str, dict[str, Any]]:
    """Returns what can be done with the user that was created."""
    return {
        route.name: {"operationId": route.name, "parameters": {"id": "$response.body#/userId"}}
        for route in routes
        if len(route.parameters) == 1 and isinstance(route.parameters[0], UserParameter)
    }


def _fields(answer: object) -> Iterable[str]:
    """Returns the names of an answer's fields in JSON."""
    if not (isinstance(answer, type) and issubclass(answer, msgspec.Struct)):
        return ()
    return [field.encode_name for field in msgspec.structs.fields(answer)]


def _security(route: Route, access: Access) -> list[dict[str, list[str]]]:
    """Returns the credentials of which any one is enough; an empty one stands for none."""
    if route.needs is None:
        return []
    choices: list[dict[str, list[str]]] = [{"key": [route.needs]}]
    if access.accepts_user_tokens(route):
        choices.append({"token": []})
    return choices if access.needs(route) else [{}, *choices]
