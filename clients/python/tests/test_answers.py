"""What the client returns and raises, with the real service."""

import pickle
from dataclasses import replace
from datetime import UTC
from decimal import Decimal
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import leaderboard_client
from clients.python.tests.conftest import NewName
from leaderboard.config import Settings
from leaderboard.http import problems
from leaderboard_client import (
    NO_RETRY,
    ApiError,
    AsyncLeaderboard,
    Board,
    BoardInUse,
    BoardNotFound,
    ConnectFailed,
    ExternalId,
    ExternalIdFixed,
    ExternalIdTaken,
    Forbidden,
    InvalidField,
    InvalidParameter,
    Leaderboard,
    LeaderboardError,
    NotFound,
    NotOnBoard,
    PathNotFound,
    RateLimited,
    RefusedScore,
    Retry,
    Rules,
    Schedule,
    ScoreChange,
    Season,
    SeasonNotFound,
    Unauthorized,
    UnexpectedAnswer,
    UsernameTaken,
    UserNotFound,
    errors,
    exact_json,
    model,
)
from tests.system import ApiProcess, free_port

READER, WRITER = "reader-key-of-more-than-16-characters", "writer-key-of-more-than-16-characters"


@pytest.fixture
def board(lb: Leaderboard, new_name: NewName) -> Board:
    """A new board with the default rules."""
    board = lb.board(new_name())
    board.put(Rules())
    return board


# Users


def test_a_user_is_created_found_changed_and_erased(lb: Leaderboard, new_name: NewName) -> None:
    name = new_name()
    user = lb.create_user(name, score=7, image_url="https://example.com/a.png")
    assert (user.username, user.score, user.image_url) == (name, 7, "https://example.com/a.png")
    found = lb.find_user(name)
    assert (found.user_id, found.score, found.hidden) == (user.user_id, 7, False)
    assert lb.update_user(user.user_id, hidden=True) == replace(found, hidden=True)
    assert lb.update_user(user.user_id, image_url=None, hidden=False) == replace(found, image_url=None)
    assert lb.update_user(user.user_id, username=f"{name}-new").username == f"{name}-new"
    lb.erase_user(user.user_id)
    with pytest.raises(UserNotFound):
        lb.erase_user(user.user_id)


def test_users_are_found_by_prefix_over_several_pages(lb: Leaderboard, new_name: NewName) -> None:
    prefix = new_name()
    names = [f"{prefix} {number}" for number in range(5)]
    for name in names:
        lb.create_user(name)
    assert [user.username for user in lb.find_users(prefix + " ", page_size=2)] == names
    assert [user.username for user in lb.find_users(prefix + " ", after=names[2], page_size=2)] == names[3:]


def test_users_are_named_by_external_ids(lb: Leaderboard, new_name: NewName) -> None:
    name, other = new_name(), new_name()
    ada, bob, new = ExternalId(f"a/b, c@%2F,,ä{name}"), ExternalId(f".{name}"), ExternalId(f"..{name}")
    user = lb.put_user(ada, name, image_url="https://example.com/a.png")
    assert (user.username, user.external_id) == (name, ada.value)
    assert lb.put_user(ada, name) == replace(user, image_url=None)
    assert lb.create_user(other, external_id=bob).external_id == bob.value
    assert lb.set_score(ada, 5).user_id == lb.standing(ada).user_id == lb.context(ada).user.user_id == user.user_id
    assert {each.external_id for each in lb.standings_of([ada, bob])} == {ada.value, bob.value}
    board = lb.board(new_name())
    board.put(Rules(keeps="sum"))
    with pytest.raises(UserNotFound):
        board.add_score(new, 1)
    assert board.add_score(new, 1, username=f"{name} new").username == f"{name} new"
    late = ExternalId(f"late {name}")
    results = board.add_scores([(ada, 1), (late, 2, f"{name} late"), (ExternalId(f"none {name}"), 3), (ada, 4)])
    assert [result.external_id for result in results] == [ada.value, late.value, f"none {name}", ada.value]
    assert isinstance(results[2], RefusedScore)
    assert (results[2].user_id, results[2].code) == (None, "user_not_found")
    assert board.standing(ada).score == 5
    assert list(lb.user_boards(late)) == sorted([board.name, "default"])
    with pytest.raises(ExternalIdTaken):
        lb.create_user(new_name(), external_id=ada)
    with pytest.raises(ExternalIdFixed):
        lb.update_user(ada, external_id=new)
    plain = lb.create_user(new_name()).user_id
    assert lb.update_user(plain, external_id=ExternalId(f"p {name}")).external_id == f"p {name}"
    board.remove(ada)
    lb.erase_user(ada)
    with pytest.raises(UserNotFound):
        lb.standing(ada)


# Scores


def test_a_board_is_read(lb: Leaderboard, board: Board, new_name: NewName) -> None:
    users = [lb.create_user(new_name()) for _ in range(8)]
    ids = [user.user_id for user in users]
    results = board.set_scores((user_id, 100 - at) for at, user_id in enumerate(ids))
    assert [result.user_id for result in results] == ids
    top = board.top(3)
    assert [(each.rank, each.user_id, each.score) for each in top] == [
        *((1, ids[0], 100), (2, ids[1], 99), (3, ids[2], 98))
    ]
    assert (len(top), top[0], list(top[1:]), top.age_s) == (3, board.standing(ids[0]), list(top)[1:], None)
    context = board.context(ids[1])
    assert (context.user, context.above, context.total) == (top[1], (top[0],), 8)
    assert [each.user_id for each in context.below] == ids[2:7]
    assert board.standings_of([ids[6], ids[0]]) == (top[0], board.standing(ids[6]))
    page = board.page(limit=3)
    assert (page.standings, page.total) == (tuple(top), 8)
    assert board.page(limit=3, after=page.next).standings[0].rank == 4
    assert [each.rank for each in board.page_around(5, limit=3).standings] == [4, 5, 6]
    assert [each.user_id for each in board.standings(page_size=3)] == ids
    assert list(lb.user_boards(ids[0], page_size=1)) == sorted(["default", board.name])
    board.remove(ids[0])
    with pytest.raises(NotOnBoard):
        board.standing(ids[0])


def test_default_answers_as_a_board_does(lb: Leaderboard, new_name: NewName) -> None:
    user = lb.create_user(new_name(), score=5)
    short = lb.set_score(user.user_id, 6)
    long = lb.board("default").set_score(user.user_id, 7)
    assert (short.previous_score, short.improved, short.season, short.rank) == (5, True, 1, None)
    assert (long.previous_score, long.improved, long.season, long.rank) == (6, True, 1, None)
    assert not lb.set_score(user.user_id, 1).improved
    ranked = lb.set_score(user.user_id, 2, rank=True)
    assert ranked.rank == lb.standing(user.user_id).rank == lb.standing(user.user_id, season=1).rank
    assert user.user_id in [each.user_id for each in lb.standings(page_size=2)]
    with pytest.raises(InvalidField, match="keeps the last score"):
        lb.add_score(user.user_id, 1)


def test_scores_are_exact(lb: Leaderboard, new_name: NewName) -> None:
    user_id = lb.create_user(new_name()).user_id
    assert lb.set_score(user_id, 2**53 - 1).score == 2**53 - 1
    laps = lb.board(new_name())
    laps.put(Rules(better="lower", keeps="best", decimals=3, highest=Decimal("9999999.999")))
    assert laps.info().rules.highest == Decimal("9999999.999")
    for sent, kept in ((62.345, "62.345"), (62, "62.345"), (Decimal("61.100"), "61.100"), (0.1, "0.100")):
        change = laps.set_score(user_id, sent)
        assert isinstance(change.score, Decimal)
        assert (str(change.score), change.improved) == ((kept, True) if sent != 62 else ("62.000", True))
    with pytest.raises(InvalidField) as refused:
        laps.set_score(user_id, 0.1 + 0.2)
    assert list(refused.value.fields) == ["score"]
    assert laps.standing(user_id).score == Decimal("0.100")


@pytest.mark.parametrize(
    "number", [10**400, -(10**30), Decimal("0.1000000000000000000000000000001"), Decimal("-1E+400")]
)
def test_a_number_of_any_size_is_the_same_after_json(number: int | Decimal) -> None:
    assert exact_json.decode(exact_json.encode({"n": [number]})) == {"n": [number]}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), Decimal("NaN"), Decimal("-Infinity")])
def test_what_is_no_number_in_json_is_not_sent(lb: Leaderboard, number: float | Decimal) -> None:
    with pytest.raises(ValueError, match="no number in JSON"):
        lb.set_score(1, number)


def test_many_scores_are_changed_in_order(lb: Leaderboard, new_name: NewName) -> None:
    points = lb.board(new_name())
    points.put(Rules(keeps="sum"))
    ada, bob = (lb.create_user(new_name()).user_id for _ in range(2))
    # A user twice, and one who does not exist.
    results = points.add_scores([(ada, 1), (bob, 2), (ada, 10), (2_000_000_000, 5), (bob, 20)])
    assert [result.user_id for result in results] == [ada, bob, ada, 2_000_000_000, bob]
    assert [result.score for result in results if isinstance(result, ScoreChange)] == [1, 2, 11, 22]
    refused = results[3]
    assert isinstance(refused, RefusedScore)
    assert refused.code == "user_not_found"
    assert points.add_scores({}) == []
    assert [each.score for each in points.top()] == [22, 11]


def test_more_than_a_thousand_scores_are_several_requests(service: ApiProcess, new_name: NewName) -> None:
    requests: list[httpx.Request] = []
    with httpx.Client(event_hooks={"request": [requests.append]}) as http:
        lb = Leaderboard(service.url, http=http)
        board = lb.board(new_name())
        board.put(Rules())
        user_id = lb.create_user(new_name()).user_id
        unknown = range(1_000_000_000, 1_000_002_100)
        requests.clear()
        results = board.set_scores({user_id: 1, **dict.fromkeys(unknown, 5)})
    assert [result.user_id for result in results] == [user_id, *unknown]
    assert [type(result) for result in results[:2]] == [ScoreChange, RefusedScore]
    assert [len(exact_json.decode(request.content)["scores"]) for request in requests] == [1000, 1000, 101]
    assert len({request.headers["idempotency-key"] for request in requests}) == 3


# Boards and seasons


def test_the_rules_of_a_board_are_set_and_read(lb: Leaderboard, new_name: NewName) -> None:
    rules = Rules(
        better="lower",
        keeps="best",
        ties="first",
        ranks="shared",
        decimals=2,
        lowest=Decimal("0.50"),
        highest=100,
        season=Schedule(every="week", timezone="Europe/Berlin"),
        keep_seasons=4,
        title="A title",
    )
    board = lb.board(new_name())
    info = board.put(rules)
    assert (info.name, info.rules) == (board.name, rules)
    assert info == board.info()
    season = info.current_season
    assert (season.number, season.ended_at, season.started_at.tzinfo) == (1, None, UTC)
    assert season.ends_at is not None
    changed = board.put(replace(rules, season=Schedule(cron="0 4 * * MON", timezone="UTC"), title=None))
    assert changed.rules == replace(rules, season=Schedule(cron="0 4 * * MON", timezone="UTC"), title=None)
    names = [each.name for each in lb.boards(page_size=1)]
    assert board.name in names
    assert names == sorted(names)
    board.delete()
    with pytest.raises(BoardNotFound):
        board.info()


def test_seasons_are_ended_listed_and_read(lb: Leaderboard, board: Board, new_name: NewName) -> None:
    ids = [lb.create_user(new_name()).user_id for _ in range(3)]
    board.set_scores(dict.fromkeys(ids, 5))
    with pytest.raises(SeasonNotFound):
        list(board.standings(season="previous"))
    ended = board.end_season(1)
    assert ended == board.end_season(1)
    assert ended.ended_at is not None
    board.set_score(ids[0], 1)
    listed = list(board.seasons(page_size=1))
    assert [each.number for each in listed] == [2, 1]
    assert listed[1] == ended
    assert list(board.seasons(before=2)) == [ended]
    assert len(board.top()) == 1
    archive = tuple(board.top(season=1))
    assert [each.user_id for each in archive] == ids
    assert tuple(board.top(season="previous")) == archive
    assert board.page(season=1).standings == board.page_around(1, season=1).standings == archive
    assert board.standings_of(ids, season=1) == archive
    assert board.standing(ids[1], season=1) == archive[1]
    assert board.context(ids[1], season=1).above == archive[:1]
    assert [each.user_id for each in board.standings(season="previous", page_size=2)] == ids
    assert isinstance(listed[0], Season)


def test_the_pages_of_one_iterator_are_of_one_season(lb: Leaderboard, board: Board, new_name: NewName) -> None:
    ids = [lb.create_user(new_name()).user_id for _ in range(3)]
    board.set_scores(dict.fromkeys(ids, 5))
    standings = board.standings(page_size=1)
    assert next(standings).user_id == ids[0]
    board.end_season(1)
    board.set_score(ids[0], 1)
    assert [each.user_id for each in standings] == ids[1:]


# The client for asyncio


@pytest.mark.anyio
async def test_the_same_calls_in_an_event_loop(service: ApiProcess, new_name: NewName) -> None:
    async with AsyncLeaderboard(service.url) as lb:
        board = lb.board(new_name())
        await board.put(Rules(keeps="sum"))
        users = [await lb.create_user(new_name()) for _ in range(3)]
        ids = [user.user_id for user in users]
        await board.add_scores(dict.fromkeys(ids, 5))
        assert (await board.add_score(ids[2], 1, rank=True)).rank == 1
        expected = [ids[2], ids[0], ids[1]]
        assert [each.user_id for each in await board.top()] == expected
        assert [each.user_id async for each in board.standings(page_size=2)] == expected
        assert [each.number async for each in board.seasons()] == [1]
        assert board.name in [each.name async for each in lb.boards()]
        assert [name async for name in lb.user_boards(ids[0])] == sorted(["default", board.name])
        assert users[0].username in [each.username async for each in lb.find_users("client-")]
        with pytest.raises(NotOnBoard):
            await lb.board(board.name).standing(2_000_000_000)


# The process


def test_the_process_answers_about_itself(lb: Leaderboard) -> None:
    assert lb.status() == lb.ready()
    assert lb.status().status == "ok"
    lb.alive()
    assert "leaderboard_requests_total" in lb.metrics()
    assert lb.openapi()["openapi"].startswith("3.1")


@pytest.mark.slow
def test_a_process_that_is_not_ready_says_so(settings: Settings) -> None:
    api = ApiProcess(settings.model_copy(update={"db_port": free_port(), "api_keys": SecretStr("")}))
    try:
        api.start("unavailable")
        with Leaderboard(api.url, retry=NO_RETRY) as lb:
            assert lb.ready().status == "unavailable"
            with pytest.raises(errors.Unavailable) as refused:
                lb.top()
            assert refused.value.retry_after_s == 1
            assert refused.value.temporary
    finally:
        api.kill()
        api.client.close()


# Errors


def test_every_code_of_the_service_has_a_class_of_its_status() -> None:
    assert errors.CODES.keys() == {kind.code for kind in problems.KINDS}
    families: dict[type[ApiError], set[int]] = {
        errors.InvalidInput: {422},
        errors.NotFound: {404},
        errors.Conflict: {409, 422},
        errors.AccessDenied: {401, 403},
        errors.RateLimited: {429},
        errors.Unavailable: {503},
        errors.UnreadableRequest: {400, 405, 408, 413, 415, 421},
        errors.InternalError: {500},
    }
    for kind in problems.KINDS:
        (family,) = [each for each in families if issubclass(errors.CODES[kind.code], each)]
        assert kind.status in families[family], kind
        # Otherwise the client would repeat what fails again, or not repeat what may succeed.
        says_later = any(name == b"retry-after" for name, _ in kind.headers)
        others = {"client_gone", "request_timeout", "idempotency_key_in_use"}
        assert errors.is_temporary(kind.code) == (says_later or kind.code in others), kind


def test_every_class_is_exported() -> None:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, LeaderboardError):
            assert getattr(leaderboard_client, name) is value
    assert set(leaderboard_client.__all__) <= set(vars(leaderboard_client))


def test_errors_have_classes_and_say_what_is_wrong(lb: Leaderboard, board: Board, new_name: NewName) -> None:
    name = new_name()
    user_id = lb.create_user(name).user_id
    with pytest.raises(UsernameTaken):
        lb.create_user(name)
    with pytest.raises(InvalidField) as field:
        lb.create_user(" ", image_url="x")
    assert set(field.value.fields) == {"username", "imageUrl"}
    with pytest.raises(InvalidParameter):
        lb.top(0)
    with pytest.raises(NotOnBoard):
        board.standing(user_id)
    with pytest.raises(SeasonNotFound):
        board.top(season=9)
    with pytest.raises(BoardInUse):
        lb.board("default").delete()
    with pytest.raises(NotFound) as missing:
        lb.board("no-such-board").top()
    error = missing.value
    assert isinstance(error, BoardNotFound)
    assert (error.status, error.code, error.attempts, error.temporary) == (404, "board_not_found", 1, False)
    assert error.request.url == f"{lb.board('x')._sender.url}/boards/no-such-board/leaderboard/top/10"  # noqa: SLF001
    assert "no-such-board" in error.detail
    assert error.detail in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.request, again.problem) == (
        *(BoardNotFound, str(error), error.request, error.problem),
    )


def test_a_key_decides_what_the_client_may_do_and_is_shown_nowhere(settings: Settings) -> None:
    keys = f"reader:read:{READER},writer:read+write:{WRITER}"
    api = ApiProcess(settings.model_copy(update={"api_keys": SecretStr(keys), "rate_limit_per_address": "1/hour"}))
    try:
        api.start()
        with Leaderboard(api.url, key=WRITER) as writer:
            user_id = writer.create_user("ada").user_id
            with pytest.raises(Forbidden) as forbidden:
                writer.erase_user(user_id)
            assert WRITER not in f"{writer!r}{forbidden.value!r}{vars(forbidden.value)}"
        with Leaderboard(api.url, key=READER) as reader, pytest.raises(Forbidden):
            reader.set_score(user_id, 5)
        unknown_key = "unknown-key-of-more-than-16-characters"
        with Leaderboard(api.url, key=unknown_key) as unknown, pytest.raises(Unauthorized):
            unknown.set_score(user_id, 5)
        # This address has no request left. Waiting for an hour is not tried.
        with Leaderboard(api.url) as anonymous, pytest.raises(RateLimited) as limited:
            anonymous.top()
        assert limited.value.attempts == 1
        assert limited.value.retry_after_s is not None
        assert limited.value.retry_after_s > 60
    finally:
        api.kill()
        api.client.close()


def test_a_wrong_address_is_an_error_of_its_own(service: ApiProcess) -> None:
    with Leaderboard(f"{service.url}/below", retry=NO_RETRY) as lb, pytest.raises(PathNotFound):
        lb.top()
    fast = Retry(attempts=3, first_s=0)
    with Leaderboard(f"http://127.0.0.1:{free_port()}", retry=fast) as lb, pytest.raises(ConnectFailed) as refused:
        lb.create_user("ada")
    assert (refused.value.attempts, refused.value.outcome_unknown) == (3, False)
    assert isinstance(refused.value.__cause__, httpx.ConnectError)
    assert type(pickle.loads(pickle.dumps(refused.value))) is ConnectFailed


@pytest.mark.parametrize("url", ["localhost:3000", "", "ftp://host", "http://", "http://h?x=1", "http://h#x"])
def test_a_url_that_cannot_be_right_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be like https://"):
        Leaderboard(url)


def test_credentials_that_cannot_be_right_are_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="give the key as `key`") as in_url:
        Leaderboard("http://user:secret@host")  # pragma: allowlist secret
    assert "secret" not in str(in_url.value)
    for key in ("", "secret key", "secret\n", "sécret"):
        with pytest.raises(ValueError, match="visible ASCII") as refused:
            Leaderboard("http://host", key=key)
        assert "cret" not in str(refused.value)


def test_members_of_newer_services_are_ignored_and_other_forms_are_an_error() -> None:
    members: dict[str, Any] = {"rank": 1, "userId": 2, "username": "a", "imageUrl": None, "score": 3}
    assert model.standing({**members, "new": [1]}) == model.standing(members)
    for content in (
        b"<html>",
        b"[]",
        b"{}",
        b'{"users": 5}',
        b'{"users": [5]}',
        b"\xff",
        b'{"users": NaN}',
        b"[" * 10_000,
    ):
        transport = httpx.MockTransport(lambda _, content=content: httpx.Response(200, content=content))
        with httpx.Client(transport=transport) as http, pytest.raises(UnexpectedAnswer) as error:
            Leaderboard("http://host", http=http).top()
        assert error.value.status == 200
        assert type(pickle.loads(pickle.dumps(error.value))) is UnexpectedAnswer
