"""The pages in a real browser: what their scripts do, and that nothing violates the policy."""

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from leaderboard.http import security
from leaderboard.http.routes import ROUTES
from leaderboard.model import Context, Standing, Top
from leaderboard.web.pages import Pages
from tests.web.chromium import needs_chromium, shown
from tests.web.document import KEY, document

pytestmark = needs_chromium

NAME = "<b>Ada</b> & 'Co'"
USERS = [
    Standing(rank, 100 - rank, NAME if rank == 3 else f"user {rank}", None, 5000 - rank) for rank in range(1, 12)
]
RISEN = [Standing(1, 7, "riser", "https://img.example.com/7", 2_000_000), *USERS[1:]]
Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Look = Callable[..., tuple[str, list[str]]]
"""See `shown`; it takes a path."""


class Site:
    """What the server answers by path, and the requests it got: paths and credentials.

    A test may change an answer, and add a script to a page.
    """

    def __init__(self, root_path: str = "") -> None:
        self.pages = Pages.load(root_path=root_path)
        self.address = ""
        self.answers: dict[str, Answer] = {
            root_path + path: (200, {"Content-Type": asset.content_type}, asset.content)
            for path, asset in self.pages.assets.items()
        }
        self.requests: list[tuple[str, str | None]] = []
        self.page(f"{root_path}/", self.pages.home(Top(USERS)), self.pages.home_policy)
        self.page(f"{root_path}/docs", self.pages.docs(document(root_path)), self.pages.docs_policy)
        self.answers[f"{root_path}/openapi.json"] = api(document(root_path))
        self.answers[f"{root_path}/leaderboard/top/100"] = api(Top(RISEN))
        context = Context(USERS[2], USERS[:2], USERS[3:8], len(USERS))
        self.answers[f"{root_path}/leaderboard/user/97/context"] = api(context)

    def page(self, path: str, html: bytes, policy: str, script: str = "") -> None:
        if script:
            html = html.replace(b"</head>", b'<script type="module" src="/test.js"></script></head>')
            self.answers["/test.js"] = (200, {"Content-Type": "text/javascript"}, script.encode())
        headers = {"Content-Type": "text/html; charset=utf-8", **security.page(policy)}
        self.answers[path] = (200, headers, html)


def api(answer: object, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, msgspec.json.encode(answer)


@pytest.fixture
def root_path() -> str:
    """The root path of the site; a test may set another by `parametrize`."""
    return ""


@pytest.fixture
def site(root_path: str) -> Iterator[Site]:
    site = Site(root_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append((self.path, self.headers["Authorization"]))
            status, headers, body = site.answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def look(site: Site, tmp_path: Path) -> Look:
    def look(path: str, milliseconds: int = 2000) -> tuple[str, list[str]]:
        return shown(site.address + path, tmp_path, milliseconds)

    return look


def test_the_board_is_shown_with_its_tools(site: Site, look: Look) -> None:
    html, console = look("/")
    assert console == []
    assert html.count("<tr") == 1 + 1 + len(USERS) + 1
    assert "&lt;b&gt;Ada&lt;/b&gt; &amp; 'Co'</bdi>" in html
    assert '<div class="tools" id="tools">' in html


def test_the_board_refreshes_itself_and_marks_what_changed(site: Site, look: Look) -> None:
    html, console = look("/", 11_000)
    assert console == []
    assert 'riser</bdi> <span class="id">id 7</span>' in html
    assert '<data value="2000000">2,000,000</data>' in html
    assert "img.example.com" not in html


def test_a_stale_refresh_shows_its_age(site: Site, look: Look) -> None:
    site.answers["/leaderboard/top/100"] = api(Top(USERS), Age="75")
    html, console = look("/", 6000)
    assert console == []
    assert "These numbers are 75 seconds old: the database is unreachable." in html


def test_a_refresh_that_fails_leaves_the_board_and_says_so(site: Site, look: Look) -> None:
    site.answers["/leaderboard/top/100"] = api({"detail": "Too many requests are waiting"}, 503)
    html, _ = look("/", 6000)
    assert "Not up to date: Too many requests are waiting" in html
    assert "user 11</bdi>" in html


def test_an_empty_board_fills(site: Site, look: Look) -> None:
    site.page("/", site.pages.home(Top([])), site.pages.home_policy)
    html, console = look("/", 6000)
    assert console == []
    assert 'id="empty" hidden' in html
    assert "riser</bdi>" in html


FIND = "const input = document.getElementById('find-id'); input.value = '{}'; input.form.requestSubmit();"


def test_a_user_is_found_by_id(site: Site, look: Look) -> None:
    site.page("/", site.pages.home(Top(USERS)), site.pages.home_policy, FIND.format(97))
    html, console = look("/")
    assert console == []
    assert "<bdi>&lt;b&gt;Ada&lt;/b&gt; &amp; 'Co'</bdi> is number 3</h2>" in html
    found = html[html.index('id="found-rows"') : html.index('id="empty"')]
    assert found.count("<tr") == 8
    assert found.count('aria-current="true"') == 1


def test_a_missing_user_shows_the_detail_of_the_api(site: Site, look: Look) -> None:
    site.answers["/leaderboard/user/5/context"] = api({"detail": "no user has the id 5"}, 404)
    site.page("/", site.pages.home(Top(USERS)), site.pages.home_policy, FIND.format(5))
    html, _ = look("/")
    assert 'id="find-answer" role="status">no user has the id 5</p>' in html


TRY = """
    async function found(selector) {
        for (;;) {
            const element = document.querySelector(selector);
            if (element) return element;
            await new Promise((done) => setTimeout(done, 20));
        }
    }
    async function click(selector) { (await found(selector)).click(); }
    async function type(selector, text) {
        const input = await found(selector);
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, text);
        input.dispatchEvent(new Event("input", { bubbles: true }));
    }
    const call = "#operations-default-get_user";
    await click(".btn.authorize");
    await type("#auth-bearer-value", KEY);
    await click(".auth-btn-wrapper .authorize");
    await click(".btn-done");
    await click(`${call} .opblock-summary-control`);
    await click(`${call} .try-out__btn`);
    await click(`${call} .execute`);
    await found(`${call} .live-responses-table .response`);
"""


def test_the_docs_show_every_call(site: Site, look: Look) -> None:
    html, console = look("/docs", 5000)
    assert console == []
    shown = set(re.findall(r'id="operations-default-(\w+)"', html))
    assert shown == {route.name for route in ROUTES if route.documented}
    assert all(f">{schema}<" in html for schema in document()["components"]["schemas"])


@pytest.mark.parametrize("root_path", ["", "/games/lb"])
def test_a_call_can_be_tried_with_a_key(site: Site, look: Look, root_path: str) -> None:
    site.answers[f"{root_path}/users/1"] = api({"userId": 1, "username": NAME})
    script = f"const KEY = {json.dumps(KEY)};{TRY}"
    site.page(f"{root_path}/docs", site.pages.docs(document(root_path)), site.pages.docs_policy, script)
    html, console = look(f"{root_path}/docs", 10_000)
    assert console == []
    assert (f"{root_path}/users/1", f"Bearer {KEY}") in site.requests
    assert "&lt;b&gt;Ada&lt;/b&gt; &amp; 'Co'" in html


def test_the_docs_send_no_request_to_another_host(site: Site, look: Look) -> None:
    """The browser would log an attempt, as the policy forbids it."""
    _, console = look("/docs", 5000)
    assert console == []
    assert {path for path, _ in site.requests} <= {"/docs", "/openapi.json", *site.pages.assets}
    assert "/openapi.json" in {path for path, _ in site.requests}


# Below a root path; the site has no other paths


@pytest.mark.parametrize("root_path", ["/games/lb"])
def test_below_a_path_the_board_refreshes_itself(site: Site, look: Look, root_path: str) -> None:
    html, console = look(f"{root_path}/", 11_000)
    assert console == []
    assert 'riser</bdi> <span class="id">id 7</span>' in html


@pytest.mark.parametrize("root_path", ["/games/lb"])
def test_below_a_path_a_user_is_found_by_id(site: Site, look: Look, root_path: str) -> None:
    site.page(f"{root_path}/", site.pages.home(Top(USERS)), site.pages.home_policy, FIND.format(97))
    html, console = look(f"{root_path}/")
    assert console == []
    assert "is number 3</h2>" in html


@pytest.mark.parametrize(
    "markup", ["<p style='color: red'>", "<script>1</script>", "<img src='https://img.example.com/1'>"]
)
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_violation_of_the_policy_is_logged_by_the_browser(
    site: Site, look: Look, path: str, markup: str
) -> None:
    status, headers, html = site.answers[path]
    site.answers[path] = (status, headers, html.replace(b"<main>", b"<main>" + markup.encode()))
    _, console = look(path)
    assert any("Content Security Policy" in line for line in console)
