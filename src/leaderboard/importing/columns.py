"""Which columns of a file are the username, the score, the image URL and the external id."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from leaderboard.spreadsheet import original

COLUMNS = ("username", "score", "imageUrl", "externalId")
_OPTIONAL = ("imageUrl", "externalId")
NAMES = MappingProxyType(
    {
        "username": (
            "username",
            "user",
            "name",
            "player",
            "playername",
            "nickname",
            "nick",
            "displayname",
            "login",
        ),
        "score": ("score", "points", "totalscore", "totalpoints", "total", "value", "highscore", "pts"),
        "imageUrl": ("imageurl", "image", "avatar", "avatarurl", "picture", "pictureurl", "photo", "photourl"),
        "externalId": ("externalid",),
    }
)
"""The names that each column is found by, without regard to case, blanks, `_` and `-`."""
_IGNORED_IN_NAMES = re.compile(r"[\s_-]+")
_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Columns:
    """A header, and the positions of its columns; of images and external ids None if there are none."""

    header: tuple[str, ...]
    username_at: int
    score_at: int
    image_at: int | None = None
    id_at: int | None = None

    def named(self) -> dict[str, str]:
        """Return the name in the file of each column that is read."""
        at = zip(COLUMNS, (self.username_at, self.score_at, self.image_at, self.id_at), strict=True)
        return {column: self.header[position] for column, position in at if position is not None}

    def ignored(self) -> list[str]:
        """Return the names of the other columns."""
        read = {self.username_at, self.score_at, self.image_at, self.id_at}
        return [name for position, name in enumerate(self.header) if position not in read]


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """What is said about columns: the names in the file of some of them.

    An empty name: there is no such column.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "ColumnOptions":
        """Read `username=Player,score=Points`. Raises ValueError.

        The text is a line of CSV, so that a name may have a comma: `"username=Last, first",score=Points`.
        """
        names: dict[str, str] = {}
        for part in next(csv.reader([text]), []):
            column, equals, name = part.partition("=")
            found = next((each for each in COLUMNS if _folded(each) == _folded(column)), None)
            if not equals or found is None:
                raise ValueError(f"{part!r} must be one of {', '.join(COLUMNS)}, then = and a name in the file")
            if found in names:
                raise ValueError(f"{found} is given twice")
            if not name.strip() and found not in _OPTIONAL:
                raise ValueError(f"{found} has no column; only {' and '.join(_OPTIONAL)} may be left out")
            names[found] = name.strip()
        return cls(names)

    def find(self, header: Sequence[str]) -> Columns:
        """Return the columns of a header. Raises ValueError if one is missing, or if two may be meant."""
        header = clean_header(header)
        problems: list[str] = []
        found: dict[str, int] = {}
        for column in COLUMNS:
            said = self.names.get(column)
            positions = _positions(header, column) if said is None else _named(header, said)
            if len(positions) == 1:
                found[column] = positions[0]
            elif positions:
                problems.append(_several(column, [header[position] for position in positions]))
            elif said:
                problems.append(f"no column has the name {said!r}, which --columns gives for {column}")
            elif column not in _OPTIONAL:
                problems.append(f"no column is known as {column}: give its name, as in --columns {column}=NAME")
        if problems:
            raise ValueError(f"{'; '.join(problems)}. The columns are {shown(header)}")
        taken = [self.names.get(column) for column in found]
        if len(set(found.values())) < len(found):
            raise ValueError(f"--columns gives one column twice: {', '.join(name for name in taken if name)}")
        return Columns(header, found["username"], found["score"], found.get("imageUrl"), found.get("externalId"))


def clean_header(cells: Sequence[str]) -> tuple[str, ...]:
    """Return the names of columns without blanks around them, as they were before `spreadsheet.neutral`."""
    return tuple(original(name.strip()) for name in cells)


def shown(names: Sequence[str]) -> str:
    """Return the first names, in quotes."""
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:_MAX_SHOWN]) + more


def _several(column: str, names: Sequence[str]) -> str:
    if len(set(names)) < len(names):
        return f"{len(names)} columns may be {column}, and some have the same name: {shown(names)}; rename one"
    return f"{shown(names)} may all be {column}: choose one, as in --columns {column}={names[0]}"


def _positions(header: Sequence[str], column: str) -> list[int]:
    return [position for position, name in enumerate(header) if _folded(name) in NAMES[column]]


def _named(header: Sequence[str], said: str) -> list[int]:
    if not said:
        return []
    exact = [position for position, name in enumerate(header) if name == said]
    return exact or [position for position, name in enumerate(header) if _folded(name) == _folded(said)]


def _folded(name: str) -> str:
    return _IGNORED_IN_NAMES.sub("", name).casefold()
