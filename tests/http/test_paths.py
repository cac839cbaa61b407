"""Other spellings of a path: with a slash at its end, and below the path of a proxy."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard.http.routes import ROUTES
from leaderboard.model import Top
from leaderboard.web.pages import Pages
from tests.http.contract import Answer, Caller, exchange, path_of, query_of
from tests.system import ApiProcess, dev, eventually

ROOT = "/games/lb"
ASSET = next(iter(Pages.load().assets))
HTML = {"Accept": "text/html"}
VOLATILE = {"date", "content-length"}


def get(api: ApiProcess, path: str, method: str = "GET", **headers: str) -> Answer:
    """Requests exactly this path, which no client has normalised."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [*(f"{name}: {value}" for name, value in headers.items()), "", ""]
    answer = exchange(api, "\r\n".join(lines).encode())
    assert answer is not None
    return answer


def same(one: Answer, other: Answer) -> bool:
    """Returns True if the responses are equal except for values that change all the time."""
    return (
        one.status == other.status
        and {name: value for name, value in one.headers.items() if name not in VOLATILE}
        == {name: value for name, value in other.headers.items() if name not in VOLATILE}
        and ("text/plain" in one.headers["content-type"] or one.body == other.body)
    )


def paths() -> list[tuple[str, str]]:
    """Returns method and path of the rows of the route table that need no query, for the user with the id 1."""
    return [
        (route.method, ASSET if route.path == "/assets/{name}" else path_of(route))
        for route in ROUTES
        if not query_of(route)
    ]


GETS = [path for method, path in paths() if method == "GET"]


@pytest.fixture(scope="module")
def user(caller: Caller) -> int:
    """The id of the board's one user."""
    return caller.create("ada", 7)


@pytest.fixture(scope="module")
def below(start: Callable[..., Caller], user: int) -> ApiProcess:
    """A process on the same board, with a root path."""
    return start(root_path=ROOT).api


# A slash at the end


@pytest.mark.parametrize("path", [path for path in GETS if path != "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "BREW"])
def test_a_slash_at_the_end_changes_nothing(caller: Caller, user: int, method: str, path: str) -> None:
    plain = get(caller.api, path, method)
    assert plain.status == (405 if method == "BREW" else 200)
    assert same(get(caller.api, f"{path}/", method), plain)
    for nothing in (f"{path}//", f"/{path}", f"/{path}/"):
        assert get(caller.api, nothing, method).status == 404


def test_a_slash_at_the_end_of_a_write_changes_nothing(caller: Caller, user: int) -> None:
    created = caller.post("/users/", {"username": "bob"})
    assert created.status == 201
    assert created.headers["location"] == f"/users/{created.json()['userId']}"
    assert caller.post(f"{created.headers['location']}/score/", {"score": 5}).json()["score"] == 5
    assert caller.get("/leaderboard/?limit=1").json()["users"][0]["username"] == "ada"
    assert caller.get("/users/0/").code == "invalid_parameter"


def test_both_spellings_are_counted_as_one_route(caller: Caller, user: int) -> None:
    for path in ("/leaderboard/user/1/context", "/leaderboard/user/1/context/"):
        caller.get(path)
    routes = re.findall(r'route="([^"]+)"', caller.get("/metrics").body.decode())
    assert {route for route in routes if route.startswith("/leaderboard/user")} == {
        "/leaderboard/user/{id}/context"
    }


# Below the path of a proxy


@pytest.mark.parametrize("path", GETS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "BREW"])
def test_a_route_is_served_with_the_prefix_and_without(below: ApiProcess, method: str, path: str) -> None:
    plain = get(below, path, method)
    assert plain.status == (405 if method == "BREW" else 200)
    for spelling in (f"{ROOT}{path}", f"{ROOT}{path}" + ("" if path == "/" else "/")):
        assert same(get(below, spelling, method), plain), spelling


def test_the_root_path_alone_is_the_home_page(below: ApiProcess) -> None:
    assert same(get(below, ROOT, **HTML), get(below, "/", **HTML))


@pytest.mark.parametrize(
    "path",
    [
        *(f"{ROOT}x", f"{ROOT}x/livez", f"{ROOT}livez", f"{ROOT}{ROOT}/livez", f"{ROOT}//livez", f"/{ROOT}/livez"),
        *("/games", "/games/livez", "/games/LB/livez", f"{ROOT}%2Flivez", "/games%2Flb/livez", f"{ROOT}/../livez"),
    ],
)
def test_a_path_that_only_resembles_the_prefix_is_not_found(below: ApiProcess, path: str) -> None:
    answer = get(below, path)
    assert (answer.status, answer.code) == (404, "not_found")


def test_without_a_root_path_no_prefix_is_removed(caller: Caller) -> None:
    assert caller.get(f"{ROOT}/livez").code == "not_found"
    assert "servers" not in caller.contract.document


@pytest.mark.parametrize("prefix", [ROOT, ""])
def test_the_location_of_a_new_user_is_below_the_path(below: ApiProcess, prefix: str) -> None:
    created = below.client.post(f"{prefix}/users", json={"username": f"new{len(prefix)}"})
    assert created.status_code == 201
    assert created.headers["location"] == f"{ROOT}/users/{created.json()['userId']}"
    assert below.client.get(created.headers["location"]).json()["username"] == f"new{len(prefix)}"


@pytest.mark.parametrize("prefix", [ROOT, ""])
@pytest.mark.parametrize("path", ["/nowhere", "/users/0", "/users/2147483647"])
def test_the_type_of_a_problem_is_an_anchor_in_the_docs(below: ApiProcess, prefix: str, path: str) -> None:
    problem = below.client.get(prefix + path).json()
    page, _, anchor = problem["type"].partition("#")
    assert (page, anchor) == (f"{ROOT}/docs", problem["code"])
    assert f'id="{anchor}"' in below.client.get(page).text
    if path == "/nowhere":
        assert f"{ROOT}/docs" in problem["detail"]


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_what_a_page_refers_to_is_below_the_path(below: ApiProcess, page: str) -> None:
    html = below.client.get(f"{ROOT}{page}", headers=HTML).text
    found = set(re.findall(r'\b(?:src|href|data-source)="([^"#][^"]*)"', html))
    assert len(found) >= 5
    for address in found:
        assert address.startswith(f"{ROOT}/")
        assert below.client.get(address).status_code == 200, address
        assert below.client.get(address.removeprefix(ROOT)).status_code == 200, address


def test_the_document_names_the_root_path(below: ApiProcess) -> None:
    document = below.client.get(f"{ROOT}/openapi.json").json()
    assert document["servers"] == [{"url": ROOT}]
    assert "/leaderboard/top/{n}" in document["paths"]


def test_the_docs_show_the_document_below_the_path(below: ApiProcess) -> None:
    html = below.client.get(f"{ROOT}/docs").text
    assert re.findall(r'data-source="([^"]*)"', html) == [f"{ROOT}/openapi.json"]


def test_the_curl_line_of_an_empty_board_has_the_root_path() -> None:
    html = Pages.load(origin="https://board.example", root_path=ROOT).home(Top([])).decode()
    assert f"'<span data-origin>https://board.example</span>{ROOT}/users'" in html


def test_dev_prints_addresses_with_the_root_path(data_dir: Path) -> None:
    with dev(data_dir, ROOT_PATH=ROOT) as (port, printed):
        text = eventually(lambda: re.search(r"runs at (\S+) .* at (\S+)/docs\)", printed.read_text()), 20)
        assert text is not None
        assert set(text.groups()) == {f"http://localhost:{port}{ROOT}"}
        calls = re.findall(rf"curl '?(http://localhost:{port}\S*)", printed.read_text())
        assert len(calls) >= 5
        assert all(call.startswith(f"http://localhost:{port}{ROOT}/") for call in calls)
