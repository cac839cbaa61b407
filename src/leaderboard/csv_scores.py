"""The scores of a board as cells of a file, with at most as many decimals as the board has.

A *value* is a score as a whole number of the board's smallest step, of which more is better: with one decimal, and
where lower is better, the value of 9.5 is -95.
"""

import re

from leaderboard.board_rules import BoardRules, key_rules, unscale
from leaderboard.number_formats import Exact, NumberFormat, NumberOptions, may_be_grouped

_SHOWN_BELOW = 10**20
"""Larger numbers are not shown in an error."""
_MOST_DIGITS = 40
"""More than the largest score has."""


class CsvScores:
    """Reads and writes the scores of a board with these rules, in the format of a file."""

    def __init__(self, rules: BoardRules, numbers: NumberOptions | None = None) -> None:
        self._rules = rules
        self._sign = 1 if rules.better == "higher" else -1
        options = numbers or NumberOptions()
        self._format = options.format
        self._possible = options.possible()
        # Nearly all cells match. With three decimals or more, 1.234 is a number as this service writes it.
        fraction = (
            rf"(?:{re.escape(self._format.decimal)}([0-9]{{1,{rules.decimals}}}))?" if rules.decimals else "()"
        )
        self._plain = re.compile(rf" *(-?[0-9]{{1,100}}){fraction} *")
        bounds = key_rules(rules)
        self._lowest, self._highest = bounds.lowest, bounds.highest
        first, last = sorted((self._sign * self._lowest, self._sign * self._highest))
        kind = f"numbers with up to {rules.decimals} decimals" if rules.decimals else "whole numbers"
        self._allowed = f"{kind} from {unscale(rules, first)} to {unscale(rules, last)} are allowed"

    @property
    def example(self) -> str:
        """A number in the format of the file."""
        return self._format.example(decimals=self._rules.decimals > 0)

    def parse(self, cell: str) -> int:
        """Return the value of a cell. Raises ValueError, which says what is wrong and what is allowed."""
        match = self._plain.fullmatch(cell)
        if match is None:
            return self._parse_other(cell)
        value = self._sign * int(match[1] + (match[2] or "").ljust(self._rules.decimals, "0"))
        if not self._lowest <= value <= self._highest:
            raise self._out_of_range(cell, value)
        return value

    def format(self, value: int) -> str:
        """Return the cell of a value."""
        return str(unscale(self._rules, self._sign * value)).replace(".", self._format.decimal)

    def needs_option(self, cell: str) -> str | None:
        """Return which scores a cell would be with which options, None if it needs none.

        Scores that the board cannot have are left out.
        """
        if self._possible == [self._format]:
            return None
        own = self._format.read(cell)
        if self._plain.fullmatch(cell) or (own is not None and not may_be_grouped(cell)):
            return None
        found: dict[Exact, NumberFormat] = {}
        for each in self._possible:
            number = each.read(cell)
            if number is not None and self._fits(number):
                found.setdefault(number, each)
        if not found.keys() - {own}:
            return None
        return " and ".join(f"{number} with {each.options()}" for number, each in found.items())

    def _parse_other(self, cell: str) -> int:
        """Return the value of a cell that is not plain digits, such as 1e3, 12.0, or 1,234 with an option."""
        number = self._format.read(cell)
        needs = self.needs_option(cell)
        if needs is not None:
            raise ValueError(f"is {needs}; {self._allowed}")
        if number is None:
            problem = f"is not a number such as {self.example}" if cell.strip() else "is missing"
            raise ValueError(f"{problem}; {self._allowed}")
        if number.decimals > self._rules.decimals:
            raise ValueError(f"has {number.decimals} decimals; {self._allowed}")
        value = self._value(number)
        if value is None or not self._lowest <= value <= self._highest:
            raise self._out_of_range(cell, value)
        return value

    def _fits(self, number: Exact) -> bool:
        if number.decimals > self._rules.decimals:
            return False
        value = self._value(number)
        return value is not None and self._lowest <= value <= self._highest

    def _value(self, number: Exact) -> int | None:
        """Return the value of a number with no more decimals than the board; None: larger than any score."""
        if number.exponent > _MOST_DIGITS:
            return None
        return int(self._sign * number.digits * 10 ** (number.exponent + self._rules.decimals))

    def _out_of_range(self, cell: str, value: int | None) -> ValueError:
        shown = cell.strip() if value is not None and abs(value) < _SHOWN_BELOW else "the number"
        return ValueError(f"{shown} is out of range; {self._allowed}")
