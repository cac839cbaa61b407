"""The scores of a board as cells of a CSV file: plain digits, with as many decimals as the board has.

A *value* is a score as a whole number of the board's smallest step, of which more is better: with one decimal, and
where lower is better, the value of 9.5 is -95.
"""

import re

from leaderboard.board_rules import BoardRules, key_rules, unscale

# At most 100 digits, with leading zeros: Python takes quadratic time for thousands.
_WHOLE = re.compile(r" *(-?[0-9]{1,100})() *")
_WITH_DECIMALS = re.compile(r" *(-?[0-9]{1,100})(?:\.([0-9]{1,100}))? *")
_SHOWN_BELOW = 10**20
"""Larger numbers are not shown in an error."""


class CsvScores:
    """Reads and writes the scores of a board with these rules."""

    def __init__(self, rules: BoardRules) -> None:
        self._rules = rules
        self._sign = 1 if rules.better == "higher" else -1
        self._cell = _WITH_DECIMALS if rules.decimals else _WHOLE
        bounds = key_rules(rules)
        self._lowest, self._highest = bounds.lowest, bounds.highest
        first, last = sorted((self._sign * self._lowest, self._sign * self._highest))
        numbers = f"numbers with up to {rules.decimals} decimals" if rules.decimals else "whole numbers"
        self._allowed = f"{numbers} from {unscale(rules, first)} to {unscale(rules, last)} are allowed"

    def parse(self, cell: str) -> int:
        """Return the value of a cell. Raises ValueError, which says what is wrong and what is allowed."""
        match = self._cell.fullmatch(cell)
        if match is None:
            problem = "is not a number in plain digits" if cell.strip() else "is missing"
            raise ValueError(f"{problem}; {self._allowed}")
        whole, fraction = match[1], (match[2] or "").rstrip("0")
        decimals = self._rules.decimals
        if len(fraction) > decimals:
            raise ValueError(f"has {len(fraction)} decimals; {self._allowed}")
        value = self._sign * int(whole + fraction.ljust(decimals, "0"))
        if not self._lowest <= value <= self._highest:
            shown = cell.strip() if abs(value) < _SHOWN_BELOW else "the number"
            raise ValueError(f"{shown} is out of range; {self._allowed}")
        return value

    def format(self, value: int) -> str:
        """Return the cell of a value."""
        return str(unscale(self._rules, self._sign * value))
