"""A client that sends exactly what it is told, and holds every answer against the contract while it is at it.

Ordinary clients tidy paths and headers up, and the untidy ones are what is tested here. The JSON Schema checker
knows only the keywords that our document uses and fails at any other, so that nothing goes unchecked unseen.
"""

import http.client
import io
import json
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from leaderboard.http import problems
from leaderboard.http.route import Route
from leaderboard.http.routes import ROUTES
from tests.system import ApiProcess

JSON = "application/json"
PROBLEM = "application/problem+json"
CODES = {kind.code: kind for kind in problems.KINDS}
# What would tell a stranger how the service is made, or where it lies.
INTERNALS = ("Traceback", 'File "', str(Path(__file__).parents[2]), sys.prefix, "asyncpg", "site-packages")

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KEYWORDS = {
    *("$ref", "anyOf", "oneOf", "allOf", "type", "properties", "required", "additionalProperties", "items"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "enum", "pattern"),
    *("minProperties", "maxProperties", "dependentRequired"),
    *("title", "description", "default", "examples", "format"),
}


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code; "" for what is no problem."""
        return str(self.json().get("code", "")) if self.headers.get("content-type") == PROBLEM else ""

    @property
    def fields(self) -> dict[str, str]:
        """The bad fields that were named."""
        return {error["field"]: error["message"] for error in self.json().get("errors", [])}


class Contract:
    """What design §3 and the served OpenAPI document promise of every answer."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths = {
            path: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for path in document["paths"]
        }

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Fail unless this is an answer to that request as documented."""
        said = f"{method} {path}: {answer}"
        path = _decoded(path.partition("?")[0])
        # A path with a slash at its end is another spelling of the one without.
        if path != "/" and not path.endswith("//"):
            path = path.removesuffix("/")
        check_browser_is_bound(answer, said)
        if method == "HEAD":
            assert answer.body == b"", said
        elif answer.status in {204, 304}:
            assert (answer.body, "content-length" in answer.headers) == (b"", False), said
        else:
            assert int(answer.headers["content-length"]) == len(answer.body), said
        if path.startswith("/assets/") and answer.status == 200:
            return
        storable = answer.headers["cache-control"] == "no-cache" and "etag" in answer.headers
        assert storable or answer.headers["cache-control"] == "no-store", said
        template = next((template for template, regex in self._paths.items() if regex.fullmatch(path)), None)
        operation = None
        if template is not None:
            known = self.document["paths"][template]
            operation = known.get("get" if method == "HEAD" else method.lower() if method.isupper() else None)
        if operation is None:
            expected = {404} if template is None else {405}
            # The assets are routes that the document does not tell of.
            assert answer.status in expected | ({405} if path.startswith("/assets/") else set()), said
        else:
            self._check_documented(operation, method, answer, said)
        if answer.status >= 400 and answer.headers.get("content-type") != JSON and method != "HEAD":
            check_problem(answer, said)

    def _check_documented(self, operation: dict[str, Any], method: str, answer: Answer, said: str) -> None:
        assert str(answer.status) in operation["responses"], f"not documented: {said}"
        documented = operation["responses"][str(answer.status)]
        assert ("content" in documented) == ("content-type" in answer.headers), said
        if "content" not in documented:
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in documented["content"], f"not documented: {said}"
        if media_type.endswith("json") and method != "HEAD":
            problems_found = list(self.complaints(documented["content"][media_type]["schema"], answer.json()))
            assert not problems_found, f"{problems_found}: {said}"
        for name, header in documented.get("headers", {}).items():
            if name.lower() in answer.headers:
                value = answer.headers[name.lower()]
                kind = header["schema"]["type"]
                found = list(self.complaints(header["schema"], int(value) if kind == "integer" else value))
                assert not found, f"{name}: {found}: {said}"
            else:
                # Only these headers are for particular answers.
                assert name == ("ETag" if "age" in answer.headers else "Age"), f"{name} is missing: {said}"

    def complaints(self, schema: Mapping[str, Any], value: Any, where: str = "$") -> Iterator[str]:
        """Everything in which `value` is not as `schema` says; members it does not name are one such thing."""
        assert set(schema) <= KEYWORDS, f"{where}: unknown keywords {set(schema) - KEYWORDS}"
        if "$ref" in schema:
            yield from self.complaints(self.resolve(schema["$ref"]), value, where)
        for each in schema.get("allOf", ()):
            yield from self.complaints(each, value, where)
        if "anyOf" in schema and all(list(self.complaints(each, value, where)) for each in schema["anyOf"]):
            yield f"{where}: {value!r} fits none of {schema['anyOf']}"
        if (
            "oneOf" in schema
            and sum(not list(self.complaints(each, value, where)) for each in schema["oneOf"]) != 1
        ):
            yield f"{where}: {value!r} does not fit exactly one of {schema['oneOf']}"
        if "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is none of {schema['enum']}"
        if schema.get("format") == "date-time" and not re.fullmatch(r"[\d-]{10}T[\d:.]+Z", str(value)):
            yield f"{where}: {value!r} is no time in UTC"
        if "type" in schema and type(value) not in _TYPES[schema["type"]]:
            yield f"{where}: {value!r} is no {schema['type']}"
            return
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
        yield from _out_of_bounds(schema, value, where)
        if isinstance(value, dict):
            for name in schema.get("required", ()):
                if name not in value:
                    yield f"{where}: {name} is missing"
            for name, needed in schema.get("dependentRequired", {}).items():
                if name in value and not set(needed) <= set(value):
                    yield f"{where}: {name} is given without {needed}"
        if isinstance(value, dict) and "properties" in schema:
            for name, member in value.items():
                if name in schema["properties"]:
                    yield from self.complaints(schema["properties"][name], member, f"{where}.{name}")
                else:
                    yield f"{where}: {name} is not documented"
        if isinstance(value, list) and "items" in schema:
            for at, item in enumerate(value):
                yield from self.complaints(schema["items"], item, f"{where}[{at}]")

    def resolve(self, reference: str) -> Any:
        """What a `$ref` refers to."""
        node: Any = self.document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        return node


def _decoded(path: str) -> str:
    """The path with each segment decoded. A segment with an encoded slash has to be an external id."""
    segments = [unquote(segment) for segment in path.split("/")]
    if any("/" in segment and not segment.startswith("@") for segment in segments):
        return "/a/segment/of/no/route"
    return "/".join(segment.replace("/", "-") for segment in segments)


def _out_of_bounds(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
    size = len(value) if isinstance(value, str | list | dict) else value
    for least, most in (
        *(("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems")),
        ("minProperties", "maxProperties"),
    ):
        if least in schema and size < schema[least]:
            yield f"{where}: {value!r} is below {least} {schema[least]}"
        if most in schema and size > schema[most]:
            yield f"{where}: {value!r} is above {most} {schema[most]}"


def check_browser_is_bound(answer: Answer, said: object = "") -> None:
    """Fail unless the answer has every header that keeps a browser from doing something with it."""
    bound = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
    assert bound.items() <= answer.headers.items(), said
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'", said
    assert "frame-ancestors 'none'" in policy, said
    if not answer.headers.get("content-type", "").startswith("text/html"):
        assert len(policy) == 2, said
    # No other part and no version of one is told.
    assert answer.headers["server"] == "granian", said
    assert "x-powered-by" not in answer.headers, said


def check_problem(answer: Answer, said: object = "") -> None:
    """Fail unless this is problem details (RFC 9457) as design §3 has it, telling nothing of the inside."""
    assert answer.headers["content-type"] == PROBLEM, said
    problem = answer.json()
    keys = ["type", "title", "status", "code", "detail"]
    assert list(problem) in (keys, [*keys, "errors"]), said
    kind = CODES[problem["code"]]
    assert (problem["status"], problem["title"]) == (answer.status, kind.title), said
    assert (answer.status, problem["type"]) == (kind.status, f"/docs#{kind.code}"), said
    assert ("errors" in problem) == (kind.code == "invalid_field"), said
    assert all(list(error) == ["field", "message"] for error in problem.get("errors", [])), said
    assert ("allow" in answer.headers) == (answer.status == 405), said
    assert (answer.headers.get("www-authenticate") == "Bearer") == (answer.status == 401), said
    assert ("retry-after" in answer.headers) == (answer.status in {429, 503}), said
    text = answer.body.decode("utf-8")
    assert not [word for word in INTERNALS if word in text], said


class Caller:
    """Calls one API process, on one connection while that is kept, and checks each answer."""

    def __init__(self, api: ApiProcess) -> None:
        self.api = api
        self.contract = Contract(api.client.get("/openapi.json").json())
        self._connection: socket.socket | None = None

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """Send exactly this, in Latin-1; a body is JSON unless the headers say otherwise."""
        sent = [("Host", "localhost"), *headers]
        if body is not None:
            if "content-type" not in {name.lower() for name, _ in sent}:
                sent.append(("Content-Type", JSON))
            sent.append(("Content-Length", str(len(body))))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent), "", ""]
        if self._connection is None:
            self._connection = _connect(self.api)
        self._connection.sendall("\r\n".join(lines).encode("latin-1") + (body or b""))
        response = http.client.HTTPResponse(self._connection, method=method)
        response.begin()
        answer = _answer(response)
        # What is refused before its body was read may cost the connection, with or without a word.
        if response.will_close or (body is not None and answer.status >= 400):
            self.close()
        self.contract.check(method, path, answer)
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, headers=list(headers.items()))

    def post(self, path: str, value: Any) -> Answer:
        """Send `value` as JSON; bytes and text as they are."""
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        return self.send("POST", path, value if isinstance(value, bytes) else json.dumps(value).encode())

    def call(self, method: str, path: str, value: Any = None) -> Answer:
        """Send `value` as JSON, unless it is None."""
        return self.send(method, path, None if value is None else json.dumps(value).encode())

    def create(self, name: str, score: int = 0) -> int:
        """A new user's id."""
        answer = self.post("/users", {"username": name, "score": score})
        assert answer.status == 201, answer
        return int(answer.json()["userId"])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def exchange(api: ApiProcess, request: bytes, *, more_to_come: bool = True) -> Answer | None:
    """Write `request` to a new connection; the first answer, None if the server just hung up.

    Without `more_to_come` the sending side is closed after it.
    """
    with _connect(api) as connection:
        try:
            connection.sendall(request)
            if not more_to_come:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            # Refused before all was sent: the answer may be there all the same.
            pass
        response = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode("latin-1"))
        try:
            response.begin()
            return _answer(response)
        except (http.client.BadStatusLine, ConnectionError):
            return None


def talk(api: ApiProcess, requests: bytes, *, more_to_come: bool = True) -> bytes:
    """Write `requests` to a new connection; all that comes back until the server closes it.

    Without `more_to_come` the sending side is closed after it.
    """
    received = b""
    with _connect(api) as connection, suppress(ConnectionError):
        # Refused before all was sent: there may be answers all the same.
        with suppress(OSError):
            connection.sendall(requests)
            if not more_to_come:
                connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            received += data
    return received


def conversation(api: ApiProcess, requests: bytes) -> list[Answer]:
    """Every answer to `requests`, of which none is HEAD and the last closes the connection."""
    received = _Replay(talk(api, requests))
    answers = []
    while received.tell() < len(received.getvalue()):
        response = http.client.HTTPResponse(received)  # type: ignore[arg-type]
        response.begin()
        answers.append(_answer(response))
    return answers


class _Replay(io.BytesIO):
    """What was received, as a connection that several answers are read from."""

    def makefile(self, *_: object) -> Self:
        return self

    def close(self) -> None:
        """Stay open: a response closes its connection when it is done with it."""


def _connect(api: ApiProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.settings.port), timeout=30)


def _answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    assert len(headers) == len(response.getheaders()), "a header is given twice"
    return Answer(response.status, headers, response.read())


def path_of(route: Route, **values: object) -> str:
    """The path of a route with these values; other parameters are those of the first user and of `default`."""
    known = {"id": 1, "n": 3, "board": "default", "name": "x"} | values
    return re.sub(r"\{(\w+)\}", lambda found: str(known[found[1]]), route.path) + query_of(route)


def query_of(route: Route) -> str:
    """The query string that a route needs."""
    return "?username=ada" if route.name == "find_users" else ""


def documented_calls() -> list[tuple[str, str]]:
    """Method and path of every documented row of the route table."""
    return [(route.method, route.path) for route in ROUTES if route.documented]
