"""Scores of boards over HTTP, one by one and many at once; `Caller` checks each answer with the document."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.http import board_bodies
from leaderboard.http.board_bodies import MAX_ITEMS, MAX_ITEMS_BYTES
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN
from tests.http.boards import named, new_board, new_user, refused_field
from tests.http.contract import Answer, Caller
from tests.http.ledger import refused
from tests.system import sql

GONE = 2_000_000_000
"""The id of no user."""


def set_score(caller: Caller, board: str, user: int, body: Any, query: str = "") -> Answer:
    return caller.post(f"{board}/users/{user}/score{query}", body)


# One score


def test_the_first_score_and_the_next(caller: Caller) -> None:
    user, board = new_user(caller), new_board(caller)
    first = set_score(caller, board, user, {"score": 5})
    name = caller.get(f"/users/{user}").json()["username"]
    common = {"userId": user, "username": name, "imageUrl": None, "season": 1}
    assert first.json() == common | {"score": 5, "previousScore": None, "improved": True}
    assert list(first.json())[:5] == ["userId", "username", "imageUrl", "score", "previousScore"]
    for score, before, improved in ((7, 5, True), (7, 7, False), (3, 7, False)):
        answer = set_score(caller, board, user, {"score": score}).json()
        assert answer == common | {"score": score, "previousScore": before, "improved": improved}
    standing = {"rank": 1, "userId": user, "username": name, "imageUrl": None, "score": 3}
    assert caller.get(f"{board}/users/{user}").json() == standing
    # The score on `default` is another one.
    assert caller.get(f"/users/{user}").json()["score"] == 0
    assert caller.get(f"/users/{user}/boards").json() == {
        "boards": [board.rpartition("/")[2], "default"],
        "next": None,
    }


def test_what_a_board_keeps(caller: Caller) -> None:
    user = new_user(caller)
    best, lowest = new_board(caller, keeps="best"), new_board(caller, keeps="best", better="lower")
    last, total = new_board(caller), new_board(caller, keeps="sum")
    for score, kept, improved in ((5, 5, True), (3, 5, False), (9, 9, True)):
        answer = set_score(caller, best, user, {"score": score}).json()
        assert (answer["score"], answer["improved"]) == (kept, improved)
    for score, kept, improved in ((5, 5, True), (9, 5, False), (3, 3, True)):
        answer = set_score(caller, lowest, user, {"score": score}).json()
        assert (answer["score"], answer["improved"]) == (kept, improved)
    for board in (last, total):
        for increment, kept in ((5, 5), (-7, -2), (0, -2)):
            assert set_score(caller, board, user, {"increment": increment}).json()["score"] == kept
    refused_field(set_score(caller, total, user, {"score": 1}), "score")
    refused_field(set_score(caller, best, user, {"increment": 1}), "increment")
    assert caller.get(f"{total}/users/{user}").json()["score"] == -2
    assert caller.get(f"{best}/users/{user}").json()["score"] == 9


def test_decimals_are_exact(caller: Caller) -> None:
    user, board = new_user(caller), new_board(caller, keeps="sum", decimals=2)
    for number, shown in (("0.1", "0.10"), ("0.2", "0.30"), ("1e1", "10.30"), ("-10.3", "0.00"), ("5", "5.00")):
        answer = caller.post(f"{board}/users/{user}/score", f'{{"increment": {number}}}')
        assert f'"score":{shown},' in answer.body.decode()
    for number in ("0.001", "1e-3", "0.0000000000000000000000000000001", "5.555"):
        answer = caller.post(f"{board}/users/{user}/score", f'{{"increment": {number}}}')
        assert "up to 2 decimals" in refused_field(answer, "increment")["increment"]
    refused_field(set_score(caller, new_board(caller), user, {"score": 5.5}), "score")
    assert b'"score":5.00}' in caller.get(f"{board}/users/{user}").body


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"score"}),
        ({"score": 1, "increment": 1}, {"increment"}),
        ({"score": None}, {"score"}),
        ({"score": "1"}, {"score"}),
        ({"score": True}, {"score"}),
        ({"score": [1]}, {"score"}),
        ({"increment": "1"}, {"increment"}),
        ({"score": 1, "rank": 1}, {"rank"}),
        ({"Score": 1}, {"Score", "score"}),
        ({"score": SCORE_MAX + 1}, {"score"}),
        ({"score": SCORE_MIN - 1}, {"score"}),
        ({"score": 10**300}, {"score"}),
    ],
    ids=named,
)
def test_a_score_that_is_refused(caller: Caller, body: dict[str, Any], fields: set[str]) -> None:
    user, board = new_user(caller), new_board(caller)
    refused_field(set_score(caller, board, user, body), *fields)
    refused_field(set_score(caller, "/boards/default", user, body), *fields)
    refused(caller.get(f"{board}/users/{user}"), "not_on_board")
    assert caller.get(f"/users/{user}").json()["score"] == 0


@pytest.mark.parametrize("body", ["", "5", "{", '{"score":1,"score":1}', '{"score":NaN}', '{"score":1}x'])
def test_a_body_that_is_refused(caller: Caller, body: str) -> None:
    user, board = new_user(caller), new_board(caller)
    for path in (f"{board}/users/{user}/score", f"{board}/scores"):
        assert caller.post(path, body).status in {400, 422}
        assert caller.send("POST", path, b"{}", [("Content-Type", "text/plain")]).code == "unsupported_media_type"
    refused(caller.get(f"{board}/users/{user}"), "not_on_board")


def test_an_increment_that_overflows_or_leaves_the_bounds_changes_nothing(caller: Caller) -> None:
    user = new_user(caller)
    wide, bounded = new_board(caller, keeps="sum"), new_board(caller, keeps="sum", lowest=0, highest=10)
    early = new_board(caller, ties="first")
    for board, most, over in ((wide, SCORE_MAX, 1), (bounded, 10, 1), (early, INT32_MAX, 1)):
        assert set_score(caller, board, user, {"increment": most}).json()["score"] == most
        refused_field(set_score(caller, board, user, {"increment": over}), "increment")
        assert caller.get(f"{board}/users/{user}").json()["score"] == most
    answer = set_score(caller, bounded, user, {"increment": -11})
    assert "at least 0 and at most 10" in refused_field(answer, "increment")["increment"]
    scores = new_board(caller, lowest=1, highest=2)
    for score in (0, 3):
        refused_field(set_score(caller, scores, user, {"score": score}), "score")


def test_a_user_that_is_not_there(caller: Caller) -> None:
    board = new_board(caller)
    for path in (board, "/boards/default"):
        refused(set_score(caller, path, GONE, {"score": 1}), "user_not_found")
        for bad in ("0", "01", "x", str(2**31)):
            refused(caller.post(f"{path}/users/{bad}/score", {"score": 1}), "invalid_parameter")
    refused(caller.get(f"{board}/users/{GONE}"), "not_on_board")
    refused(caller.get(f"/boards/default/users/{GONE}"), "user_not_found")
    refused(caller.call("DELETE", f"{board}/users/{GONE}"), "not_on_board")


def test_the_rank_with_the_score(caller: Caller) -> None:
    users, board = [new_user(caller) for _ in range(3)], new_board(caller)
    for user, score, rank in zip(users, (5, 9, 7), (1, 1, 2), strict=True):
        assert set_score(caller, board, user, {"score": score}, "?rank=true").json()["rank"] == rank
    assert "rank" not in set_score(caller, board, users[0], {"score": 5}).json()
    assert "rank" not in set_score(caller, board, users[0], {"score": 5}, "?rank=false").json()
    for query in ("?rank=yes", "?rank=", "?rank=1", "?rank=true&rank=true", "?season=1"):
        refused(set_score(caller, board, users[0], {"score": 8}, query), "invalid_parameter")
    assert caller.get(f"{board}/users/{users[0]}").json()["score"] == 5
    # The score of a hidden user is written, and it has no rank.
    assert caller.call("PATCH", f"/users/{users[0]}", {"hidden": True}).status == 200
    answer = set_score(caller, board, users[0], {"score": 6}, "?rank=true").json()
    assert (answer["score"], answer["rank"]) == (6, None)


def test_ranks_that_are_shared_and_the_first_of_equals(caller: Caller) -> None:
    users = [new_user(caller) for _ in range(4)]
    shared, first = new_board(caller, ranks="shared"), new_board(caller, ties="first")
    for user, score in zip(reversed(users), (1, 5, 5, 9), strict=True):
        for board in (shared, first):
            set_score(caller, board, user, {"score": score})
    ranks = [user["rank"] for user in caller.get(f"{shared}/leaderboard/top/9").json()["users"]]
    assert ranks == [1, 2, 2, 4]
    page = caller.get(f"{shared}/leaderboard?limit=1&around_rank=3").json()["users"]
    assert [user["rank"] for user in page] == [2]
    assert {user["score"] for user in caller.get(f"{first}/leaderboard/top/9").json()["users"]} == {1, 5, 9}


def test_removing_a_user_from_a_board(caller: Caller) -> None:
    user, board = new_user(caller), new_board(caller)
    set_score(caller, board, user, {"score": 5})
    assert caller.call("DELETE", f"{board}/users/{user}").status == 204
    for method in ("GET", "DELETE"):
        refused(caller.call(method, f"{board}/users/{user}"), "not_on_board")
    assert set_score(caller, board, user, {"score": 4}).json()["previousScore"] is None
    refused(caller.call("DELETE", f"/boards/default/users/{user}"), "board_in_use")
    assert caller.get(f"/users/{user}").status == 200


# Idempotency keys


def send_once(caller: Caller, path: str, body: str | dict[str, Any], key: str) -> Answer:
    data = body if isinstance(body, str) else json.dumps(body)
    return caller.send("POST", path, data.encode(), [("Idempotency-Key", key)])


def test_an_increment_with_a_key_is_added_once(caller: Caller) -> None:
    user, board = new_user(caller), new_board(caller, keeps="sum", decimals=2)
    path = f"{board}/users/{user}/score"
    first = send_once(caller, path, {"increment": 5}, "added-once")
    assert send_once(caller, path, {"increment": 7}, "added-later").json()["score"] == 12
    assert send_once(caller, path, {"increment": 5}, "added-once").body == first.body
    assert caller.get(f"{board}/users/{user}").json()["score"] == 12
    for other in ({"increment": 6}, {"score": 5}):
        refused(send_once(caller, path, other, "added-once"), "idempotency_key_reused")
    refused(
        send_once(caller, f"{new_board(caller)}/users/{user}/score", {"increment": 5}, "added-once"),
        "idempotency_key_reused",
    )
    # A refused request leaves its key free.
    refused_field(send_once(caller, path, {"increment": 0.001}, "corrected"), "increment")
    assert send_once(caller, path, {"increment": 1}, "corrected").json()["score"] == 13
    refused(send_once(caller, path, {"increment": 1}, "a blank"), "invalid_parameter")


def test_the_same_number_written_in_another_way_is_the_same_request(caller: Caller) -> None:
    user, board = new_user(caller), new_board(caller, keeps="sum", decimals=2)
    path = f"{board}/users/{user}/score"
    for key, spellings in (("half", ("0.5", "0.50", "5e-1", "0.5000", "50E-2")), ("ten", ("10", "1e1", "10.00"))):
        answers = {send_once(caller, path, f'{{"increment": {spelling}}}', key).body for spelling in spellings}
        assert len(answers) == 1
        refused(send_once(caller, path, {"increment": 0.51}, key), "idempotency_key_reused")
    assert caller.get(f"{board}/users/{user}").json()["score"] == 10.5
    # So small a number has too many decimals for any board. It is refused, and takes neither time nor memory.
    for tiny in ("1e-999999", "1e-999999999999999999", "1e-" + "9" * 5000):
        refused_field(send_once(caller, path, f'{{"increment": {tiny}}}', "tiny"), "increment")


def test_a_batch_with_a_key_is_done_once_item_by_item(caller: Caller) -> None:
    users, board = [new_user(caller) for _ in range(2)], new_board(caller, keeps="sum", highest=10)
    items = [{"userId": user, "increment": increment} for user, increment in zip(users, (4, 11), strict=True)]
    first = send_once(caller, f"{board}/scores", {"scores": items}, "batch").json()["results"]
    assert (first[0]["score"], first[1]["error"]["code"]) == (4, "invalid_field")
    # What was done is answered as before. What was refused is tried again.
    assert caller.call("PUT", board, {"keeps": "sum", "highest": 20}).status == 200
    again = send_once(caller, f"{board}/scores", {"scores": items}, "batch").json()["results"]
    assert (again[0], again[1]["score"]) == (first[0], 11)
    assert send_once(caller, f"{board}/scores", {"scores": items}, "batch").json()["results"] == again
    # Another increment with the key is another request, in the result of that item.
    changed = [items[0], items[1] | {"increment": 1}]
    results = send_once(caller, f"{board}/scores", {"scores": changed}, "batch").json()["results"]
    assert (results[0], results[1]["error"]["code"]) == (first[0], "idempotency_key_reused")
    assert [user["score"] for user in caller.get(f"{board}/leaderboard/top/3").json()["users"]] == [11, 4]


def test_on_default_a_key_is_that_of_the_call_without_the_name(caller: Caller) -> None:
    user = new_user(caller, 3)
    first = send_once(caller, f"/users/{user}/score", {"score": 5}, "default").json()
    named = send_once(caller, f"/boards/default/users/{user}/score", {"score": 5}, "default").json()
    assert named == first | {"improved": True, "season": 1}
    refused(
        send_once(caller, f"/boards/default/users/{user}/score", {"score": 6}, "default"), "idempotency_key_reused"
    )
    items = {"scores": [{"userId": user, "score": 8}]}
    once = send_once(caller, "/boards/default/scores", items, "batch-default").body
    assert set_score(caller, "/boards/default", user, {"score": 9}).json()["previousScore"] == 8
    assert send_once(caller, "/boards/default/scores", items, "batch-default").body == once
    assert caller.get(f"/users/{user}").json()["score"] == 9


# `default` by its name


def test_default_by_its_name_is_the_board_without_one(caller: Caller) -> None:
    user = new_user(caller, 3)
    done = set_score(caller, "/boards/default", user, {"score": 77}, "?rank=true").json()
    assert (done["score"], done["previousScore"], done["improved"], done["season"]) == (77, 3, True, 1)
    assert done["rank"] == caller.get(f"/users/{user}").json()["rank"]
    refused_field(set_score(caller, "/boards/default", user, {"increment": 1}), "increment")
    refused_field(set_score(caller, "/boards/default", user, {"score": 1.5}), "score")
    for path in (
        *("/leaderboard/top/3", f"/leaderboard/user/{user}/context", f"/leaderboard/user/{GONE}/context"),
        *("/leaderboard/top/0", "/leaderboard/user/0/context", "/leaderboard?limit=0"),
        *(
            "/leaderboard",
            "/leaderboard?limit=2",
            "/leaderboard?around_rank=2&limit=1",
            f"/leaderboard?users={user}",
        ),
        *(f"/users/{user}", f"/users/{GONE}", "/users/0"),
    ):
        plain = caller.get(path)
        for query in ("", "season=1"):
            join = "&" if "?" in path else "?"
            named = caller.get(f"/boards/default{path}{join if query else ''}{query}")
            assert (named.status, named.body) == (plain.status, plain.body)
        assert caller.send("HEAD", f"/boards/default{path}").status == plain.status
    refused(caller.get(f"/boards/default/users/{user}?season=2"), "season_not_found")


# Pages and friends


def test_pages_of_a_board(caller: Caller) -> None:
    users = [new_user(caller) for _ in range(5)]
    for rules in ({"better": "lower", "decimals": 3}, {"ties": "first"}, {}):
        board = new_board(caller, **rules)
        for user in users:
            set_score(caller, board, user, {"score": -(user % 3)})
        whole = caller.get(f"{board}/leaderboard").json()
        assert (whole["total"], whole["next"]) == (5, None)
        found, after = [], ""
        while after is not None:
            page = caller.get(f"{board}/leaderboard?limit=2{after and f'&after={after}'}").json()
            found += page["users"]
            after = page["next"]
        assert found == whole["users"]
        assert sorted(user["userId"] for user in found) == users


def test_the_standings_of_some_users(caller: Caller) -> None:
    users, board = [new_user(caller, score) for score in (1, 2, 3)], new_board(caller)
    for user in users[1:]:
        set_score(caller, board, user, {"score": -user})
    ids = f"{users[2]},{users[0]},{GONE},{users[1]},{users[2]}"
    found = caller.get(f"{board}/leaderboard?users={ids}")
    assert list(found.json()) == ["users"]
    assert [(user["rank"], user["userId"]) for user in found.json()["users"]] == [(1, users[1]), (2, users[2])]
    top = caller.get("/leaderboard/top/1000").json()["users"]
    expected = [user for user in top if user["userId"] in users]
    assert caller.get(f"/leaderboard?users={ids}").json() == {"users": expected}
    assert caller.get(f"{board}/leaderboard?users={GONE}").body == b'{"users":[]}'
    hundred = ",".join(map(str, range(1, 101)))
    assert caller.get(f"{board}/leaderboard?users={hundred}").status == 200
    for bad in ("", ",", "1,", "0", "1,x", "1,,2", "1, 2", "01", str(2**31), f"{hundred},101"):
        for path in ("", board):
            answer = caller.get(f"{path}/leaderboard?users={bad.replace(' ', '%20')}")
            refused(answer, "invalid_parameter")
            assert "up to 100 integers" in answer.json()["detail"]
    for other in ("limit=5", "after=AgAAAAAAAAAFAAAAAQ", "around_rank=1"):
        refused(caller.get(f"{board}/leaderboard?users=1&{other}"), "invalid_parameter")


# Many at once


def test_many_scores_have_one_result_each_in_order(caller: Caller) -> None:
    users, board = [new_user(caller) for _ in range(5)], new_board(caller, decimals=1, lowest=0)
    set_score(caller, board, users[1], {"score": 4})
    items: list[dict[str, float]] = [
        {"userId": users[4], "score": 1.5},
        {"userId": users[1], "increment": 2},
        {"userId": GONE, "score": 1},
        {"userId": users[0], "score": 1.25},
        {"userId": users[2], "score": -1},
        {"userId": users[3], "increment": 7.0},
    ]
    results = caller.post(f"{board}/scores", {"scores": items}).json()["results"]
    assert [result["userId"] for result in results] == [item["userId"] for item in items]
    shown = [(result.get("score"), result.get("error", {}).get("code")) for result in results]
    expected = [(1.5, None), (6, None), (None, "user_not_found"), (None, "invalid_field"), (None, "invalid_field")]
    assert shown == [*expected, (7, None)]
    assert results[1]["previousScore"] == 4
    assert "decimals" in results[3]["error"]["detail"]
    assert all(set(result) == {"userId", "error"} for result in results[2:5])
    assert all(list(result["error"]) == ["code", "detail"] for result in results[2:5])
    top = caller.get(f"{board}/leaderboard/top/9").json()["users"]
    assert [user["score"] for user in top] == [7, 6, 1.5]


def test_many_scores_on_default(caller: Caller) -> None:
    users = [new_user(caller) for _ in range(3)]
    items = [
        {"userId": users[0], "score": 5},
        {"userId": GONE, "score": 5},
        {"userId": users[1], "increment": 5},
        {"userId": users[2], "score": 1.5},
    ]
    results = caller.post("/boards/default/scores", {"scores": items}).json()["results"]
    assert (results[0]["score"], results[0]["previousScore"], results[0]["season"]) == (5, 0, 1)
    codes = [result["error"]["code"] for result in results[1:]]
    assert codes == ["user_not_found", "invalid_field", "invalid_field"]
    assert [caller.get(f"/users/{user}").json()["score"] for user in users] == [5, 0, 0]


def test_as_many_scores_as_are_allowed(caller: Caller, module_settings: Settings) -> None:
    rows = sql(
        module_settings,
        "INSERT INTO users (user_name) SELECT 'one of many ' || n FROM generate_series(1, $1::int) AS n"
        " RETURNING user_id",
        MAX_ITEMS + 1,
    )
    board = new_board(caller, keeps="sum", decimals=6)
    items = [{"userId": row[0], "increment": 1234567.123456} for row in rows]
    body = json.dumps({"scores": items[:MAX_ITEMS]}, indent=1).encode()
    assert 16 * 1024 < len(body) <= MAX_ITEMS_BYTES
    results = caller.post(f"{board}/scores", body).json()["results"]
    assert [result["score"] for result in results] == [1234567.123456] * MAX_ITEMS
    answer = caller.post(f"{board}/scores", {"scores": items})
    assert "1001 items" in refused_field(answer, "scores")["scores"]
    assert caller.get(f"{board}/leaderboard?limit=1").json()["total"] == MAX_ITEMS
    # This call alone takes so large a body.
    large = body.ljust(MAX_ITEMS_BYTES)
    assert caller.post(f"{board}/scores", large).status == 200
    refused(caller.post(f"{board}/scores", large + b" "), "body_too_large")
    refused(caller.post(f"{board}/users/1/score", b'{"increment":1}'.ljust(16 * 1024 + 1)), "body_too_large")


@pytest.mark.parametrize(
    ("items", "fields"),
    [
        ([], {"scores"}),
        ({}, {"scores"}),
        (None, {"scores"}),
        ([1], {"scores[0]"}),
        ([{"userId": 1, "score": 1}, None], {"scores[1]"}),
        ([{"score": 1}], {"scores[0].userId"}),
        ([{"userId": 0, "score": 1}], {"scores[0].userId"}),
        ([{"userId": "1", "score": 1}], {"scores[0].userId"}),
        ([{"userId": 2**31, "score": 1}], {"scores[0].userId"}),
        ([{"userId": 1}], {"scores[0].score"}),
        ([{"userId": 1, "score": 1, "increment": 1}], {"scores[0].increment"}),
        ([{"userId": 1, "score": "1"}], {"scores[0].score"}),
        ([{"userId": 1, "score": 1, "x": 1}], {"scores[0].x"}),
        (
            [{"userId": 1, "score": 1}, {"userId": 2, "score": 1}, {"userId": 1, "increment": 1}],
            {"scores[2].userId"},
        ),
        ([{"userId": 1, "score": 1}] * 3, {"scores[1].userId", "scores[2].userId"}),
    ],
    ids=named,
)
def test_a_bad_form_is_refused_before_anything_is_written(caller: Caller, items: Any, fields: set[str]) -> None:
    user, board = new_user(caller), new_board(caller)
    if isinstance(items, list):
        # The last item is a good one.
        items = [*items, {"userId": user, "score": 1}] if items else items
    refused_field(caller.post(f"{board}/scores", {"scores": items}), *fields)
    assert caller.get(f"{board}/leaderboard").json()["total"] == 0


def test_a_user_that_is_there_twice_is_named_with_both_places(caller: Caller) -> None:
    users, board = [new_user(caller) for _ in range(2)], new_board(caller)
    items = [{"userId": user, "score": 1} for user in (*users, users[1])]
    found = refused_field(caller.post(f"{board}/scores", {"scores": items}), "scores[2].userId")
    assert "scores[1]" in found["scores[2].userId"]
    assert caller.get(f"{board}/leaderboard").json()["total"] == 0


def test_many_faults_do_not_make_a_long_answer(caller: Caller) -> None:
    answer = caller.post(f"{new_board(caller)}/scores", {"scores": [{}] * 1000})
    assert answer.code == "invalid_field"
    assert len(answer.fields) < 50
    for body in ({}, {"scores": [{"userId": 1, "score": 1}], "x": 1}):
        refused(caller.post("/boards/default/scores", body), "invalid_field")


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,25})?([eE][+-]?[0-8])?", fullmatch=True),
    st.sampled_from(["score", "increment"]),
)
@example("9007199254740990.6", "score")
@example("90071992547409914e-1", "increment")
@example("0.99999999999999999999999", "score")
def test_a_number_is_read_exactly(text: str, field: str) -> None:
    change = board_bodies.change(f'{{"{field}": {text}}}'.encode())
    assert (change.number, change.adds) == (Decimal(text), field == "increment")
