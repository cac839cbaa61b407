"""A page of another site that calls the API, in a real browser: what it may do, and what it can read."""

import html
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.system import ApiProcess
from tests.web.chromium import needs_chromium, shown

pytestmark = needs_chromium

KEY = "a-key-of-more-than-16-characters"

PAGE = """<!doctype html><title>A game</title><pre id="seen"></pre><script type="module">
const API = %s, KEY = %s;
const seen = {};
async function call(name, path, options = {}) {
  try {
    const response = await fetch(API + path, options);
    const text = await response.text();
    const headers = Object.fromEntries(response.headers);
    seen[name] = { status: response.status, answer: text === "" ? null : JSON.parse(text), headers };
  } catch (error) { seen[name] = { error: error.name }; }
  return seen[name];
}
function send(method, value, more = {}) {
  const headers = { "content-type": "application/json", authorization: `Bearer ${KEY}`, ...more };
  return { method, headers, body: JSON.stringify(value) };
}
%s
document.getElementById("seen").textContent = JSON.stringify(seen);
</script>"""

GAME = """
const user = send("POST", { username: "ada", score: 5 }, { "idempotency-key": "1" });
const created = await call("created", "/users", user);
const id = created.answer?.userId;
await call("score", `/users/${id}/score`, send("POST", { score: 7 }));
await call("renamed", `/users/${id}`, send("PATCH", { username: "Ada" }));
const top = await call("top", "/leaderboard/top/3");
await call("cached", "/leaderboard/top/3");
await call("conditional", "/leaderboard/top/3", { headers: { "if-none-match": top.headers?.etag } });
await call("noPath", "/no/path", send("POST", {}));
await call("noKey", "/users", { method: "POST", headers: { "content-type": "application/json" }, body: "{}" });
await call("notJson", "/users", { method: "POST", body: "x", headers: { authorization: `Bearer ${KEY}` } });
await call("tooLarge", "/users", send("POST", { username: "x".repeat(20000) }));
await call("limited", "/leaderboard/top/3");
"""

OTHER = """
await call("read", "/leaderboard/top/3");
await call("write", "/users", send("POST", { username: "eve" }));
await call("simple", "/users", { method: "POST", body: "{}" });
"""


@contextmanager
def site(*, script: str) -> Iterator[Callable[[str], str]]:
    """Serves one page with this script; yields a function that sets the API's address and returns the page's."""
    page = b""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page if self.path == "/" else b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:

        def calls(api: str) -> str:
            nonlocal page
            page = (PAGE % (json.dumps(api), json.dumps(KEY), script)).encode()
            return f"http://127.0.0.1:{server.server_port}"

        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield calls
        finally:
            server.shutdown()
            thread.join()


def seen_by(page: str, profile: Path) -> dict[str, Any]:
    """Returns what the script of the page has seen, by the names of its calls."""
    text, _ = shown(page, profile, 20_000)
    found = re.search(r'<pre id="seen">(.*?)</pre>', text, re.DOTALL)
    assert found, text
    return dict(json.loads(html.unescape(found[1])))


@pytest.fixture
def start(serve: Callable[..., ApiProcess]) -> Callable[[str], ApiProcess]:
    """Starts a process that pages of this origin may call. Without a key, an address may call four times."""

    def start(origin: str) -> ApiProcess:
        keys = SecretStr(f"game:read+write+admin:{KEY}")
        return serve(cors_origins=origin, api_keys=keys, rate_limit_per_address="4/hour")

    return start


def requests(api: ApiProcess, route: str, status: int) -> float:
    """Returns how many requests of a route were answered with this status."""
    text = api.client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    labels = rf'{{.*"{re.escape(route)}".*"{status}".*}}'
    found = re.search(rf"^leaderboard_requests_total{labels} (.*)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


def test_a_page_of_an_allowed_origin_reads_writes_and_sees_refusals(
    start: Callable[[str], ApiProcess], tmp_path: Path
) -> None:
    with site(script=GAME) as page_for:
        api = start(page_for(""))
        seen = seen_by(page_for(api.url), tmp_path)
    user_id = seen["created"]["answer"]["userId"]
    assert (seen["created"]["status"], seen["created"]["headers"]["location"]) == (201, f"/users/{user_id}")
    assert (seen["score"]["status"], seen["score"]["answer"]["previousScore"]) == (200, 5)
    assert (seen["renamed"]["status"], seen["renamed"]["answer"]["username"]) == (200, "Ada")
    # The browser asks again by itself, and shows the page the answer that it has stored.
    assert seen["top"]["answer"]["users"][0]["username"] == "Ada"
    assert (seen["cached"]["status"], seen["cached"]["answer"]) == (200, seen["top"]["answer"])
    assert (seen["conditional"]["status"], seen["conditional"]["answer"]) == (304, None)
    assert requests(api, "/leaderboard/top/{n}", 304) == 2
    refusals = {name: (seen[name]["status"], seen[name]["answer"]["code"]) for name in list(seen)[6:]}
    assert refusals == {
        "noPath": (404, "not_found"),
        "noKey": (401, "unauthorized"),
        "notJson": (415, "unsupported_media_type"),
        "tooLarge": (413, "body_too_large"),
        "limited": (429, "rate_limited"),
    }
    assert int(seen["limited"]["headers"]["retry-after"]) > 0
    assert seen["noKey"]["headers"]["www-authenticate"] == "Bearer"


def test_a_page_of_another_origin_sees_nothing(start: Callable[[str], ApiProcess], tmp_path: Path) -> None:
    with site(script=OTHER) as page_for:
        api = start("https://game.example")
        seen = seen_by(page_for(api.url), tmp_path)
    assert seen == {name: {"error": "TypeError"} for name in ("read", "write", "simple")}
    assert requests(api, "/users", 201) == 0
