"""The commands for operators do the same with the stores and by the API of a running service."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog

from leaderboard.cli import cli
from leaderboard.config import Settings
from leaderboard.credentials import new_key
from leaderboard.errors import LeaderboardError
from tests.fixtures import fresh_databases
from tests.system import PATIENCE_S, ApiProcess, environment, eventually, free_port, sql

Run = Callable[..., tuple[int, str, str]]
"""Runs a command in this process; returns its exit status, its output and its error."""

ADMIN, ADMIN_HASH = new_key()
READER, READER_HASH = new_key()
STRANGE = "[bold]\x1b[2J\x9b\u202e[/bold]:heart:é日😀"
SHOWN = r"[bold]\x1b[2J\x9b\u202e[/bold]:heart:é日😀"


@pytest.fixture(scope="module")
def service(template: Settings, redis_databases: deque[int]) -> Iterator[ApiProcess]:
    """A service with keys and the users `u1` to `u12`, the best first, whose ids are 1 to 12.

    The tests of this module change other users only.
    """
    keys = f"ops:read+write+admin:{ADMIN_HASH},reader:read:{READER_HASH}"
    with fresh_databases(template, redis_databases) as settings:
        sql(
            settings,
            "INSERT INTO users (user_name, total_score)"
            " SELECT 'u' || n, 9000000 - n FROM generate_series(1, 12) AS n ORDER BY n",
        )
        process = ApiProcess(settings.model_copy(update={"api_keys": type(settings.api_keys)(keys)}))
        process.client.headers["authorization"] = f"Bearer {ADMIN}"
        try:
            yield process.start()
        finally:
            process.kill()
            process.client.close()


@pytest.fixture
def run(
    service: ApiProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> Run:
    """Runs commands with the settings of the service."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(service.settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
        error, status = "", 0
        with monkeypatch.context() as patch, structlog.testing.capture_logs():
            for name, value in {"COLUMNS": "200", **variables}.items():
                patch.setenv(name, value)
            try:
                cli(arguments, prog_name="leaderboard")
            except LeaderboardError as raised:
                # `main` does the same, with its status 3.
                error, status = f"leaderboard: {raised}\n", 3
            except SystemExit as ended:
                status = int(ended.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err + error

    return run


@pytest.fixture(params=["stores", "service"])
def mode(request: pytest.FixtureRequest, service: ApiProcess) -> list[str]:
    """The options for one of the modes."""
    return [] if request.param == "stores" else ["--url", service.url, "--key", ADMIN]


@pytest.fixture
def answer(run: Run, mode: list[str]) -> Callable[..., Any]:
    """Runs a command with `--json`, and returns its answer."""

    def answer(*arguments: str) -> Any:
        status, output, error = run(*arguments, "--json", *mode)
        assert (status, error) == (0, "")
        assert output.count("\n") == 1
        return json.loads(output)

    return answer


@pytest.fixture
def shown(run: Run, mode: list[str]) -> Callable[..., list[list[str]]]:
    """Runs a command, and returns the words of each line of its table."""

    def shown(*arguments: str) -> list[list[str]]:
        status, output, error = run(*arguments, *mode)
        assert (status, error) == (0, "")
        return [line.split() for line in output.splitlines()]

    return shown


class Names:
    """New users and boards; each has a name of its own."""

    def __init__(self, service: ApiProcess) -> None:
        self.service = service
        self.count = 0

    def user(self, score: int = 0, external_id: str | None = None) -> tuple[int, str]:
        self.count += 1
        name = f"new {os.urandom(6).hex()}"
        members = {"username": name, "score": score, "externalId": external_id}
        made = self.service.client.post("/users", json={k: v for k, v in members.items() if v is not None})
        assert made.status_code == 201, made.text
        return int(made.json()["userId"]), name

    def board(self, **rules: object) -> str:
        name = f"b{os.urandom(6).hex()}"
        assert self.service.client.put(f"/boards/{name}", json=rules).status_code == 201
        return name


@pytest.fixture
def new(service: ApiProcess) -> Names:
    return Names(service)


# Reading


def test_top_is_the_answer_of_the_api(
    service: ApiProcess, answer: Callable[..., Any], shown: Callable[..., list[list[str]]], new: Names
) -> None:
    assert answer("top", "3") == service.client.get("/leaderboard/top/3").json()
    assert len(answer("top")["users"]) == 10
    assert shown("top", "2") == [
        ["rank", "user", "name", "score"],
        ["1", "1", "u1", "8999999"],
        ["2", "2", "u2", "8999998"],
    ]

    board = new.board(decimals=2, better="lower")
    user, name = new.user(external_id=f"id of {board}")
    service.client.post(f"/boards/{board}/users/{user}/score", json={"score": 12.5})
    service.client.post(f"/boards/{board}/seasons", json={"season": 1})
    assert answer("top", "--board", board) == {"users": []}
    ended = answer("top", "5", "--board", board, "--season", "previous")
    assert ended == service.client.get(f"/boards/{board}/leaderboard/top/5?season=1").json()
    assert [each["score"] for each in ended["users"]] == [12.5]
    heads, row = shown("top", "--board", board, "--season", "1")
    assert heads == ["rank", "user", "name", "score", "external", "id"]
    assert row == ["1", str(user), *name.split(), "12.50", "id", "of", board]


def test_show_finds_a_user_by_number_external_id_and_name(
    service: ApiProcess, answer: Callable[..., Any], shown: Callable[..., list[list[str]]], new: Names
) -> None:
    board = new.board()
    user, name = new.user(5, external_id=f"of {board}")
    service.client.post(f"/boards/{board}/users/{user}/score", json={"score": 7})
    account = service.client.get("/users", params={"username": name}).json()
    context = service.client.get(f"/leaderboard/user/{user}/context").json()
    expected = {"user": account, "context": context, "boards": [board, "default"]}
    for named in ((str(user),), (f"@of {board}",), ("--name", name)):
        assert answer("show", *named) == expected
    there = service.client.get(f"/boards/{board}/leaderboard/user/{user}/context").json()
    assert answer("show", str(user), "--board", board) == {**expected, "context": there}

    lines = shown("show", "6")
    assert ["rank", "6", "of", f"{context['total']:,}", "on", "the", "board", "default"] in lines
    assert [line[1] for line in lines[-11:]] == [str(each) for each in range(1, 12)]


def test_show_says_that_a_user_is_not_on_the_board(
    service: ApiProcess, run: Run, answer: Callable[..., Any], new: Names, mode: list[str]
) -> None:
    board = new.board()
    user, name = new.user()
    assert answer("show", str(user), "--board", board)["context"] is None
    assert f"not on the board {board}" in run("show", str(user), "--board", board, *mode)[1]

    service.client.patch(f"/users/{user}", json={"hidden": True})
    found = answer("show", "--name", name)
    assert (found["user"]["userId"], found["user"]["hidden"]) == (user, True)
    assert (found["context"], found["boards"]) == (None, [])
    assert "not on the board default, as it is hidden" in run("show", "--name", name, *mode)[1]
    # The API finds a hidden user by its name only.
    status, output, error = run("show", str(user), *mode)
    if mode:
        assert (status, output) == (3, "")
        assert "a hidden user is found with --name" in error
    else:
        assert (status, "hidden       yes" in output) == (0, True)


# Writing


def test_set_changes_a_score_that_every_process_shows_at_once(
    service: ApiProcess, answer: Callable[..., Any], shown: Callable[..., list[list[str]]], new: Names
) -> None:
    user, name = new.user(100)
    changed = answer("set", str(user), "-7")
    total = service.client.get("/leaderboard?limit=1").json()["total"]
    assert changed == {
        "userId": user,
        "username": name,
        "imageUrl": None,
        "score": -7,
        "previousScore": 100,
        "improved": False,
        "season": 1,
        "rank": total,
    }
    assert service.client.get(f"/users/{user}").json()["score"] == -7
    assert answer("set", "--name", name, "1e3")["score"] == 1000
    assert ["before", "1000"] in shown("set", "--name", name, "1001")
    assert service.client.get(f"/users/{user}").json()["score"] == 1001
    (logged,) = sql(service.settings, "SELECT count(*) FROM changes WHERE user_id = $1 AND new_key = 1001", user)
    assert logged[0] == 1


def test_set_follows_the_rules_of_a_board(
    answer: Callable[..., Any], run: Run, new: Names, mode: list[str]
) -> None:
    board = new.board(keeps="sum", decimals=2)
    user, _ = new.user(external_id=f"sums {board}")
    first = answer("set", f"@sums {board}", "2.5", "--increment", "--board", board)
    assert (first["score"], first["previousScore"], first["improved"], first["rank"]) == (2.5, None, True, 1)
    assert first["externalId"] == f"sums {board}"
    status, output, _ = run("set", str(user), "-0.25", "--increment", "--board", board, "--json", *mode)
    assert (status, '"score":2.25,"previousScore":2.50,' in output) == (0, True)


def test_hide_and_unhide_change_what_every_process_shows(
    service: ApiProcess, answer: Callable[..., Any], shown: Callable[..., list[list[str]]], new: Names
) -> None:
    user, name = new.user(10_000_000)

    def best() -> int:
        return int(service.client.get("/leaderboard/top/1").json()["users"][0]["userId"])

    assert best() == user
    hidden = answer("hide", str(user))
    assert hidden == service.client.get("/users", params={"username": name}).json()
    assert hidden["hidden"] is True
    assert best() == 1
    assert ["hidden", "no"] in shown("unhide", "--name", name)
    assert best() == user
    assert answer("set", str(user), "0")["previousScore"] == 10_000_000


# Errors


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (("top", "0"), 2, "n is '0', must be an integer from 1 to 100000"),
        (("top", "--board", "Laps"), 2, "the name of a board has capital letters"),
        (("top", "--board", "laps"), 3, "no board has the name 'laps'"),
        (("top", "--season", "x"), 2, "--season is 'x', must be an integer from 1 to 2147483647, or previous"),
        (("top", "--season", "2"), 3, "the board 'default' has no season 2"),
        (("show", "ada"), 2, "USER is 'ada', must be an integer from 1 to 2147483647, or @ and an external id;"),
        (("show", "@"), 2, "USER is '@', must be @ and an external id; this one is empty"),
        (("show", "--name", "a\nb"), 2, "the username contains U+000A"),
        (("show", "--name", "ada"), 3, "no user has the username 'ada'"),
        (("show", "404404"), 3, "no user has the id 404404"),
        (("show", "@nobody's"), 3, 'no user has the external id "nobody\'s"'),
        (("show", "1", "--board", "laps"), 3, "no board has the name 'laps'"),
        (("set", "1", "many"), 2, "SCORE is 'many', must be a number, such as 1500 or -2.5"),
        (("set", "1", "NaN"), 2, "SCORE is 'NaN', must be a number"),
        (("set", "1", "1.5"), 2, "score: must be an integer, not a number with a fraction"),
        (("set", "1", "9007199254740993"), 2, "score: 9007199254740993 is out of range"),
        (("set", "1", "1", "--increment"), 2, "increment: is refused, because the board 'default' keeps"),
        (("set", "404404", "1"), 3, "no user has the id 404404"),
        (("set", "--name", "ada", "1"), 3, "no user has the username 'ada'"),
        (("set", "1", "1", "--board", "laps"), 3, "no board has the name 'laps'"),
        (("hide", "404404"), 3, "no user has the id 404404"),
        (("unhide", "@x y"), 3, "no user has the external id 'x y'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, mode: list[str], arguments: tuple[str, ...], status: int, error: str
) -> None:
    found = run(*arguments, *mode)
    assert (found[0], found[1]) == (status, "")
    assert found[2].startswith(f"leaderboard: {error}"), found[2]
    assert found[2].count("\n") == 1


def test_a_service_refuses_without_the_right_key(run: Run, service: ApiProcess, new: Names) -> None:
    user, _ = new.user(5)
    there = ("--url", service.url)
    for key, refused in {"": "required", "wrong": "key", READER: "reader"}.items():
        for command in (("set", str(user), "6"), ("hide", str(user))):
            status, output, error = run(*command, *there, LEADERBOARD_KEY=key)
            assert (status, output) == (3, "")
            assert refused in error
            assert error.endswith("; --key or LEADERBOARD_KEY is the key to send\n")
    assert service.client.get(f"/users/{user}").json()["score"] == 5
    assert run("set", str(user), "6", *there, LEADERBOARD_KEY=ADMIN)[0] == 0


def test_a_service_or_a_database_that_does_not_answer_is_one_line(service: ApiProcess) -> None:
    """As a program, whose exit status is that of `main`."""
    url = f"http://127.0.0.1:{free_port()}"
    for options, variables in (([], {"DB_PORT": str(free_port())}), (["--url", url], {})):
        done = subprocess.run(
            [sys.executable, "-m", "leaderboard", "top", *options],
            env={**environment(service.settings), **variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        assert done.stderr.startswith(
            f"leaderboard: GET {url}/" if options else "leaderboard: PostgreSQL cannot be"
        )


@pytest.mark.parametrize(
    "options",
    [("--url", "ftp://x"), ("--url", "x"), ("--url", "http://x:y"), ("--url", "http://x", "--key", "a b")],
)
def test_a_url_or_key_that_cannot_be_right_is_one_line(run: Run, options: tuple[str, ...]) -> None:
    status, output, error = run("top", *options)
    assert (status, output, error.count("\n")) == (2, "", 1)
    assert error.startswith("leaderboard: --url, --key: ")


def test_without_the_client_the_error_says_how_to_install_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "leaderboard.cli.service", raising=False)
    monkeypatch.setitem(sys.modules, "leaderboard_client", None)
    status, output, error = run("top", "--url", "http://127.0.0.1:1")
    assert (status, output) == (3, "")
    assert "pip install ./clients/python" in error
    assert run("top", "1")[0] == 0


# What a terminal and a program get


def texts(value: Any) -> Iterator[str]:
    """Yields all texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def test_names_are_shown_exactly_and_cannot_change_the_terminal(
    service: ApiProcess, run: Run, mode: list[str]
) -> None:
    (row,) = sql(
        service.settings,
        "INSERT INTO users (user_name, image_url) VALUES ($1, $1) RETURNING user_id",
        STRANGE,
    )
    user = str(row["user_id"])
    eventually(lambda: service.client.get(f"/users/{user}").status_code == 200)
    try:
        for command in (
            ["show", user],
            ["set", user, "8000000"],
            ["hide", user],
            ["unhide", user],
            ["top", "100"],
        ):
            status, output, error = run(*command, *mode)
            assert (status, error) == (0, "")
            assert SHOWN in output
            assert [line for line in output.splitlines() if not line.isprintable()] == []
            status, output, _ = run(*command, "--json", *mode)
            assert status == 0
            assert output.removesuffix("\n").isprintable()
            assert STRANGE in texts(json.loads(output))
    finally:
        service.client.delete(f"/users/{user}")


def test_json_has_only_characters_of_the_encoding(service: ApiProcess) -> None:
    (row,) = sql(service.settings, "INSERT INTO users (user_name) VALUES ($1) RETURNING user_id", "é日😀")
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "hide", str(row["user_id"]), "--json"],
        env={**environment(service.settings), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert json.loads(done.stdout.decode("ascii"))["username"] == "é日😀"


# Status


def test_status_says_what_each_mode_knows(service: ApiProcess, run: Run) -> None:
    summaries = {}
    for options in ((), ("--url", service.url, "--key", ADMIN)):
        status, output, error = run("status", "--json", *options)
        assert (status, error) == (0, "")
        summary = summaries[bool(options)] = json.loads(output)
        assert summary["health"] == service.client.get("/readyz").json()
        assert summary["cache"]["users"] >= 12
        assert summary["rankIndex"].keys() == {"valid", "pending"}
        assert summary["notes"] == []
    stores, process = summaries[False], summaries[True]
    assert stores.keys() == process.keys()
    assert stores["source"] == "stores"
    assert stores["connections"] >= 1
    assert stores["logRows"] >= 0
    assert stores["cache"]["ageSeconds"] >= 0
    assert (stores["inFlight"], stores["queues"]) == (None, None)
    assert process["source"] == "service"
    assert process["inFlight"] >= 1
    assert process["queues"]["scores"] == 0
    assert (process["connections"], process["logRows"], process["cache"]["ageSeconds"]) == (None, None, None)

    # Without a terminal, a live view is one look.
    for more in ([], ["--url", service.url, "--key", ADMIN]):
        status, output, _ = run("status", "--watch", *more)
        assert (status, output.count("rank index")) == (0, 1)
    assert run("status", "--watch", "--json")[0] == 2


def test_status_of_a_service_without_the_metrics(service: ApiProcess, run: Run) -> None:
    for key in ("", READER):
        status, output, _ = run("status", "--json", "--url", service.url, LEADERBOARD_KEY=key)
        summary = json.loads(output)
        assert (status, summary["health"]["status"]) == (0, "ok")
        assert (summary["cache"], summary["queues"]) == (None, None)
        assert summary["notes"][0].startswith("no metrics: ")
    status, output, error = run("status", "--url", service.url, "--key", "wrong")
    assert (status, output, error.count("\n")) == (3, "", 1)


def test_status_shows_a_store_that_cannot_be_reached(service: ApiProcess, run: Run) -> None:
    nowhere = str(free_port())
    no_postgres = {"DB_PORT": nowhere}
    no_redis = {"REDIS_URL": f"redis://127.0.0.1:{nowhere}"}
    for variables, word, expected in (
        (no_redis, "degraded", 0),
        (no_postgres | no_redis, "unavailable", 1),
        # The cache answers reads, as long as no write is possible.
        (no_postgres, "degraded", 0),
    ):
        status, output, _ = run("status", "--json", **variables)
        summary = json.loads(output)
        assert (status, summary["health"]["status"]) == (expected, word)
        assert len(summary["notes"]) == len(variables)
        assert (summary["logRows"] is None) == ("DB_PORT" in variables)
        assert (summary["cache"] is None) == ("REDIS_URL" in variables)
    status, output, error = run("status", "--url", f"http://127.0.0.1:{nowhere}")
    assert (status, output, error.count("\n")) == (3, "", 1)


@pytest.mark.parametrize("with_url", [False, True])
def test_a_live_status_is_redrawn_until_it_is_interrupted(service: ApiProcess, with_url: bool) -> None:
    ours, theirs = pty.openpty()
    options = ["--url", service.url, "--key", ADMIN] if with_url else []
    process = subprocess.Popen(
        [sys.executable, "-m", "leaderboard", "status", "--watch", "--interval", "0.1", *options],
        env={**environment(service.settings), "TERM": "xterm", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while seen.count(b"rank index") < 3:
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        # What is left, so that the process does not wait for us.
        with suppress(OSError):
            while data := os.read(ours, 65536):
                seen += data
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    # The cursor goes up to where the table begins.
    assert b"\x1b[1A" in seen
    assert b"Traceback" not in seen


# Completion


def completed(run: Run, words: str, **variables: str) -> list[str]:
    status, output, error = run(
        _LEADERBOARD_COMPLETE="complete_bash",
        COMP_WORDS=f"leaderboard {words}",
        COMP_CWORD=str(len(words.split(" "))),
        **variables,
    )
    assert (status, error) == (0, "")
    return output.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(run: Run, shell: str) -> None:
    status, output, error = run(_LEADERBOARD_COMPLETE=f"source_{shell}")
    assert (status, error) == (0, "")
    assert f"_LEADERBOARD_COMPLETE=complete_{shell}" in output


def test_commands_and_names_of_boards_are_completed(
    service: ApiProcess, run: Run, mode: list[str], new: Names
) -> None:
    board = new.board()
    options = " ".join(mode)
    assert completed(run, "unh") == ["unhide"]
    assert completed(run, f"set {options} --board {board[:9]}".replace("  ", " ")) == [board]
    assert "default" in completed(run, f"top {options} --board ".replace("  ", " "))


def test_completion_prints_nothing_if_the_boards_cannot_be_read(run: Run) -> None:
    assert completed(run, "top --board ", DB_PORT=str(free_port())) == []
    assert completed(run, "top --board ", DB_PORT="none") == []
    assert completed(run, f"top --url http://127.0.0.1:{free_port()} --board ") == []
    assert completed(run, "export --board ", DB_PORT=str(free_port())) == []
