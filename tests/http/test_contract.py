"""The HTTP contract, design §3, row by row against a running server; `Caller` checks each answer as well."""

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from itertools import count
from typing import Any

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leaderboard.config import Settings
from leaderboard.http.routes import ROUTES
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN
from tests.http.board import USER, flat, true_board
from tests.http.contract import CODES, JSON, KEYWORDS, PROBLEM, Answer, Caller, documented_calls
from tests.http.corpus import BAD_NUMBERS
from tests.system import free_port

Start = Callable[..., Caller]

_numbers = count(1)
STATUS = {
    "service": "leaderboard",
    "version": "0.1.0",
    "status": "ok",
    "postgres": "up",
    "redis": "up",
    "writes": "accepted",
}
URL = "https://img.example.com/a.png"
TAKES_A_KEY = {
    *(("post", "/users"), ("post", "/users/{id}/score")),
    *(("post", "/boards/{board}/users/{id}/score"), ("post", "/boards/{board}/scores")),
}


def new_name() -> str:
    return f"user number {next(_numbers)}"


def refused(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer


# Reads. First of all, because it wants nobody to be there.


def test_an_empty_board(caller: Caller) -> None:
    assert caller.get("/leaderboard/top/10").body == b'{"users":[]}'
    for page in ("", "?limit=1", "?limit=1000", "?around_rank=1", "?around_rank=5&limit=3"):
        assert caller.get(f"/leaderboard{page}").body == b'{"users":[],"total":0,"next":null}'
    refused(caller.get("/users/1"), 404, "user_not_found")
    refused(caller.get("/leaderboard/user/1/context"), 404, "user_not_found")
    refused(caller.post("/users/1/score", {"score": 1}), 404, "user_not_found")


def test_the_top_is_the_best_first_and_at_most_n(caller: Caller, module_settings: Settings) -> None:
    for score in (5, SCORE_MAX, 0, 5, SCORE_MIN, -1, 5, SCORE_MAX - 1, SCORE_MIN + 1):
        caller.create(new_name(), score)
    board = true_board(module_settings)
    for n in (1, 2, len(board) - 1, len(board), len(board) + 1, 9_999, 10_000, 10_001, 100_000):
        answer = caller.get(f"/leaderboard/top/{n}")
        assert answer.status == 200
        assert list(answer.json()) == ["users"]
        assert [flat(user) for user in answer.json()["users"]] == board[:n]


def test_a_context_has_up_to_five_on_each_side(caller: Caller, module_settings: Settings) -> None:
    for number in range(12):
        caller.create(new_name(), number // 2)
    board = true_board(module_settings)
    for at, standing in enumerate(board):
        context = caller.get(f"/leaderboard/user/{standing[1]}/context").json()
        assert list(context) == ["user", "above", "below", "total"]
        assert context["total"] == len(board)
        assert flat(context["user"]) == standing
        assert [flat(user) for user in context["above"]] == board[max(at - 5, 0) : at]
        assert [flat(user) for user in context["below"]] == board[at + 1 : at + 6]
        assert flat(caller.get(f"/users/{standing[1]}").json()) == standing


# Creating users


def test_creating_a_user_gives_it_and_its_place(caller: Caller) -> None:
    answer = caller.post("/users", {"username": "ada", "score": 1815, "imageUrl": URL})
    user_id = answer.json()["userId"]
    assert answer.status == 201
    assert answer.headers["content-type"] == JSON
    assert answer.headers["location"] == f"/users/{user_id}"
    assert answer.body == b'{"userId":%d,"username":"ada","imageUrl":"%s","score":1815}' % (user_id, URL.encode())
    there = caller.get(answer.headers["location"])
    assert flat(there.json())[1:] == (user_id, "ada", URL, 1815)


def test_a_user_needs_a_name_only(caller: Caller) -> None:
    answer = caller.post("/users", {"username": "plain"})
    assert list(answer.json()) == USER
    assert list(answer.json().values())[1:] == ["plain", None, 0]
    assert caller.post("/users", {"username": new_name(), "imageUrl": None}).json()["imageUrl"] is None


@pytest.mark.parametrize(
    "score", [SCORE_MIN, SCORE_MIN + 1, -(2**31) - 1, -1, 0, 1, 2**31, SCORE_MAX - 1, SCORE_MAX]
)
def test_a_score_is_any_integer_that_json_keeps(caller: Caller, score: int) -> None:
    user_id = caller.create(new_name(), score)
    assert caller.get(f"/users/{user_id}").json()["score"] == score
    assert caller.post(f"/users/{user_id}/score", {"score": score}).json()["previousScore"] == score


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (" \t\u3000trimmed\n\u00a0", "trimmed"),
        ("in the middle", "in the middle"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("\u212bngstr\u00f6m", "\u00c5ngstr\u00f6m"),
        ("n" * 128, "n" * 128),
        (" " * 100 + "m" * 128 + " " * 100, "m" * 128),
        ("e\u0301" * 128, "\u00e9" * 128),
        ("\U0001d538" * 128, "\U0001d538" * 128),
    ],
    ids=ascii,
)
def test_a_name_is_trimmed_and_normalised_and_taken_in_every_spelling(
    caller: Caller, sent: str, stored: str
) -> None:
    answer = caller.post("/users", {"username": sent})
    assert (answer.status, answer.json()["username"]) == (201, stored)
    for spelling in (sent, stored, f"  {stored}"):
        refused(caller.post("/users", {"username": spelling, "score": 9}), 409, "username_taken")
    assert caller.get(answer.headers["location"]).json()["score"] == 0


def test_names_differ_by_case_and_look(caller: Caller) -> None:
    for name in ("Bob", "bob", "b\u043eb"):
        caller.create(name)


# Setting scores


def test_each_answer_tells_the_score_before_it(caller: Caller) -> None:
    name = new_name()
    user_id = caller.create(name, 7)
    previous = 7
    for score in (10, 3, 3, SCORE_MIN, SCORE_MAX):
        answer = caller.post(f"/users/{user_id}/score", {"score": score})
        assert answer.status == 200
        assert answer.body == (
            b'{"userId":%d,"username":"%s","imageUrl":null,"score":%d,"previousScore":%d}'
            % (user_id, name.encode(), score, previous)
        )
        assert caller.get(f"/users/{user_id}").json()["score"] == score
        previous = score


def test_scores_set_at_once_are_a_chain(caller: Caller) -> None:
    user_id = caller.create(new_name(), 0)

    def one_thread(first: int) -> list[tuple[int, int]]:
        mine = Caller(caller.api)
        try:
            answers = [mine.post(f"/users/{user_id}/score", {"score": first + n}).json() for n in range(25)]
        finally:
            mine.close()
        return [(answer["previousScore"], answer["score"]) for answer in answers]

    with ThreadPoolExecutor(8) as threads:
        steps = dict(step for steps in threads.map(one_thread, range(1000, 9000, 1000)) for step in steps)
    assert len(steps) == 8 * 25, "two saw the same score before theirs"
    at = 0
    for _ in range(8 * 25):
        at = steps[at]
    assert caller.get(f"/users/{user_id}").json()["score"] == at


# Refusals


@pytest.mark.parametrize("text", [*BAD_NUMBERS, str(2**31), str(2**63), str(-(2**31))], ids=lambda t: t[:20])
def test_an_id_is_a_positive_int32_in_its_plain_spelling(caller: Caller, text: str) -> None:
    if text == str(10**5):
        refused(caller.get(f"/users/{text}"), 404, "user_not_found")
        return
    for path in (f"/users/{text}", f"/leaderboard/user/{text}/context"):
        refused(caller.get(path), 422, "invalid_parameter")
    refused(caller.post(f"/users/{text}/score", {"score": 1}), 422, "invalid_parameter")


@pytest.mark.parametrize("text", [*BAD_NUMBERS, "100001", str(INT32_MAX)], ids=lambda t: t[:20])
def test_n_is_a_positive_integer_up_to_the_limit(caller: Caller, text: str) -> None:
    answer = caller.get(f"/leaderboard/top/{text}")
    if text == str(10**5):
        assert answer.status == 200
    else:
        refused(answer, 422, "invalid_parameter")
        assert "an integer from 1 to 100000" in answer.json()["detail"]


def test_the_limit_of_n_can_be_set(start: Start) -> None:
    small = start(max_top_n=20)
    assert small.get("/leaderboard/top/20").status == 200
    refused(small.get("/leaderboard/top/21"), 422, "invalid_parameter")


@pytest.mark.parametrize("user_id", [999_999, INT32_MAX])
def test_a_user_that_is_not_there(caller: Caller, user_id: int) -> None:
    refused(caller.get(f"/users/{user_id}"), 404, "user_not_found")
    refused(caller.get(f"/leaderboard/user/{user_id}/context"), 404, "user_not_found")
    answer = caller.post(f"/users/{user_id}/score", {"score": 1})
    refused(answer, 404, "user_not_found")
    assert str(user_id) in answer.json()["detail"]


def test_all_bad_fields_are_named_at_once(caller: Caller) -> None:
    answer = caller.post("/users", {"username": 5, "score": "5", "imageUrl": "javascript:alert(1)", "admin": True})
    refused(answer, 422, "invalid_field")
    assert set(answer.fields) == {"username", "score", "imageUrl", "admin"}
    answer = caller.post("/users", {"scores": 5})
    assert answer.fields == {
        "username": "is required",
        "scores": "unknown field; there are externalId, imageUrl, score, username",
    }


def test_an_empty_image_url_is_none(caller: Caller) -> None:
    answer = caller.post("/users", {"username": new_name(), "imageUrl": ""})
    refused(answer, 422, "invalid_field")
    assert list(answer.fields) == ["imageUrl"]


def test_a_score_must_be_given(caller: Caller) -> None:
    user_id = caller.create(new_name())
    for body in ({}, {"score": None}, {"Score": 1}):
        answer = caller.post(f"/users/{user_id}/score", body)
        refused(answer, 422, "invalid_field")
        assert "score" in answer.fields


@pytest.mark.parametrize("path", ["/", "/users", "/users/1", "/users/1/score", "/leaderboard/top/1", "/docs"])
@pytest.mark.parametrize("tail", ["//", "/x", ".json", "%20", "%3F", "%23"])
def test_what_is_not_a_route_is_not_found(caller: Caller, path: str, tail: str) -> None:
    if path in {"/users/1", "/leaderboard/top/1"} and not tail.startswith("/"):
        return
    if (path, tail) == ("/users", "/x"):
        return
    for method in ("GET", "POST"):
        refused(caller.send(method, path + tail), 404, "not_found")


@pytest.mark.parametrize("path", ["//", "/LIVEZ", "/users//score", "/leaderboard/top", "/favicon.ico"])
def test_nor_is_anything_else(caller: Caller, path: str) -> None:
    refused(caller.get(path), 404, "not_found")


@pytest.mark.parametrize("call", documented_calls(), ids=" ".join)
def test_another_method_is_not_allowed_and_told_which_are(caller: Caller, call: tuple[str, str]) -> None:
    _, path = call
    allowed = {each for each, other in documented_calls() if other == path}
    allowed |= {"HEAD"} if "GET" in allowed else set()
    path = path.replace("{id}", "1").replace("{n}", "1").replace("{board}", "default")
    for other in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"} - allowed:
        answer = caller.send(other, path, b"" if other in {"POST", "PUT", "PATCH"} else None)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == allowed
        assert answer.headers["content-type"] == PROBLEM


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "",
        "application/jsonx",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        "*/*",
    ],
)
def test_a_body_must_be_declared_as_json(caller: Caller, content_type: str) -> None:
    answer = caller.send("POST", "/users", b'{"username":"undeclared"}', [("Content-Type", content_type)])
    refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", [JSON, "Application/JSON", "application/json; charset=utf-8", " application/json ;x=y"]
)
def test_json_may_be_declared_with_parameters(caller: Caller, content_type: str) -> None:
    body = b'{"username":"%s"}' % new_name().encode()
    assert caller.send("POST", "/users", body, [("Content-Type", content_type)]).status == 201


def test_a_body_has_at_most_16_kib(caller: Caller) -> None:
    body = b'{"username":"%s"}' % new_name().encode()
    refused(caller.post("/users", body.ljust(16 * 1024 + 1)), 413, "body_too_large")
    assert caller.post("/users", body.ljust(16 * 1024)).status == 201


@pytest.fixture(scope="module")
def alone(start: Start) -> Caller:
    """A process that has never seen its PostgreSQL."""
    return start(db_port=free_port(), wait_for="unavailable")


def test_without_postgres_everything_is_refused_for_now(alone: Caller) -> None:
    for answer in (
        alone.get("/leaderboard/top/1"),
        alone.get("/users/1"),
        alone.get("/leaderboard/user/1/context"),
        alone.get("/leaderboard"),
        alone.get("/leaderboard?around_rank=1"),
        alone.post("/users", {"username": new_name()}),
        alone.post("/users/1/score", {"score": 1}),
    ):
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
    refused(alone.get("/users/0"), 422, "invalid_parameter")
    refused(alone.post("/users", {}), 422, "invalid_field")
    ready = alone.get("/readyz")
    assert (ready.status, ready.json()["status"]) == (503, "unavailable")
    assert alone.get("/").status == 200
    assert alone.get("/livez").status == 200


def test_without_postgres_there_is_no_page(alone: Caller) -> None:
    refused(alone.get("/", Accept=FIREFOX), 503, "unavailable")


@pytest.mark.anyio
async def test_a_full_queue_refuses_at_once(start: Start, caller: Caller, module_settings: Settings) -> None:
    held = caller.create(new_name(), 1)
    small = start(queue_limit=1)

    def set_score() -> Answer:
        mine = Caller(small.api)
        try:
            return mine.post(f"/users/{held}/score", {"score": 2})
        finally:
            mine.close()

    connection = await asyncpg.connect(
        host=module_settings.db_host,
        port=module_settings.db_port,
        user=module_settings.db_user,
        password=module_settings.db_password.get_secret_value(),
        database=module_settings.db_name,
    )
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM users WHERE user_id = $1 FOR UPDATE", held)
            pending = [asyncio.create_task(asyncio.to_thread(set_score)) for _ in range(8)]
            # One is being tried, one waits; the others need not wait for the row to know.
            for done in asyncio.as_completed(pending[:]):
                refused(await done, 503, "overloaded")
                if sum(task.done() for task in pending) == 6:
                    break
        for answer in await asyncio.gather(*pending):
            assert answer.status == 200 or answer.code == "overloaded"
    finally:
        await connection.close()
    assert caller.post(f"/users/{held}/score", {"score": 3}).status == 200


# The process


def test_the_status(caller: Caller) -> None:
    for path in ("/", "/readyz"):
        answer = caller.get(path)
        assert answer.status == 200
        assert list(answer.json().items()) == list(STATUS.items())
    assert caller.get("/livez").body == b'{"status":"alive"}'


CHROME = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (CHROME, True),
        (FIREFOX, True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/html;level=1", True),
        ("text/html ; q=0.1", True),
        ("application/xhtml+xml", True),
        ("application/json;q=0.9, text/html", True),
        ("text/html, */*;q=0.1", True),
        (None, False),
        ("", False),
        ("*/*", False),
        ("*/*;q=1, image/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0.9, application/json", False),
        ("text/html;q=0", False),
        ("text/html;q=0.0, */*", False),
        ("text/html;q=0.5, */*", False),
        ("text/html;q=0.5, application/*;q=0.6", False),
        ("text/html;q=", False),
        ("text/html;q=nan", False),
        ("text/html;q=-1", False),
        ("text/html;q=much", False),
        ("text/plain", False),
        ("text/htmlx", False),
        ("html", False),
        (",;=,,;q=1,", False),
        ("\xff\xfe", False),
        ("a/b," * 2_000, False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_browser_gets_the_page_and_others_the_status(caller: Caller, accept: str | None, html: bool) -> None:
    answer = caller.send("GET", "/", headers=[] if accept is None else [("Accept", accept)])
    assert answer.status == 200
    assert answer.headers["content-type"] == ("text/html; charset=utf-8" if html else JSON)
    assert answer.headers["vary"].lower() == "accept"
    if html:
        assert answer.body.startswith(b"<!doctype html>")
    else:
        assert answer.json() == STATUS


@pytest.mark.parametrize("accepts", [("*/*;q=0.1", "text/html"), ("text/html", "*/*;q=0.1")])
def test_several_accept_headers_are_one(caller: Caller, accepts: tuple[str, ...]) -> None:
    answer = caller.send("GET", "/", headers=[("Accept", accept) for accept in accepts])
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("call", [path for method, path in documented_calls() if method == "GET"])
@pytest.mark.parametrize("known", [True, False])
def test_head_is_get_without_the_body(caller: Caller, call: str, known: bool) -> None:
    user_id = caller.create(new_name()) if known else 999_999
    path = call.replace("{id}", str(user_id)).replace("{n}", "3" if known else "0").replace("{board}", "default")
    for accept in ("*/*", FIREFOX):
        get = caller.send("GET", path, headers=[("Accept", accept)])
        head = caller.send("HEAD", path, headers=[("Accept", accept)])
        assert head.status == get.status
        assert head.body == b""
        differing = {name for name in get.headers if get.headers[name] != head.headers.get(name)}
        assert set(get.headers) == set(head.headers)
        assert differing <= ({"date", "content-length"} if path == "/metrics" else {"date"})


# The document


def test_the_document_is_openapi_31(caller: Caller) -> None:
    contract = caller.contract
    document = contract.document
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert {"title", "version"} <= set(document["info"])
    known = {"openapi", "info", "paths", "components"}
    assert all(key in known or key.startswith("x-") for key in document)
    operations = [
        (path, method, each) for path, item in document["paths"].items() for method, each in item.items()
    ]
    assert [(method.upper(), path) for path, method, _ in operations] == documented_calls()
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for path, method, operation in operations:
        parameters = operation.get("parameters", [])
        in_path = [parameter for parameter in parameters if parameter["in"] == "path"]
        assert [parameter["name"] for parameter in in_path] == re.findall(r"\{(\w+)\}", path)
        others = {parameter["name"]: parameter for parameter in parameters if parameter["in"] != "path"}
        if path == "/leaderboard":
            assert list(others) == ["limit", "after", "around_rank", "users"]
        assert ("Idempotency-Key" in others) == ((method, path) in TAKES_A_KEY)
        assert not any(parameter.get("required") for parameter in others.values())
        assert all(parameter["description"] for parameter in others.values())
        for parameter in in_path:
            assert (parameter["in"], parameter["required"]) == ("path", True)
            assert not list(contract.complaints(parameter["schema"], parameter["example"]))
        assert ("requestBody" in operation) == (method in {"post", "put", "patch"})
        assert all(re.fullmatch(r"[2345]\d\d", status) for status in operation["responses"])
        assert all(response["description"] for response in operation["responses"].values())
    for schema in schemas(document):
        assert set(schema) <= KEYWORDS
        # Clients made from the document would otherwise read 32 bits.
        if schema.get("type") == "integer":
            assert (schema.get("format") == "int64") == (schema.get("maximum", 0) > INT32_MAX), schema
        if "$ref" in schema:
            assert contract.resolve(schema["$ref"])
        samples = [*schema.get("examples", ()), *([schema["default"]] if "default" in schema else ())]
        for sample in samples:
            assert not list(contract.complaints(schema, sample))


def schemas(node: Any, where: str = "") -> Iterator[dict[str, Any]]:
    """Every schema of the document, those inside others too."""
    if isinstance(node, list):
        for each in node:
            yield from schemas(each, where)
    elif isinstance(node, dict):
        if where in {"schema", "schemas", "properties", "anyOf", "items"}:
            yield from [node] if where in {"schema", "items", "anyOf"} else node.values()
        for name, each in node.items():
            yield from schemas(each, name)


def test_the_document_tells_every_status_of_each_call(caller: Caller) -> None:
    for route in ROUTES:
        if route.documented:
            responses = caller.contract.document["paths"][route.path][route.method.lower()]["responses"]
            expected = {route.status, *route.other_responses, *(CODES[code].status for code in route.problems)}
            assert {int(status) for status in responses} == expected


def test_the_document_tells_which_answers_may_be_old(caller: Caller) -> None:
    # The cache has no pages, and so they are never older than now.
    paths = caller.contract.document["paths"]
    aged = {
        path
        for path in paths
        for each in paths[path].values()
        if "Age" in each["responses"].get("200", {}).get("headers", {})
    }
    calls = {"/users/{id}", "/leaderboard/top/{n}", "/leaderboard/user/{id}/context"}
    assert aged == {"/", *calls, *(f"/boards/{{board}}{call}" for call in calls)}


def test_the_checker_itself_sees_what_is_wrong(caller: Caller) -> None:
    contract = caller.contract
    user = {"$ref": "#/components/schemas/User"}
    good = {"userId": 1, "username": "a", "imageUrl": None, "score": 0}
    assert not list(contract.complaints(user, good))
    for wrong in (
        {"userId": 0},
        {"userId": 1.0},
        {"userId": True},
        {"score": 2**53},
        {"score": -(2**53)},
        {"score": 5.5},
        {"imageUrl": 5},
        {"more": 1},
    ):
        assert list(contract.complaints(user, good | wrong))
    assert list(contract.complaints(user, {"userId": 1}))
    assert list(contract.complaints(user, []))


# The pages and the metrics


class References(HTMLParser):
    """What a page has the browser fetch or follow, and its ids."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.addresses: set[str] = set()
        self.ids: set[str] = set()
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "action", "srcset", "poster", "data-source"}:
                self.addresses.add(value or "")
            if name == "id":
                self.ids.add(value or "")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_need_no_other_host(caller: Caller, path: str) -> None:
    page = caller.get(path, Accept=FIREFOX)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert page.headers["x-frame-options"] == "DENY"
    references = References(page.body)
    assert len(references.addresses) > 4
    for address in references.addresses:
        if address.startswith("#"):
            assert address[1:] in references.ids
        else:
            assert re.match(r"/(?!/)", address), f"{address} is elsewhere"
            found = caller.get(address)
            assert found.status == 200, address
            if address.startswith("/assets/"):
                assert found.headers["content-type"].partition(";")[0] in {
                    "text/css",
                    "text/javascript",
                    "image/svg+xml",
                }
                assert "immutable" in found.headers["cache-control"]
                head = caller.send("HEAD", address)
                assert {**head.headers, "date": ""} == {**found.headers, "date": ""}


def test_the_type_of_a_problem_leads_to_its_explanation(caller: Caller) -> None:
    assert set(CODES) <= References(caller.get("/docs").body).ids


def test_the_metrics_can_be_read_and_count(caller: Caller) -> None:
    def metrics() -> dict[str, float]:
        answer = caller.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = text_string_to_metric_families(answer.body.decode())
        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in families
            for sample in family.samples
        }

    before = metrics()
    caller.get("/leaderboard/top/3")
    caller.get("/leaderboard/top/4")
    refused(caller.get("/users/999999"), 404, "user_not_found")
    after = metrics()
    tops = "leaderboard_requests_total[('route', '/leaderboard/top/{n}'), ('status', '200')]"
    assert after[tops] == before[tops] + 2
    assert after["leaderboard_requests_total[('route', '/users/{id}'), ('status', '404')]"] >= 1
    assert after["leaderboard_postgres_up[]"] == after["leaderboard_redis_up[]"] == 1
    assert after["leaderboard_audit_differences_total[]"] == 0
    assert not [name for name in after if name.startswith("leaderboard_requests") and "'status', '500'" in name]
