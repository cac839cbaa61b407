"""Compares every read with a small model of the boards, after any sequence of changes of any kind.

Hypothesis generates the sequences of steps and shortens one that fails. All run on one API process.
"""

import csv
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import ClassVar, Literal

import httpx
from hypothesis import HealthCheck, Phase
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from leaderboard import app, importing
from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.config import Settings
from leaderboard.errors import InvalidInput
from leaderboard.importing import OnConflict
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN
from tests.consistency.model import BoardModel, Model
from tests.system import (
    PATIENCE_S,
    SMALL_BUCKETS,
    THOROUGH,
    ApiProcess,
    Cursor,
    Question,
    comes_to_show,
    eventually,
    in_thread,
    redis,
    sql,
)

SIZE = 10
KEPT = 20
"""The maximum number of users in a cache of that size."""
WHOLE_BOARD = Question("top", 5000)
BOARDS: dict[str, dict[str, str]] = {
    "last": {},
    "times": {"keeps": "best", "better": "lower", "ranks": "shared"},
    "sums": {"keeps": "sum"},
}
MOST_SEASONS = 4
UNKNOWN = INT32_MAX

# Few different scores, so that most users are tied with others, and both ends of the range.
scores = st.integers(-3, 3) | st.sampled_from([SCORE_MIN, SCORE_MIN + 1, SCORE_MAX - 1, SCORE_MAX])
names = st.integers(0, 79).map("name {}".format)
numbers = st.integers(0, 99)
boards = st.sampled_from(list(BOARDS))
limits = st.integers(1, 2 * KEPT)
questions = (
    st.none()
    | st.just(WHOLE_BOARD)
    | st.builds(Question, st.just("top"), limits)
    | st.builds(Question, st.just("around"), st.integers(1, 3 * KEPT), limits)
    | st.builds(Question, st.just("page"), limit=limits)
)
"""The read that is repeated until it shows a change made by SQL. None: send a write that fails instead."""


class Machine(RuleBasedStateMachine):
    """One sequence of steps. A subclass sets the process and its settings."""

    api: ClassVar[ApiProcess]
    settings: ClassVar[Settings]
    from_cache: ClassVar[float] = 0
    from_database: ClassVar[float] = 0
    index_updates: ClassVar[float] = 0
    season_loads: ClassVar[float] = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.redis = redis(self.settings)
        self.steps = 0
        self.damaged_at = 0
        self.starts = 0
        self.cursor: Cursor | None = None
        self.cursors: dict[str, Cursor | None] = {}

    def teardown(self) -> None:
        self.redis.close()

    # Through the API: every later read shows an acknowledged write

    @rule(wanted=st.lists(st.tuples(names, scores), min_size=1, max_size=4))
    def create(self, wanted: list[tuple[str, int]]) -> None:
        for name, score in wanted:
            self._create(name, score)

    def _create(self, name: str, score: int) -> None:
        taken = name in (name for name, _ in self.model.users.values())
        response = self.api.create(name, score)
        assert response.status_code == (409 if taken else 201), response.text
        if not taken:
            user = response.json()
            assert user["userId"] not in self.model.users
            assert (user["username"], user["score"]) == (name, score)
            self.model.users[user["userId"]] = name, score

    @rule(changes=st.lists(st.tuples(numbers, scores), min_size=1, max_size=6))
    def set_scores(self, changes: list[tuple[int, int]]) -> None:
        for number, score in changes:
            self._set_score(self._user(number), score)
            self._check([Question("top", SIZE)])

    @rule(changes=st.dictionaries(numbers, scores, min_size=2, max_size=12))
    def set_scores_at_once(self, changes: dict[int, int]) -> None:
        wanted = {self._user(number): score for number, score in changes.items()}
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(self._set_score, user_id, score) for user_id, score in wanted.items()]:
                done.result()

    def _set_score(self, user_id: int, score: int) -> None:
        response = self.api.set(user_id, score)
        if user_id not in self.model.users:
            assert response.status_code == 404, response.text
            return
        assert response.status_code == 200, response.text
        name, previous = self.model.users[user_id]
        answer = response.json()
        assert (answer["username"], answer["score"], answer["previousScore"]) == (name, score, previous)
        self.model.users[user_id] = name, score

    # Entries of other boards, and seasons

    @rule(
        board=boards,
        kind=st.sampled_from(["score", "increment"]),
        changes=st.lists(st.tuples(numbers, scores), min_size=1, max_size=8),
    )
    def change_entries(
        self, board: str, kind: Literal["score", "increment"], changes: list[tuple[int, int]]
    ) -> None:
        for number, score in changes:
            self._change_entry(board, kind, self._user(number), score)

    @rule(board=boards, changes=st.dictionaries(numbers, scores, min_size=1, max_size=30))
    def change_many_entries(self, board: str, changes: dict[int, int]) -> None:
        kind: Literal["score", "increment"] = "increment" if BOARDS[board].get("keeps") == "sum" else "score"
        wanted = {self._user(number): score for number, score in changes.items()}
        items = [{"userId": user_id, kind: score} for user_id, score in wanted.items()]
        response = self.api.client.post(f"/boards/{board}/scores", json={"scores": items})
        assert response.status_code == 200, response.text
        for (user_id, score), answer in zip(wanted.items(), response.json()["results"], strict=True):
            expected = self._expected_entry(board, kind, user_id, score)
            assert answer == expected or answer["error"]["code"] == expected.get("code"), f"{answer}: {expected}"

    @rule(board=boards, number=numbers)
    def remove_entry(self, board: str, number: int) -> None:
        user_id = self._user(number)
        entries = self.model.boards[board].seasons[-1]
        response = self.api.client.delete(f"/boards/{board}/users/{user_id}")
        assert response.status_code == (204 if user_id in entries else 404), response.text
        entries.pop(user_id, None)

    @rule(board=boards)
    def end_season(self, board: str) -> None:
        seasons = self.model.boards[board].seasons
        response = self.api.client.post(f"/boards/{board}/seasons", json={"season": len(seasons)})
        assert response.status_code == 200, response.text
        seasons.append({})
        if len(seasons) > MOST_SEASONS:
            self._make_board(board)

    def _change_entry(self, board: str, kind: Literal["score", "increment"], user_id: int, score: int) -> None:
        expected = self._expected_entry(board, kind, user_id, score)
        response = self.api.client.post(f"/boards/{board}/users/{user_id}/score", json={kind: score})
        answer = response.json()
        assert answer == expected or answer["code"] == expected.get("code"), f"{answer}: {expected}"

    def _expected_entry(
        self, board: str, kind: Literal["score", "increment"], user_id: int, score: int
    ) -> dict[str, object]:
        """Returns the answer to a write of an entry, and changes the model; only the code if it is a problem."""
        model = self.model.boards[board]
        entries = model.seasons[-1]
        key, previous = model.written(user_id, kind, score), entries.get(user_id)
        refused = (kind == "score") if model.keeps == "sum" else (kind == "increment" and model.keeps == "best")
        if refused:
            return {"code": "invalid_field"}
        if user_id not in self.model.users:
            return {"code": "user_not_found"}
        if key is None:
            return {"code": "invalid_field"}
        entries[user_id] = key
        return {
            "userId": user_id,
            "username": self.model.users[user_id][0],
            "imageUrl": None,
            "score": model.key(key),
            "previousScore": None if previous is None else model.key(previous),
            "improved": previous is None or key > previous,
            "season": len(model.seasons),
        }

    def _make_board(self, name: str) -> None:
        """Makes a board without entries, and deletes the one that there was."""
        self.api.client.delete(f"/boards/{name}")
        response = self.api.client.put(f"/boards/{name}", json=BOARDS[name])
        assert response.status_code == 201, response.text
        self.model.boards[name] = BoardModel(BOARDS[name])

    # Users, on all boards at once

    @rule(number=numbers, name=names)
    def rename(self, number: int, name: str) -> None:
        user_id = self._user(number)
        status = self._update(user_id, username=name)
        taken = name in (other for key, (other, _) in self.model.users.items() if key != user_id)
        assert status == (404 if user_id not in self.model.users else 409 if taken else 200)
        if status == 200:
            self.model.users[user_id] = name, self.model.users[user_id][1]

    @rule(number=numbers)
    def hide_or_show(self, number: int) -> None:
        user_id = self._user(number)
        hidden = user_id not in self.model.hidden
        assert self._update(user_id, hidden=hidden) == (200 if user_id in self.model.users else 404)
        if user_id in self.model.users:
            self.model.hidden ^= {user_id}

    @rule(number=numbers)
    def erase(self, number: int) -> None:
        user_id = self._user(number)
        response = self.api.client.delete(f"/users/{user_id}")
        assert response.status_code == (204 if user_id in self.model.users else 404), response.text
        if user_id in self.model.users:
            self.model.erase(user_id)

    def _update(self, user_id: int, **fields: object) -> int:
        return self.api.client.patch(f"/users/{user_id}", json=fields).status_code

    # By SQL and import: reads show the change soon, and no later read shows the state before it

    @initialize(count=st.sampled_from([0, 10, 20, 21, 25, 45]), seed=st.integers(0, 9), question=questions)
    def begin(self, count: int, seed: int, question: Question | None) -> None:
        rng = random.Random(seed)
        sql(self.settings, "TRUNCATE users RESTART IDENTITY CASCADE")
        comes_to_show(lambda: WHOLE_BOARD.places(self.api.client) == [], "the board is empty")
        for board in BOARDS:
            self._make_board(board)
        self._insert([("first", rng.randint(-3, 3)) for _ in range(count)], question)

    @rule(several=st.lists(scores, min_size=1, max_size=12), question=questions)
    def insert_by_sql(self, several: list[int], question: Question | None) -> None:
        self._insert([("later", score) for score in several], question)

    def _insert(self, users: list[tuple[str, int]], question: Question | None) -> None:
        made = [(f"{when} {self.steps} {i}", score) for i, (when, score) in enumerate(users)]
        rows = sql(
            self.settings,
            "INSERT INTO users (user_name, total_score) SELECT * FROM unnest($1::text[], $2::bigint[])"
            " RETURNING user_id, user_name, total_score",
            [name for name, _ in made],
            [score for _, score in made],
        )
        self._change(question, lambda model: model.users.update({row[0]: (row[1], row[2]) for row in rows}))

    @rule(
        rows=st.lists(st.tuples(names, scores), max_size=8),
        on_conflict=st.sampled_from(OnConflict),
        question=questions,
    )
    def import_csv(self, rows: list[tuple[str, int]], on_conflict: OnConflict, question: Question | None) -> None:
        first: dict[str, int] = {}
        for name, score in rows:
            first.setdefault(name, score)
        ids = {name: user_id for user_id, (name, _) in self.model.users.items()}
        existing = first.keys() & ids.keys()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "users.csv")
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([("username", "score"), *rows])
            try:
                report = in_thread(self._import(str(path), on_conflict))
            except InvalidInput:
                assert on_conflict is OnConflict.FAIL
                assert existing
                return
        written = first.keys() if on_conflict is OnConflict.UPDATE else first.keys() - existing
        assert (report.imported, report.rejected) == (len(first.keys() - existing), len(rows) - len(first))
        found = sql(
            self.settings, "SELECT user_name, user_id FROM users WHERE user_name = ANY ($1)", list(written)
        )
        assert len(found) == len(written)
        assert all(ids.get(name, user_id) == user_id for name, user_id in found)
        self._change(
            question, lambda model: model.users.update({row[1]: (row[0], first[row[0]]) for row in found})
        )

    async def _import(self, path: str, on_conflict: OnConflict) -> importing.ImportReport:
        async with app.database_from(self.settings).importing() as importer:
            return await importing.import_file(path, importer, on_conflict, importing.Listener())

    @rule(number=numbers, score=scores, question=questions)
    def update_score_by_sql(self, number: int, score: int, question: Question | None) -> None:
        user_id = self._user(number)
        sql(self.settings, "UPDATE users SET total_score = $2 WHERE user_id = $1", user_id, score)
        if user_id in self.model.users:
            name, _ = self.model.users[user_id]
            self._change(question, lambda model: model.users.update({user_id: (name, score)}))

    @rule(board=boards, number=numbers, score=scores, question=st.booleans())
    def write_entry_by_sql(self, board: str, number: int, score: int, question: bool) -> None:
        user_id = self._user(number)
        if user_id not in self.model.users:
            return
        sql(
            self.settings,
            "INSERT INTO scores (season_id, user_id, sort_key)"
            " SELECT season_id, $2, $3 FROM boards WHERE name = $1"
            " ON CONFLICT (user_id, season_id) DO UPDATE SET sort_key = excluded.sort_key",
            board,
            user_id,
            score,
        )
        whole = Question("top", 5000, board=board) if question else None
        self._change(whole, lambda model: model.boards[board].seasons[-1].update({user_id: score}))

    @rule(what=st.sampled_from(["user_id", "user_name"]), number=numbers, question=questions)
    def change_id_or_name_by_sql(self, what: str, number: int, question: Question | None) -> None:
        user_id = self._user(number)
        other: int | str = (
            f"changed {self.steps}" if what == "user_name" else max(self.model.users, default=0) + 1000
        )
        if what == "user_id" and self.model.has_entries(user_id):
            return  # its entries refer to it
        sql(self.settings, f"UPDATE users SET {what} = $2 WHERE user_id = $1", user_id, other)
        if user_id not in self.model.users:
            return
        name, score = self.model.users[user_id]
        if isinstance(other, str):
            self._change(question, lambda model: model.users.update({user_id: (other, score)}))
        else:

            def change(model: Model) -> None:
                hidden = user_id in model.hidden
                model.erase(user_id)
                model.users[other] = name, score
                if hidden:
                    model.hidden.add(other)

            self._change(question, change)

    @rule(
        how=st.sampled_from(["one", "one", "one", "many", "all"]), number=numbers, score=scores, question=questions
    )
    def delete_by_sql(self, how: str, number: int, score: int, question: Question | None) -> None:
        users = self.model.users
        match how:
            case "one":
                deleted = {self._user(number)} & users.keys()
                sql(self.settings, "DELETE FROM users WHERE user_id = ANY ($1)", list(deleted))
            case "many":
                deleted = {user_id for user_id, (_, its_score) in users.items() if its_score >= score}
                sql(self.settings, "DELETE FROM users WHERE total_score >= $1", score)
            case _:
                deleted = set(users)
                sql(self.settings, "TRUNCATE users CASCADE" if number % 2 else "DELETE FROM users")

        def change(model: Model) -> None:
            for user_id in deleted:
                model.erase(user_id)

        self._change(question, change)

    def _change(self, question: Question | None, change: Callable[[Model], object]) -> None:
        """Changes the model and waits until a read shows it. Until then each read shows the state before."""
        before = deepcopy(self.model)
        change(self.model)
        if question is None:
            # This write fails at a snapshot after the change, so every later read must show the change.
            self._set_score(UNKNOWN, 0)
            return
        if before.result(question) == self.model.result(question):
            question = WHOLE_BOARD
        old, new = before.result(question), self.model.result(question)

        def is_shown() -> bool:
            result = question.ask(self.api.client)
            assert result in (old, new), f"{question} returned {result}; before: {old}, now: {new}"
            return result == new

        comes_to_show(is_shown, f"{question} shows {new}")

    # Damage to the rank index and to the cache: no read changes

    @precondition(lambda self: self.steps > self.damaged_at + 2)
    @rule(how=st.sampled_from(["no index", "a barrier"]))
    def damage_the_rank_index(self, how: str) -> None:
        self.damaged_at = self.steps
        if how == "no index":
            sql(self.settings, "DELETE FROM rank_index")
        else:
            sql(self.settings, "INSERT INTO changes (season_id, user_id) VALUES (1, NULL)")

    @precondition(lambda self: self.steps > self.damaged_at + 2)
    @rule(
        damage=st.sampled_from(["flush", "lose a key", "lose a member", "lose connections"]),
        key=st.sampled_from([keys.SCORES, keys.METADATA, keys.STATE, keys.SEASONS]),
        rank=st.integers(0, KEPT - 1),
    )
    def damage_the_cache(self, damage: str, key: str, rank: int) -> None:
        self.damaged_at = self.steps
        match damage:
            case "flush":
                self.redis.flushall()
            case "lose a key":
                self.redis.delete(key)
            case "lose a member":
                user_id = next(iter(self.model.standings()[rank : rank + 1]), (0, 0))[1]
                if key == keys.METADATA:
                    self.redis.hdel(key, member(user_id))
                else:
                    self.redis.zrem(keys.SCORES, member(user_id))
            case "lose connections":
                self.redis.client_kill_filter(_type="normal", skipme=True)

    # To the process

    @precondition(lambda self: self.starts < 1)
    @rule(
        how=st.sampled_from(["stop", "kill"]),
        changes=st.dictionaries(numbers, scores, max_size=8),
        after_ms=st.integers(0, 20),
    )
    def restart(self, how: Literal["stop", "kill"], changes: dict[int, int], after_ms: int) -> None:
        """Ends the process during writes. Acknowledged writes exist afterwards, others may."""
        self.starts += 1
        self.count_results()
        wanted = {self._user(number): score for number, score in changes.items()}
        wanted.pop(UNKNOWN, None)
        with httpx.Client(base_url=self.api.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(8) as pool:

            def write(user_id: int, score: int) -> bool:
                try:
                    response = client.post(f"/users/{user_id}/score", json={"score": score})
                except httpx.TransportError:
                    return False
                return response.status_code == 200

            writes = {user_id: pool.submit(write, user_id, score) for user_id, score in wanted.items()}
            time.sleep(after_ms / 1000)
            getattr(self.api, how)()
            acknowledged = {user_id for user_id, done in writes.items() if done.result()}
        eventually(self._writes_have_ended, what="PostgreSQL has ended all transactions of the process")
        for row in sql(
            self.settings, "SELECT user_id, total_score FROM users WHERE user_id = ANY ($1)", list(wanted)
        ):
            user_id, score = row
            name, previous = self.model.users[user_id]
            assert score == wanted[user_id] or (score == previous and user_id not in acknowledged)
            self.model.users[user_id] = name, score
        self.api.start()

    def _writes_have_ended(self) -> bool:
        return not sql(
            self.settings,
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'leaderboard'",
        )

    # After every step

    @invariant()
    def every_read_equals_the_model(self) -> None:
        self.steps += 1
        rng = random.Random(self.steps)
        board = self.model.standings()
        ranks = {1, SIZE, KEPT, KEPT + 1, len(board), rng.randint(1, KEPT)}
        around = [board[rank - 1][1] for rank in sorted(ranks) if 0 < rank <= len(board)]
        reads = [Question("top", n) for n in (SIZE, KEPT, rng.randint(1, 2 * KEPT))]
        reads += [Question("context", user_id) for user_id in around]
        reads += [Question("user", user_id) for user_id in around[-3:]]
        reads += [Question(rng.choice(["user", "context"]), UNKNOWN), WHOLE_BOARD]
        reads += [Question("around", rng.randint(1, len(board) + 3), rng.randint(1, KEPT)) for _ in range(2)]
        # The board may have changed since the cursor, and its user may have been deleted.
        reads += [Question("page", limit=rng.randint(1, KEPT), after=after) for after in (None, self.cursor)]
        reads += [question for name in BOARDS for question in self._of_board(name, rng)]
        # In a random order, so that the first read after a step is not always the same.
        self._check(rng.sample(reads, len(reads)))
        if not self._cache_is_valid() and self.steps > self.damaged_at + 1:
            # Otherwise PostgreSQL alone would answer most reads.
            eventually(self._cache_is_valid, what="the cache is valid")
            self._check(reads)

    def _of_board(self, name: str, rng: random.Random) -> list[Question]:
        """Returns some reads of a board, and of one of its seasons."""
        count = len(self.model.boards[name].seasons)
        season = rng.choice(["previous", str(rng.randint(1, count))]) if count > 1 else ""
        users = [place[1] for place in self.model.standings(name)]
        user_id = rng.choice(users) if users and rng.random() < 0.8 else self._user(rng.randrange(100))
        cursor = self.cursors.get(name)
        return [
            Question("top", rng.randint(1, 2 * KEPT), board=name),
            Question("top", 5000, board=name, season=season),
            Question(rng.choice(["user", "context"]), user_id, board=name),
            Question(rng.choice(["user", "context"]), user_id, board=name, season=season),
            Question("page", limit=rng.randint(1, KEPT), after=cursor, board=name),
            Question("around", rng.randint(1, len(users) + 3), rng.randint(1, KEPT), board=name),
        ]

    def _check(self, questions: list[Question]) -> None:
        for question in questions:
            result, expected = question.ask(self.api.client), self.model.result(question)
            assert result == expected, f"{question} returned {result}, not {expected}"
            if question.kind in {"page", "around"} and result is not None:
                if question.board:
                    self.cursors[question.board] = result.next
                else:
                    self.cursor = result.next or self.cursor

    def _cache_is_valid(self) -> bool:
        return self.redis.hget(keys.STATE, "valid") == b"1"

    # Helpers

    def _user(self, number: int) -> int:
        """Returns a user id, mostly of a user that exists."""
        users = sorted(self.model.users)
        return users[number % len(users)] if users and number < 95 else UNKNOWN

    def count_results(self) -> None:
        for line in self.api.client.get("/metrics").text.splitlines():
            match line.split():
                case ['leaderboard_answers_total{source="cache"}', count]:
                    Machine.from_cache += float(count)
                case ['leaderboard_answers_total{source="postgres"}', count]:
                    Machine.from_database += float(count)
                case ["leaderboard_rank_index_updates_total", count]:
                    Machine.index_updates += float(count)
                case ["leaderboard_season_loads_total", count]:
                    Machine.season_loads += float(count)


def test_every_read_equals_the_model(serve: Callable[..., ApiProcess]) -> None:
    class Steps(Machine):
        # A short interval, so that changes by SQL are shown and applied to the index soon.
        api = serve(program=SMALL_BUCKETS, cache_size=SIZE, log_level="error", sync_interval_ms=50)
        settings = api.settings

    # A failure prints the steps and a blob. Decorate the class with @reproduce_failure(...) to repeat it.
    run_state_machine_as_test(
        Steps,
        settings=bounds(
            max_examples=10 * THOROUGH,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )
    Steps().count_results()
    assert Machine.from_cache > 0, "some results must come from the cache"
    assert Machine.from_database > 0, "some results must come from PostgreSQL"
    assert Machine.index_updates > 0, "the rank index must have been updated"
    assert Machine.season_loads > 0, "seasons must have been loaded into the cache"
