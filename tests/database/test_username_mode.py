"""Changing how usernames are compared: twins, users who come meanwhile, and processes with the other setting."""
# ruff: noqa: RUF001 - the tests use letters that look like others

import asyncio
import json
import signal
import uuid
from collections.abc import Callable, Iterator

import asyncpg
import pytest

from leaderboard import app
from leaderboard.app import database_from
from leaderboard.cli import main
from leaderboard.config import Settings
from leaderboard.database import username_mode
from leaderboard.database.users import NewUser
from leaderboard.database.writing import NotWritten
from leaderboard.errors import LockedOut, UsernamesDiffer, UsernameTaken
from leaderboard.usernames import Usernames, name_key
from tests.system import connect, environment, sql

pytestmark = pytest.mark.anyio


def caseless(settings: Settings) -> Settings:
    return settings.model_copy(update={"usernames": "caseless"})


async def change(settings: Settings, usernames: Usernames) -> username_mode.Twins:
    async with database_from(settings).changing_usernames() as switch:
        return await switch.change(usernames)


def users(settings: Settings) -> dict[str, str | None]:
    """Returns the keys by name."""
    return {row["user_name"]: row["name_key"] for row in sql(settings, "SELECT user_name, name_key FROM users")}


def in_mode(settings: Settings) -> str:
    return str(sql(settings, "SELECT mode FROM username_mode")[0]["mode"])


def insert(settings: Settings, *names: str) -> None:
    sql(settings, "INSERT INTO users (user_name) SELECT unnest($1::text[])", list(names))


async def test_every_user_gets_a_key_and_back_none_has_one(
    settings: Settings, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(username_mode, "_BATCH", 7)
    monkeypatch.setattr(username_mode, "_FEW", 2)
    names = [f"User {n}" for n in range(50)] + ["Ｂｏｂ", "Zoë  Ann", "👩\u200d🚀"]
    insert(settings, *names)
    before = await db.fetchval("SELECT count(*) FROM changes")
    assert (await change(settings, "caseless")).in_all == 0
    assert users(settings) == {name: name_key(name) for name in names}
    assert in_mode(settings) == "caseless"
    # No view has anything to do.
    assert await db.fetchval("SELECT count(*) FROM changes") == before
    with pytest.raises(asyncpg.CheckViolationError):
        insert(settings, "by hand")
    assert (await change(settings, "exact")).in_all == 0
    assert users(settings) == dict.fromkeys(names)
    insert(settings, "bob", "BOB")
    assert in_mode(settings) == "exact"


async def test_with_twins_nothing_is_changed(settings: Settings) -> None:
    insert(settings, "Bob", "Carl", "bob", "ANN", "Ｂｏｂ", "ann", "Dave")
    sql(settings, "UPDATE users SET hidden = true, total_score = 12 WHERE user_name = 'bob'")
    twins = await change(settings, "caseless")
    assert twins.in_all == 2
    found = {key: [(t.user_name, t.score, t.hidden) for t in group] for key, group in twins.groups.items()}
    assert found == {
        "ann": [("ANN", 0, False), ("ann", 0, False)],
        "bob": [("Bob", 0, False), ("bob", 12, True), ("Ｂｏｂ", 0, False)],
    }
    assert set(users(settings).values()) == {None}
    assert in_mode(settings) == "exact"
    await database_from(settings).check_schema()


class WhileKeysAreSet:
    """Calls `interfere` once, between reading users to give them keys and doing so."""

    def __init__(self, interfere: Callable[[], None]) -> None:
        self._interfere = interfere
        self._called: set[str] = set()
        self._done = False

    def __call__(self, name: str) -> str:
        # The first call for a name is made while twins are looked for.
        if name in self._called and not self._done:
            self._done = True
            self._interfere()
        self._called.add(name)
        return name_key(name)


async def test_users_who_come_or_are_renamed_meanwhile_get_keys_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(settings, "Ann", "Bob", "Carl")

    def interfere() -> None:
        insert(settings, "NEW")
        # As a process does that still runs with `exact`.
        sql(settings, "UPDATE users SET user_name = 'Robert', name_key = NULL WHERE user_name = 'Bob'")

    monkeypatch.setattr(username_mode, "name_key", WhileKeysAreSet(interfere))
    assert (await change(settings, "caseless")).in_all == 0
    assert users(settings) == {"Ann": "ann", "Robert": "robert", "Carl": "carl", "NEW": "new"}


async def test_a_twin_who_comes_meanwhile_stops_the_change(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(settings, "Ann", "Bob")
    monkeypatch.setattr(username_mode, "name_key", WhileKeysAreSet(lambda: insert(settings, "ANN")))
    twins = await change(settings, "caseless")
    assert [t.user_name for t in twins.groups["ann"]] == ["Ann", "ANN"]
    assert users(settings) == {"Ann": None, "ANN": None, "Bob": None}
    assert in_mode(settings) == "exact"
    insert(settings, "bob")


async def test_only_one_process_changes_it_at_a_time(settings: Settings) -> None:
    insert(settings, "Ann")
    async with database_from(settings).changing_usernames() as switch:
        await switch.change("caseless")
        with pytest.raises(LockedOut):
            await change(settings, "exact")
    await change(settings, "exact")
    assert in_mode(settings) == "exact"


async def test_a_process_with_the_other_setting_cannot_write_a_name(settings: Settings) -> None:
    insert(settings, "Ann")
    running, late = app.App(settings), app.App(caseless(settings))
    async with running.running(), late.running():
        # As one that started while PostgreSQL was away.
        with pytest.raises(UsernamesDiffer):
            await late.service.writes.create_user("Carl", None, 0)
        with pytest.raises(UsernamesDiffer):
            await late.service.users.update(1, user_name="Carl")
        await change(settings, "caseless")
        with pytest.raises(UsernamesDiffer):
            await running.service.writes.create_user("ANN", None, 0)
        with pytest.raises(UsernamesDiffer):
            await running.service.users.update(1, user_name="Anna")
        assert (await running.service.writes.set_score(1, 5)).total_score == 5
        with pytest.raises(UsernameTaken):
            await late.service.writes.create_user("ANN", None, 0)
    assert users(settings) == {"Ann": "ann"}


async def test_nothing_starts_with_the_other_setting(settings: Settings) -> None:
    insert(settings, "Ann")
    other = caseless(settings)
    with pytest.raises(UsernamesDiffer, match=r"USERNAMES=exact.*`leaderboard usernames caseless`"):
        await database_from(other).check_schema()
    with pytest.raises(UsernamesDiffer):
        await database_from(other).migrate(lambda _line: None)
    await change(settings, "caseless")
    await database_from(other).check_schema()
    assert await database_from(other).migrate(lambda _line: None) == 0
    with pytest.raises(UsernamesDiffer, match=r"USERNAMES=caseless.*`leaderboard usernames exact`"):
        await database_from(settings).check_schema()


@pytest.fixture
def empty(template: Settings) -> Iterator[Settings]:
    """The settings for an empty database, without a schema."""
    admin = template.model_copy(update={"db_name": "postgres"})
    fresh = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {fresh.db_name}")
    yield fresh
    sql(admin, f"DROP DATABASE {fresh.db_name} WITH (FORCE)")


async def test_a_database_without_users_takes_over_the_setting(empty: Settings) -> None:
    for settings in (caseless(empty), empty, caseless(empty)):
        await database_from(settings).migrate(lambda _line: None)
        await database_from(settings).check_schema()
    database = database_from(caseless(empty))
    await database.open()
    try:
        created = await database.users.create([NewUser("Ann", None, 5), NewUser("ANN", None, 6)])
    finally:
        await database.close()
    assert created.results[1] is NotWritten.NAME_TAKEN
    with pytest.raises(UsernamesDiffer):
        await database_from(empty).migrate(lambda _line: None)


async def test_two_processes_create_bob_at_once(settings: Settings) -> None:
    """One of them gets the name. Batches that have names in common, in another order, do not deadlock."""
    await change(settings, "caseless")
    first, second = database_from(caseless(settings)), database_from(caseless(settings))
    await first.open()
    await second.open()
    try:
        for n in range(20):
            upper = [NewUser(f"{name} {n}", None, 0) for name in ("Bob", "Carl", "Dora", "Eve")]
            lower = [NewUser(f"{name} {n}", None, 0) for name in ("EVE", "dora", "CARL", "bob")]
            results = await asyncio.gather(first.users.create(upper), second.users.create(lower))
            taken = [each for created in results for each in created.results if each is NotWritten.NAME_TAKEN]
            assert len(taken) == 4
    finally:
        await first.close()
        await second.close()
    assert len(users(settings)) == 80


async def test_a_name_that_is_being_created_is_waited_for(settings: Settings) -> None:
    await change(settings, "caseless")
    other = await connect(settings)
    database = database_from(caseless(settings))
    await database.open()
    try:
        async with other.transaction():
            await other.execute("INSERT INTO users (user_name, name_key) VALUES ('Bob', 'bob')")
            creating = asyncio.create_task(database.users.create([NewUser("BOB", None, 0)]))
            done, _ = await asyncio.wait([creating], timeout=0.05)
            assert not done
        assert (await creating).results == [NotWritten.NAME_TAKEN]
    finally:
        await database.close()
        await other.close()


# The command


def command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Runs `leaderboard usernames` in this process; returns its exit status and what it printed."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["leaderboard", "usernames", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_the_command_lists_twins_and_changes_the_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    insert(settings, "Bob", "bob", "Ann", "ann", "Carl")
    for arguments in (["caseless", "--dry-run"], ["caseless"]):
        status, out, _ = command(settings, monkeypatch, capsys, *arguments)
        assert status == 1
        assert "'Bob' (id 1, score 0), 'bob' (id 2, score 0)" in out
        assert "nothing was changed" in out
    status, out, _ = command(settings, monkeypatch, capsys, "caseless", "--limit", "1")
    assert "Ann" in out
    assert "Bob" not in out
    assert "and 1 more" in out
    status, out, _ = command(settings, monkeypatch, capsys, "caseless", "--json")
    assert status == 1
    found = json.loads(out)
    assert (found["usernames"], found["namesWithTwins"]) == ("exact", 2)
    assert [[user["username"] for user in group] for group in found["twins"]] == [["Ann", "ann"], ["Bob", "bob"]]
    sql(settings, "DELETE FROM users WHERE user_name IN ('ann', 'bob')")
    status, out, _ = command(settings, monkeypatch, capsys, "caseless", "--dry-run")
    assert (status, in_mode(settings)) == (0, "exact")
    status, out, _ = command(settings, monkeypatch, capsys, "caseless")
    assert (status, in_mode(settings)) == (0, "caseless")
    assert "USERNAMES=caseless" in out
    assert command(settings, monkeypatch, capsys, "caseless")[0] == 0
    status, out, _ = command(caseless(settings), monkeypatch, capsys, "exact", "--json")
    assert (status, json.loads(out)["usernames"]) == (0, "exact")
    assert command(settings, monkeypatch, capsys, "folded")[0] == 2
