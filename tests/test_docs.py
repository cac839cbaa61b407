"""The documentation agrees with the code: settings, errors, calls, commands, metrics."""

import asyncio
import json
import re
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import msgspec
import pytest
import typer
from prometheus_client import Counter, Gauge, Histogram

from leaderboard import errors
from leaderboard.cli import cli, operations
from leaderboard.config import BadSetting, Settings, allowed_values, load
from leaderboard.http import access, bodies, hosts, problems, requests
from leaderboard.http.asgi import Message
from leaderboard.http.router import MethodNotAllowed, NoSuchPath
from leaderboard.http.routes import ROUTES
from leaderboard.metrics import Metrics, Tally
from tests.system import setting_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text("utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text("utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text("utf-8")
COMMANDS = (ROOT / "docs" / "cli.md").read_text("utf-8")


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yields the rows of each table without its head, as stripped cells."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        yield rows[2:]


def table(text: str, first_cell: str) -> list[list[str]]:
    """Returns the rows of the one table whose first column has this head."""
    (found,) = re.findall(rf"^\| {first_cell} \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    return next(tables(found))


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Settings


def allowed(name: str) -> str:
    """Returns what the error for a bad value says is allowed."""
    takes_empty = (
        "database_url",
        "db_sslcert",
        "db_sslkey",
        "db_sslrootcert",
        "redis_sslcert",
        "redis_sslkey",
        "redis_sslrootcert",
        "page_images",
        "allowed_hosts",
        "cors_origins",
        "root_path",
        "api_keys",
        "jwt_algorithms",
        "jwt_key",
        "rate_limit_per_key",
        "rate_limit_per_address",
    )
    takes_any_text = ("db_password", "redis_password", "redis_sentinel_password", "jwt_audience", "jwt_issuer")
    bad = "!" if name in {"redis_url", "trusted_proxies", *takes_empty} else " " if name in takes_any_text else ""
    with pytest.raises(BadSetting) as refusal:
        load(None, **{name: bad})
    return str(refusal.value).partition(": must be ")[2]


def default(name: str) -> str:
    value = setting_text(Settings.model_fields[name].default)
    return f"`{value}`" if value else "empty"


def test_every_setting_is_documented_as_it_is() -> None:
    expected = [
        [f"`{name.upper()}`", default(name), allowed(name), field.description]
        for name, field in Settings.model_fields.items()
    ]
    assert table(SETTINGS, "variable") == expected


def test_the_settings_of_the_readme_exist_with_those_defaults() -> None:
    for names, defaults, _ in table(README, "variable"):
        found = [default(name.lower()).strip("`") for name in code(names)]
        assert ", ".join(found) == defaults


# `.env.example` and `compose.yaml`

ENV_EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text("utf-8")
COMPOSE_AT_SCALE = (ROOT / "compose.scale.yaml").read_text("utf-8")
NOT_IN_A_CONTAINER = {"HOST"}
"""A container listens on all addresses. `BIND_ADDRESS` says on which the port is published."""


def commented_variables() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields each comment of `.env.example` with the names and values below it."""
    for comment, lines in re.findall(r"((?:^# .*\n)*)((?:^#[A-Z_]+=.*\n)+)", ENV_EXAMPLE, re.MULTILINE):
        yield comment, [tuple(line[1:].split("=", 1)) for line in lines.splitlines()]


def section(title: str) -> list[tuple[str, str]]:
    """Returns names and values below this line of `.env.example`, up to the next empty line."""
    (found,) = re.findall(rf"^# {re.escape(title)}$\n((?:.+\n)+)", ENV_EXAMPLE, re.MULTILINE)
    return [tuple(line[1:].split("=", 1)) for line in found.splitlines() if not line.startswith("# ")]


def test_the_example_of_an_environment_has_every_setting_once_with_its_default() -> None:
    found = [variable for _, variables in commented_variables() for variable in variables]
    only_for_compose = section("Only for `docker compose`")
    assert sorted(found) == sorted(re.findall(r"^#?(\w+)=(.*)$", ENV_EXAMPLE, re.MULTILINE)), "every line is read"
    expected = [(name.upper(), default(name).strip("`")) for name in Settings.model_fields]
    expected = [(name, "" if value == "empty" else value) for name, value in expected]
    assert sorted(found) == sorted([*expected, *only_for_compose])


def test_what_is_only_for_compose_is_what_only_compose_reads() -> None:
    read = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE + COMPOSE_AT_SCALE))
    settings = {name.upper() for name in Settings.model_fields}
    assert dict(section("Only for `docker compose`")) == {
        name: value for name, value in read.items() if name not in settings
    }
    assert {
        name for name, _ in section("Only for `leaderboard serve` and `leaderboard dev`")
    } == NOT_IN_A_CONTAINER


def test_the_bounds_in_the_example_of_an_environment_are_the_real_ones() -> None:
    checked = 0
    for comment, variables in commented_variables():
        bounds = {
            tuple(map(int, found[0]))
            for name, _ in variables
            if name.lower() in Settings.model_fields
            and (found := re.findall(r"from (\d+) to (\d+)$", allowed_values(name.lower())))
        }
        for least, most in re.findall(r"(\d+) to (\d+)", comment):
            assert (int(least), int(most)) in bounds, f"{least} to {most}: {variables}"
            checked += 1
    assert checked


def test_compose_passes_every_setting_on() -> None:
    (block,) = re.findall(r"^x-leaderboard:.*?^  environment:\n(.*?)^  \w", COMPOSE, re.MULTILINE | re.DOTALL)
    found = dict(re.findall(r"^    ([A-Z_]+):(?: (.*))?$", block, re.MULTILINE))
    assert sorted(found) == sorted(
        name.upper() for name in Settings.model_fields if name.upper() not in NOT_IN_A_CONTAINER
    )
    for name, value in found.items():
        # Without a default, or with the one that the other services share.
        assert value in {"", f"${{{name}:-{default(name.lower()).strip('`')}}}"}


# Problems


async def _no_body() -> Message:
    return {"type": "http.disconnect"}


async def _empty_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _endless_body() -> Message:
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never


async def _late_body() -> None:
    reading = asyncio.create_task(requests.read_json([(b"content-type", b"application/json")], _endless_body))
    await asyncio.sleep(0)
    reading.cancel()
    await reading


def _example(kind: problems.Kind) -> Exception:
    """Returns an exception that is rendered as a problem of this kind."""
    try:
        match kind.code:
            case "malformed_json":
                bodies.set_score(b'{"score": NaN}')
            case "invalid_field":
                bodies.create_user(b'{"username": " ", "score": "5"}')
            case "invalid_parameter":
                requests.positive("n", "0", 100_000)
            case "body_too_large":
                headers = [(b"content-type", b"application/json"), (b"content-length", b"20000")]
                asyncio.run(requests.read_json(headers, _no_body))
            case "request_timeout":
                asyncio.run(_late_body())
            case "unsupported_media_type":
                asyncio.run(requests.read_json([(b"content-type", b"text/plain")], _empty_body))
            case "unsupported_encoding":
                headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
                asyncio.run(requests.read_json(headers, _empty_body))
            case "client_gone":
                asyncio.run(requests.read_json([(b"content-type", b"application/json")], _no_body))
    except errors.LeaderboardError as error:
        return error
    return {
        "invalid_host": hosts.InvalidHost(),
        "misdirected_request": access.MisdirectedRequest(b"evil.example"),
        "unauthorized": access.Unauthorized("the header Authorization: Bearer is required, with a key for write"),
        "forbidden": access.Forbidden("the key reader may not POST /users"),
        "cross_origin_write": access.CrossOriginWrite(),
        "rate_limited": access.RateLimited("address", 1500),
        "user_not_found": errors.UserNotFound(1001),
        "board_not_found": errors.BoardNotFound("weekly"),
        "season_not_found": errors.SeasonNotFound("weekly", 7),
        "not_on_board": errors.NotOnBoard(1001, "weekly"),
        "board_in_use": errors.BoardInUse(
            "the board 'weekly' has entries, which depend on decimals; make another board, or delete this one"
        ),
        "username_taken": errors.UsernameTaken("ada"),
        "external_id_taken": errors.ExternalIdTaken("steam:7656"),
        "external_id_fixed": errors.ExternalIdFixed("the user has another external id, which cannot be changed"),
        "idempotency_key_reused": errors.IdempotencyKeyReused(
            "this idempotency key came with another request before"
        ),
        "idempotency_key_in_use": errors.IdempotencyKeyInUse(
            "another request with this idempotency key is under way"
        ),
        "too_many_idempotency_keys": errors.TooManyIdempotencyKeys(
            "the key game has as many idempotency keys as one caller may, 5000000; each is kept for 24 hours"
        ),
        "idempotency_keys_full": errors.IdempotencyKeysFull(
            "as many idempotency keys are kept as may be, 10000000; each is kept for 24 hours"
        ),
        "overloaded": errors.Overloaded("10000 requests are waiting in the queue for scores already"),
        "outcome_unknown": errors.OutcomeUnknown("PostgreSQL was lost before it confirmed the write"),
        "unavailable": errors.DatabaseUnavailable("PostgreSQL did not answer in time"),
        "not_found": NoSuchPath(),
        "method_not_allowed": MethodNotAllowed("GET, HEAD"),
        "internal_error": Exception("what exactly is not told"),
    }[kind.code]


def sections() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns by code the rest of its heading and its example."""
    found = re.findall(r"^## `(\w+)` (.*)\n((?:(?!^## ).*\n)+)", ERRORS, re.MULTILINE)
    result = {}
    for name, rest, body in found:
        assert "**What to do:**" in body, name
        (example,) = re.findall(r"```json\n(.*?)```", body, re.DOTALL)
        result[name] = (rest, json.loads(example))
    return result


def test_every_problem_is_documented_and_no_other() -> None:
    assert list(sections()) == [kind.code for kind in problems.KINDS]


@pytest.mark.parametrize("kind", problems.KINDS, ids=lambda kind: kind.code)
def test_the_example_of_a_problem_is_what_is_sent(kind: problems.Kind) -> None:
    heading, example = sections()[kind.code]
    assert heading == f"· {kind.status}"
    error = _example(kind)
    assert problems.kind_of(error) is kind
    assert example == json.loads(problems.response(error).body)


def test_every_error_of_the_domain_has_a_row() -> None:
    never_sent = {errors.SchemaOutdated, errors.DatabaseRefused, errors.CacheError}
    rows = [type_ for type_, _ in problems.TABLE]
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, errors.LeaderboardError) and not found.__subclasses__():
            assert issubclass(found, (*rows, *never_sent)), found


# Calls, commands, metrics


def test_the_calls_of_the_readme_are_those_of_the_route_table() -> None:
    found = set()
    rows = re.findall(r"^\| call \|.*\n(?:\|.*\n)+", README, re.MULTILINE)
    for cell, _ in (row for text in rows for row in next(tables(text))):
        method = ""
        for text in code(cell):
            if text.startswith("{"):
                continue
            method, path = text.split() if " " in text else (method, text)
            found.add((method, path))
    assert found == {(route.method, route.path) for route in ROUTES if route.documented}


def commands() -> dict[str, set[str]]:
    """Returns the options of each command. A group of commands has those of all its commands."""

    def options(command: Any) -> set[str]:
        own = {option for each in command.params for option in each.opts if option.startswith("--")}
        return own.union(*map(options, getattr(command, "commands", {}).values()))

    group: Any = typer.main.get_command(cli)
    return {name: options(command) for name, command in group.commands.items()}


def test_the_commands_of_the_readme_are_those_there_are() -> None:
    (block,) = re.findall(r"## The commands\n[^#]*?```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.partition("#") for line in block.splitlines()]
    assert {line[0].split()[1] for line in lines} == set(commands())
    for line, _, comment in lines:
        assert set(re.findall(r"--[a-z-]+", comment)) <= commands()[line.split()[1]]


def test_the_page_of_the_commands_has_each_with_its_help() -> None:
    group: Any = typer.main.get_command(cli)
    expected = set()
    for name, command in group.commands.items():
        for below, each in getattr(command, "commands", {"": command}).items():
            help_text = each.help.partition("\n\n")[0].replace("\n", " ")
            expected.add((f"`leaderboard {name} {below}".rstrip() + "`", help_text))
    found = [tuple(row) for row in next(tables(COMMANDS))]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_the_page_of_the_commands_has_every_member_of_a_status() -> None:
    def members(kind: Any, before: str = "") -> Iterator[str]:
        for each in msgspec.structs.fields(kind):
            inner = next((arg for arg in get_args(each.type) if arg in nested), None)
            if inner is None:
                yield f"`{before}{each.encode_name}`"
            else:
                yield from members(inner, f"{each.encode_name}.")

    nested = {operations.CacheSummary, operations.IndexSummary}
    assert [row[0] for row in table(COMMANDS, "member")] == list(members(operations.Summary))


def test_a_command_or_option_that_is_mentioned_exists() -> None:
    known = commands()
    options = {option for each in known.values() for option in each}
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for text in code(page.read_text("utf-8")):
            if named := re.match(r"leaderboard ([a-z]+)\b", text):
                assert named[1] in known, f"{page}: {text}"
                assert set(re.findall(r"--[a-z-]+", text)) <= known[named[1]], f"{page}: {text}"
    # In other pages an option alone may be another program's.
    assert {text for text in code(README) if text.startswith("--")} <= options


def test_every_metric_is_documented_as_it_is() -> None:
    expected = []
    metrics = Metrics()
    for metric in vars(metrics).values():
        if isinstance(metric, Tally):
            names: Sequence[str] = metric.labels
        elif isinstance(metric, Counter | Gauge | Histogram):
            names = metric._labelnames  # noqa: SLF001 - the library has no public name for them
        else:
            continue
        (family,) = metric.collect()
        name, kind, documentation = family.name, family.type, family.documentation
        labels = " ".join(f"`{label}`" for label in names)
        expected.append([f"`{name}{'_total' if kind == 'counter' else ''}`", kind, labels, documentation])
    assert len(expected) > 5
    assert table(METRICS, "metric") == expected


# The pages that are made when the site is built


def test_the_page_about_the_api_has_every_call_with_its_problems() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "site" / "http_api.py"))
    page = made["page"](made["document"]())
    found = dict(re.findall(r"^### ([A-Z]+ /\S*)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL))
    routes = {f"{route.method} {route.path}": route for route in ROUTES if route.documented}
    assert list(found) == sorted(routes, key=list(found).index)
    for name, text in found.items():
        assert set(re.findall(r"errors\.md#(\w+?)--", text)) == set(routes[name].problems), name
        (example,) = re.findall(r"```sh\n(curl .*)\n```", text)
        assert ("-d '" in example) == (routes[name].body is not None)
        for parameter in routes[name].parameters:
            assert f"| `{parameter.name}` | path |" in text
    links = set(re.findall(r"\(#(\w+)\)", page))
    assert links <= {title.lower() for title in re.findall(r"^### (\w+)$", page, re.MULTILINE)}


def test_the_examples_of_the_page_about_the_api_have_bodies_that_are_allowed() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "site" / "http_api.py"))
    document = made["document"]()
    for item in document["paths"].values():
        for operation in item.values():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                validator = jsonschema_rs.validator_for(schema | {"components": document["components"]})
                validator.validate(made["BODIES"][operation["operationId"]])
