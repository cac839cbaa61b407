"""Below the path of a real proxy, which is configured with the text of docs/deploy.md."""

import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.http.contract import CODES, PROBLEM, Caller
from tests.system import ROOT, ApiProcess, eventually, free_port
from tests.web.chromium import needs_chromium, shown

DEPLOY = (ROOT / "docs" / "deploy.md").read_text("utf-8")
HOST = "board.example"
NGINX_AROUND = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {documented}
}}
"""
CADDY_AROUND = """
{{
    admin off
}}
{documented}
"""
Changes = tuple[tuple[str, str], ...]
"""Texts of the documentation, and their replacements in the tests."""


def documented(language: str) -> tuple[str, str]:
    """Returns the configuration in the documentation, and its line that removes the prefix."""
    whole, line = re.findall(rf"```{language}\n(.*?)```", DEPLOY, re.DOTALL)
    return whole, line


def changed(text: str, changes: Changes) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its kind, whether it keeps the prefix, and its port."""

    kind: str
    keeps: bool
    port: int

    @property
    def authority(self) -> str:
        return f"{HOST}:{self.port}"

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """Returns a client at that local address, for which the proxy is the board's host."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Host": self.authority},
            transport=httpx.HTTPTransport(local_address=address),
            timeout=30,
        )


@contextmanager
def proxy(kind: str, keeps: bool, to: int, folder: Path, *changes: tuple[str, str]) -> Iterator[Proxy]:
    """Starts a proxy in front of the service on the port `to`."""
    if shutil.which(kind) is None:
        pytest.skip(f"needs {kind}: apt-get install {'nginx-light' if kind == 'nginx' else kind}")
    found = Proxy(kind, keeps, free_port())
    folder = folder / f"{kind}-{found.port}"
    folder.mkdir()
    config = folder / "config"
    if kind == "nginx":
        text, strips = documented("nginx")
        own: Changes = (
            ("server 127.0.0.1:3000;", f"server 127.0.0.1:{to};"),
            ("listen 80;", f"listen {found.port};"),
        )
        if not keeps:
            own += (("        proxy_pass http://leaderboard;\n", strips),)
        around, command = NGINX_AROUND, ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)]
    else:
        text, strips = documented("caddyfile")
        own = (("127.0.0.1:3000", f"127.0.0.1:{to}"), (f"{HOST} {{", f"http://{found.authority} {{"))
        if not keeps:
            own += (("    handle /lb/* {\n", strips),)
        around, command = CADDY_AROUND, ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]
    config.write_text(around.format(folder=folder, documented=changed(text, (*own, *changes))))
    at_home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **at_home}, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with found.client() as client, suppress(httpx.TransportError):
            return client.get("/lb/livez").status_code < 500
        return False

    try:
        eventually(answers, 20, f"{kind} answers")
        yield found
    finally:
        process.terminate()
        process.wait(10)


BOTH = [
    pytest.param((kind, keeps), id=f"{kind}-{'keeps' if keeps else 'removes'}")
    for kind in ("nginx", "caddy")
    for keeps in (True, False)
]


@pytest.fixture(scope="module")
def api(start: Callable[..., Caller]) -> ApiProcess:
    """The service with one user. It serves the board's host and, for the tests, its own address."""
    api = start(root_path="/lb", allowed_hosts=f"{HOST} 127.0.0.1").api
    assert api.create("ada", 7).status_code == 201
    return api


@pytest.fixture(scope="module", params=BOTH)
def before(
    request: pytest.FixtureRequest, api: ApiProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy in front of the service."""
    kind, keeps = request.param
    with proxy(kind, keeps, api.settings.port, tmp_path_factory.mktemp("proxy")) as found:
        yield found


@pytest.fixture
def client(before: Proxy) -> Iterator[httpx.Client]:
    with before.client() as client:
        yield client


PATHS = ["/leaderboard/top/3", "/leaderboard/user/1/context", "/leaderboard?limit=1", "/users/1", "/", "/readyz"]


@pytest.mark.parametrize("path", PATHS)
def test_a_call_is_answered_as_without_the_proxy(api: ApiProcess, client: httpx.Client, path: str) -> None:
    direct, answer = api.client.get(path), client.get(f"/lb{path}")
    assert (answer.status_code, answer.json()) == (200, direct.json())
    assert answer.headers["content-security-policy"] == direct.headers["content-security-policy"]
    head = client.head(f"/lb{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


def test_a_slash_at_the_end_changes_nothing_and_does_not_redirect(client: httpx.Client) -> None:
    assert client.get("/lb/leaderboard/top/3/").json() == client.get("/lb/leaderboard/top/3").json()


def test_the_root_path_is_the_home_page(client: httpx.Client) -> None:
    answer = client.get("/lb", headers={"Accept": "text/html"})
    assert answer.has_redirect_location
    # It may contain another host and port than those the client uses.
    assert answer.headers["location"] == "/lb/"


@pytest.mark.parametrize("page", ["/lb/", "/lb/docs"])
def test_the_pages_and_everything_they_refer_to_are_served(client: httpx.Client, page: str) -> None:
    answer = client.get(page, headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    found = set(re.findall(r'\b(?:src|href|data-source)="([^"#][^"]*)"', answer.text))
    assert len(found) >= 5
    for address in found:
        assert client.get(address).status_code == 200, address
    assert {address.rpartition(".")[2] for address in found} >= {"css", "js", "svg"}


def test_the_servers_of_the_document_are_right(client: httpx.Client) -> None:
    document = client.get("/lb/openapi.json").json()
    (server,) = document["servers"]
    for path in ("/livez", "/readyz", "/leaderboard"):
        assert path in document["paths"]
        assert client.get(server["url"] + path).status_code == 200


def test_the_location_of_a_new_user_leads_to_it(before: Proxy, client: httpx.Client) -> None:
    name = f"new {before.port}"
    created = client.post("/lb/users", json={"username": name})
    assert created.status_code == 201
    assert client.get(created.headers["location"]).json()["username"] == name
    scored = client.post(f"{created.headers['location']}/score", json={"score": -5})
    assert scored.json()["score"] == -5


@pytest.mark.parametrize(
    ("path", "code"),
    [("/lb/nowhere", "not_found"), ("/lb/users/0", "invalid_parameter"), ("/lb/users/99", "user_not_found")],
)
def test_the_type_of_a_problem_leads_to_its_description(client: httpx.Client, path: str, code: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (CODES[code].status, PROBLEM)
    page, _, anchor = answer.json()["type"].partition("#")
    assert anchor == code
    assert f'id="{anchor}"' in client.get(page).text


def test_the_proxy_serves_no_other_path(client: httpx.Client) -> None:
    for path in ("/", "/lbx", "/lbx/livez", "/livez", "/users/1"):
        answer = client.get(path)
        assert "alive" not in answer.text
        assert answer.headers.get("content-type") != PROBLEM
        assert "ada" not in answer.text


def test_a_proxy_that_removes_the_prefix_may_normalise_the_path(before: Proxy, client: httpx.Client) -> None:
    """nginx decodes the path and merges double slashes; Caddy merges those after the prefix."""
    decoded = not before.keeps and before.kind == "nginx"
    assert client.get("/lb/users%2F1").status_code == (200 if decoded else 404)
    assert client.get("/lb//users/1").status_code == (404 if before.keeps else 200)


# Host and Origin


def create(proxy: Proxy, origin: str) -> tuple[int, str]:
    """Creates a user as a page of that origin would. Returns the status and the problem code."""
    with proxy.client() as client:
        answer = client.post("/lb/users", json={"username": f"by {origin}"}, headers={"Origin": origin})
    return answer.status_code, answer.json().get("code", "")


def test_only_the_own_page_may_write(before: Proxy) -> None:
    assert create(before, f"http://{before.authority}") == (201, "")
    for origin in ("https://evil.example", f"http://{HOST}", f"http://127.0.0.1:{before.port}", "null"):
        assert create(before, origin) == (403, "cross_origin_write")


HOST_LINE = "        proxy_set_header Host $http_host;\n"


def test_the_proxy_passes_the_host_on(api: ApiProcess, tmp_path: Path) -> None:
    """Only with nginx: its one server here accepts any host, and Caddy's only its own."""
    with proxy("nginx", True, api.settings.port, tmp_path) as found, found.client() as client:
        for host in ("evil.example", f"localhost:{found.port}", f"{HOST}.evil.example"):
            answer = client.get("/lb/users/1", headers={"Host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "misdirected_request")
        assert client.get("/lb/users/1", headers={"Host": HOST.upper()}).status_code == 200


def test_a_proxy_that_drops_the_port_breaks_writes_of_the_own_page(api: ApiProcess, tmp_path: Path) -> None:
    change = (HOST_LINE, HOST_LINE.replace("$http_host", "$host"))
    with proxy("nginx", True, api.settings.port, tmp_path, change) as found:
        assert create(found, f"http://{found.authority}") == (403, "cross_origin_write")
        # A browser omits the default port of the scheme.
        assert create(found, f"http://{HOST}") == (201, "")


def test_a_proxy_that_does_not_pass_the_host_on(
    api: ApiProcess, start: Callable[..., Caller], tmp_path: Path
) -> None:
    with proxy("nginx", True, api.settings.port, tmp_path, (HOST_LINE, "")) as found, found.client() as client:
        assert client.get("/lb/users/1").json()["code"] == "misdirected_request"
    any_host = start(root_path="/lb").api
    with (
        proxy("nginx", True, any_host.settings.port, tmp_path, (HOST_LINE, "")) as found,
        found.client() as client,
    ):
        assert client.get("/lb/users/1").status_code == 200
        for origin in (f"http://{found.authority}", f"http://{HOST}"):
            assert create(found, origin) == (403, "cross_origin_write")


# What the proxy passes on


@pytest.fixture(params=BOTH)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Proxy, list[tuple[object, ...]]]]:
    """A proxy in front of a server that records connection, path, Host and X-Forwarded-For of each request."""
    seen: list[tuple[object, ...]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(
                (
                    self.client_address,
                    self.path,
                    self.headers.get_all("Host"),
                    self.headers.get_all("X-Forwarded-For"),
                )
            )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    kind, keeps = request.param
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with proxy(kind, keeps, server.server_port, tmp_path) as found:
                seen.clear()
                yield found, seen
        finally:
            server.shutdown()
            thread.join()


def test_the_proxy_passes_path_host_and_address_on(recorded: tuple[Proxy, list[tuple[object, ...]]]) -> None:
    found, seen = recorded
    with found.client("127.0.0.2") as client:
        for _ in range(20):
            assert client.get("/lb/users/%61?x=%2F").status_code == 200
    connections = {request[0] for request in seen}
    assert len(seen) == 20
    assert len(connections) < 20, "connections are reused"
    prefix = "/lb" if found.keeps else ""
    for _, path, hosts, addresses in seen:
        assert path in {f"{prefix}/users/%61?x=%2F", f"{prefix}/users/a?x=%2F"}
        assert hosts == [found.authority]
        assert addresses == ["127.0.0.2"]


@pytest.mark.parametrize("which", BOTH)
def test_behind_the_proxy_each_address_has_its_own_limit(
    api: ApiProcess, start: Callable[..., Caller], which: tuple[str, bool], tmp_path: Path
) -> None:
    limited = start(root_path="/lb", rate_limit_per_address="2/hour", trusted_proxies="127.0.0.1").api
    with proxy(*which, limited.settings.port, tmp_path) as found:
        for address in ("127.0.0.2", "127.0.0.3"):
            with found.client(address) as client:
                statuses = [client.get("/lb/users/1").status_code for _ in range(3)]
                assert statuses == [200, 200, 429]
                # A header of the client changes nothing.
                assert client.get("/lb/users/1", headers={"X-Forwarded-For": "198.51.100.7"}).status_code == 429


# A browser


def refreshes(api: ApiProcess) -> int:
    """Returns how often the page has requested the top users."""
    text = api.client.get("/metrics").text
    counts = re.findall(
        r'^leaderboard_requests_total{.*"/leaderboard/top/{n}",status="(?:200|304)"} (\d+)', text, re.MULTILINE
    )
    return sum(map(int, counts))


@needs_chromium
def test_the_page_works_in_a_browser(api: ApiProcess, before: Proxy, tmp_path: Path) -> None:
    earlier = refreshes(api)
    rule = f"--host-resolver-rules=MAP {HOST} 127.0.0.1"
    html, console = shown(f"http://{before.authority}/lb/", tmp_path, 11_000, rule)
    assert console == []
    assert 'ada</bdi> <span class="id">id 1</span>' in html
    assert '<p class="notice" id="notice" role="status"></p>' in html
    assert refreshes(api) >= earlier + 2
    html, console = shown(f"http://{before.authority}/lb/docs", tmp_path, 5000, rule)
    assert console == []
    assert 'id="operations-default-get_top"' in html
