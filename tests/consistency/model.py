"""A small model of the service: users, boards with their seasons, and what a read of them must return."""

from dataclasses import dataclass, field
from typing import Literal

from leaderboard.model import SCORE_MAX
from tests.system import Cursor, Place, Question, Shown

Entries = dict[int, int]
"""Sort keys by user: scores, or their negatives where lower is better."""


@dataclass
class BoardModel:
    """A board other than `default`, with the rules that a `PUT` takes. The last season is the current one."""

    rules: dict[str, str]
    seasons: list[Entries] = field(default_factory=lambda: [{}])

    @property
    def keeps(self) -> str:
        return self.rules.get("keeps", "last")

    def key(self, score: int) -> int:
        """Returns the sort key of a score, or the score of a sort key."""
        return -score if self.rules.get("better") == "lower" else score

    def written(self, user_id: int, kind: Literal["score", "increment"], number: int) -> int | None:
        """Returns the sort key after a write to the current season; None if the board refuses the write."""
        previous, value = self.seasons[-1].get(user_id), self.key(number)
        if (kind == "score") if self.keeps == "sum" else (kind == "increment" and self.keeps == "best"):
            return None
        if kind == "increment":
            value += previous or 0
        elif self.keeps == "best" and previous is not None:
            value = max(value, previous)
        return value if abs(value) <= SCORE_MAX else None


@dataclass
class Model:
    """The expected state."""

    users: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Name and score on `default` by user."""
    hidden: set[int] = field(default_factory=set)
    boards: dict[str, BoardModel] = field(default_factory=dict)

    def erase(self, user_id: int) -> None:
        """Removes a user from everything."""
        del self.users[user_id]
        self.hidden.discard(user_id)
        for board in self.boards.values():
            for entries in board.seasons:
                entries.pop(user_id, None)

    def has_entries(self, user_id: int) -> bool:
        """Returns whether a user is in any season of a board other than `default`."""
        return any(user_id in entries for board in self.boards.values() for entries in board.seasons)

    def standings(self, board: str = "", season: str = "") -> list[Place]:
        """Returns the standings of a season, as `Question` names it."""
        if not board:
            scores = {user_id: score for user_id, (_, score) in self.users.items()}
            return self._ranked(scores, BoardModel({}))
        seasons = self.boards[board].seasons
        number = len(seasons) if not season else len(seasons) - 1 if season == "previous" else int(season)
        return self._ranked(seasons[number - 1], self.boards[board])

    def _ranked(self, keys: Entries, board: BoardModel) -> list[Place]:
        order = sorted((-key, user_id) for user_id, key in keys.items() if user_id not in self.hidden)
        places: list[Place] = []
        for rank, (minus, user_id) in enumerate(order, 1):
            score = board.key(-minus)
            shares = board.rules.get("ranks") == "shared" and places and places[-1][3] == score
            places.append((places[-1][0] if shares else rank, user_id, self.users[user_id][0], score))
        return places

    def result(self, question: Question) -> Shown | None:
        standings, number = self.standings(question.board, question.season), question.number
        if question.kind == "top":
            return Shown(standings[:number])
        if question.kind in {"page", "around"}:
            return self._page(standings, question)
        index = next((i for i, place in enumerate(standings) if place[1] == number), None)
        if index is None:
            return None
        if question.kind == "user":
            return Shown([standings[index]])
        return Shown(standings[max(0, index - 5) : index + 6], len(standings))

    def _page(self, standings: list[Place], question: Question) -> Shown:
        start = 0
        if question.kind == "around":
            start = max(0, min(question.number - 1 - question.limit // 2, len(standings) - question.limit))
        elif question.after:
            key = self.boards[question.board].key if question.board else int
            after = (-key(question.after.score), question.after.user_id)
            start = sum((-key(score), user_id) <= after for _, user_id, _, score in standings)
        users = standings[start : start + question.limit]
        ends = start + len(users) >= len(standings)
        return Shown(users, len(standings), None if ends else Cursor(users[-1][3], users[-1][1]))
