"""Reads users from JSON Lines: one object on each line, which is good or rejected with a reason."""

import csv
import json
from collections.abc import Iterator
from typing import TextIO

from leaderboard.board_rules import BoardRules
from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Row
from leaderboard.importing.columns import COLUMNS
from leaderboard.importing.csv_users import Rejected, reason_of
from leaderboard.importing.json_objects import JsonNumber, parse_object
from leaderboard.importing.lines import Lines
from leaderboard.importing.source import not_decoded, not_utf8
from leaderboard.importing.understanding import Understood
from leaderboard.number_formats import NumberOptions
from leaderboard.rules import check_external_id, clean_image_url, clean_username


class JsonUsers:
    """Iterates over the objects of a text; blank lines are skipped.

    Raises UnusableFile when reading fails and, unless `encoding_is_said`, for a line that is not UTF-8.
    `has_images` is True once an object has had an image URL, be it null.
    """

    def __init__(
        self, text: TextIO, understood: Understood, rules: BoardRules, *, encoding_is_said: bool = False
    ) -> None:
        self._encoding_is_said = encoding_is_said
        self._lines = Lines(text)
        named = understood.columns.named()
        self._keys = tuple(named.get(column) for column in COLUMNS)
        # In JSON, 1.000 is 1.
        self._scores = CsvScores(rules, NumberOptions(".", ""))
        self.has_images = False

    def __iter__(self) -> Iterator[Row | Rejected]:
        lines = self._lines
        while True:
            lines.start_row()
            try:
                text = next(lines, None)
            except csv.Error as error:
                yield Rejected(lines.number, f"not a JSON object on one line: {error}")
                continue
            if text is None:
                return
            if not self._encoding_is_said and not_decoded(text):
                raise not_utf8(f"line {lines.number}", text)
            if text.strip():
                yield self._read(lines.number, text)

    def _read(self, line: int, text: str) -> Row | Rejected:
        try:
            members = parse_object(text)
        except ValueError as error:
            return Rejected(line, f"not a JSON object on one line: {error}")
        self.has_images = self.has_images or self._keys[2] in members
        cells = [members.get(key) if key else None for key in self._keys]
        name, score, image_url, external_id = cells
        try:
            row = line, _parse_username(name), self._parse_score(score), _parse_image_url(image_url)
            found_by = _parse_external_id(external_id)
            return row if found_by is None else (*row, found_by)
        except ValueError:
            checks = (_parse_username, self._parse_score, _parse_image_url, _parse_external_id)
            reason = reason_of(zip(COLUMNS, checks, cells, strict=True))
            return Rejected(line, reason, *map(_cell, cells))

    def _parse_score(self, value: object) -> int:
        if value is None:
            value = ""  # Its error says what is allowed.
        elif not isinstance(value, JsonNumber):
            raise ValueError("must be a number, not in quotes")
        return self._scores.parse(str(value))


def _parse_username(value: object) -> str:
    if isinstance(value, str) and not isinstance(value, JsonNumber):
        return clean_username(value)
    raise ValueError("is missing" if value is None else "must be a string")


def _parse_image_url(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and not isinstance(value, JsonNumber):
        return clean_image_url(value)
    raise ValueError("must be a string or null")


def _parse_external_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and not isinstance(value, JsonNumber):
        return check_external_id(value)
    raise ValueError("must be a string or null")


def _cell(value: object) -> str:
    """Return a value as a cell of CSV."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
