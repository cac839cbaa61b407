"""The JavaScript client against the service, in Node.js and in a browser; and its types against the service's."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.http.routes import ROUTES
from tests.clients.site import FILES, Site
from tests.system import PATIENCE_S, ROOT, ApiProcess, eventually
from tests.web.chromium import CHROMIUM, needs_chromium

CLIENT = ROOT / "clients" / "javascript"
KEY = "a-key-of-more-than-16-characters"
NODE = shutil.which("node")
TYPES = CLIENT.joinpath("leaderboard.d.ts").read_text("utf-8")


def node_is_new_enough() -> bool:
    if NODE is None:
        return False
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.removeprefix("v").partition(".")[0]) >= 18


needs_node = pytest.mark.skipif(
    not node_is_new_enough(), reason="needs Node.js 18 or newer: apt-get install nodejs"
)


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[ApiProcess]:
    keys = SecretStr(f"test:read+write+admin:{KEY}")
    api = ApiProcess(module_settings.model_copy(update={"api_keys": keys}))
    try:
        yield api.start()
    finally:
        api.kill()
        api.client.close()


@pytest.fixture
def site(api: ApiProcess) -> Iterator[Site]:
    with Site(api.url, CLIENT) as site:
        yield site


@needs_node
def test_the_cases_pass_in_node_and_call_every_route(site: Site) -> None:
    done = subprocess.run(
        [str(NODE), "--test", "--test-reporter=tap", str(CLIENT / "test" / "node.test.js")],
        env={"PATH": os.environ["PATH"], "LEADERBOARD_URL": site.url, "LEADERBOARD_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# fail 0\n" in done.stdout
    assert "\n# pass 0\n" not in done.stdout
    # A literal path is preferred to one with parameters, as in the router.
    routes = sorted((route for route in ROUTES if route.documented), key=lambda route: route.path.count("{"))
    called = set()
    for method, path in site.requests:
        matching = (r for r in routes if r.method == method and re.fullmatch(_pattern(r.path), path))
        if (route := next(matching, None)) is not None:
            called.add((method, route.path))
    # `/docs` is a page for people.
    assert called == {(route.method, route.path) for route in routes} - {("GET", "/docs")}


def _pattern(path: str) -> str:
    return re.sub(r"\{\w+\}", "[^/]+", path)


@needs_node
def test_the_examples_of_the_readme_run(site: Site, tmp_path: Path) -> None:
    blocks = re.findall(
        r"^```js\n(.*?)^```", CLIENT.joinpath("README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    script = "\n".join(blocks).replace("leaderboard-client", str(CLIENT / "leaderboard.js"))
    program = tmp_path / "readme.mjs"
    program.write_text(
        script.replace("http://localhost:3000", site.url) + "\nconsole.log(score, rank, total, users, winners);"
    )
    done = subprocess.run(
        [str(NODE), str(program)], env={"LEADERBOARD_KEY": KEY}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert (first, second) == ("1 ada", "choose another name")


@needs_chromium
@pytest.mark.slow
def test_the_cases_pass_in_a_browser(site: Site, tmp_path: Path) -> None:
    # This name is no secure context, so crypto.randomUUID does not exist.
    page = f"http://board.example:{site.url.rpartition(':')[2]}{FILES}test/page.html?key={KEY}"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --no-proxy-server"
        " --disable-background-networking --disable-component-update --disable-sync --enable-logging=stderr"
        f" --user-data-dir={tmp_path}"
    )
    log = tmp_path / "log.txt"
    command = [str(CHROMIUM), *flags.split(), "--host-resolver-rules=MAP board.example 127.0.0.1", page]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as browser:
        try:
            with suppress(AssertionError):
                eventually(lambda: site.results or browser.poll() is not None)
        finally:
            browser.terminate()
    assert site.results is not None, log.read_text("utf-8", "replace")
    failed = {name: text for name, text in site.results["results"].items() if text != "passed"}
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
    assert site.results["results"]
    assert not site.results["isSecureContext"]
    assert not site.results["hasRandomUUID"]


# The types


def interfaces() -> dict[str, tuple[str, dict[str, bool]]]:
    """Returns by name what each interface of the types extends, and its fields: whether each must be there."""
    found = {}
    for name, base, block in re.findall(
        r"^export interface (\w+)(?:<[^>]*>)?(?: extends (\S+))? \{\n(.*?)^\}", TYPES, re.MULTILINE | re.DOTALL
    ):
        fields = re.findall(r"^  (\w+)(\??):", block, re.MULTILINE)
        found[name] = (base, {field: not optional for field, optional in fields})
    return found


def fields_of(name: str) -> dict[str, bool]:
    base, fields = interfaces()[name]
    return {**(fields_of(base) if base else {}), **fields}


OTHER_NAMES = {
    "BoardStanding": "Standing",
    "BoardContext": "Context",
    "BoardTop": "Top",
    "BoardPage": "PageAnswer",
    "CreateUser": "NewUser",
    "UpdateUser": "UserChanges",
}
"""The types of structs whose name is another one in the client."""
NOT_TYPES = {
    *("Problem", "SetScore", "ChangeEntry", "ChangeEntries", "EndSeason"),  # arguments, and a class
    *("ChangeOneOfMany", "EntryResult"),  # unions
}


def test_the_types_have_the_fields_of_the_service(api: ApiProcess) -> None:
    schemas = api.client.get("/openapi.json").json()["components"]["schemas"]
    for name, schema in schemas.items():
        if name in NOT_TYPES:
            continue
        expected = {field: field in schema.get("required", ()) for field in schema["properties"]}
        if name in {"PageAnswer", "BoardPage"}:
            # `users` alone is the answer of another call of the client.
            expected |= {"total": True, "next": True}
        assert fields_of(OTHER_NAMES.get(name, name)) == expected, name


@needs_node
def test_the_types_have_the_methods_of_the_module() -> None:
    script = f"""
        import {{ Leaderboard, LeaderboardError }} from {json.dumps(str(CLIENT / "leaderboard.js"))};
        const own = (type) => Object.getOwnPropertyNames(type.prototype).sort();
        const lb = new Leaderboard("http://127.0.0.1");
        const list = Object.getPrototypeOf(lb.boards());
        console.log(JSON.stringify({{
            BoardReads: own(Object.getPrototypeOf(Leaderboard)),
            Leaderboard: own(Leaderboard),
            Board: own(lb.board("x").constructor),
            List: own(list.constructor),
            LeaderboardError: Object.keys(new LeaderboardError({{}})).sort(),
        }}));
    """
    done = subprocess.run(
        [str(NODE), "--input-type=module", "-e", script], capture_output=True, text=True, check=True
    )
    for name, members in json.loads(done.stdout).items():
        head = rf"^[a-z ]*(?:class|interface) {name}\b[^\n]*\{{\n"
        (block,) = re.findall(rf"{head}(.*?)^\}}", TYPES, re.MULTILINE | re.DOTALL)
        typed = re.findall(r"^  (?:readonly |private )?(\w+)[(:]", block, re.MULTILINE)
        of_every_error = {"name", "constructor"}
        assert set(members) - of_every_error == set(typed) - of_every_error, name


def test_the_package_is_of_this_version() -> None:
    package = json.loads(CLIENT.joinpath("package.json").read_text("utf-8"))
    pyproject = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text("utf-8"))
    assert package["version"] == pyproject["project"]["version"]
    assert not package.get("dependencies")
    assert all(CLIENT.joinpath(name).is_file() for name in package["files"])
