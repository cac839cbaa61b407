"""How numbers are written in a file: the mark before decimals, and the mark between thousands.

`1,234` may be 1234 or 1.234. So a format is never guessed from the numbers. `NumberOptions` has what the operator
says, and lists the formats that this leaves.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from types import MappingProxyType

THOUSANDS = MappingProxyType({"none": "", ",": ",", ".": ".", "space": " ", "apostrophe": "'"})
"""The mark between thousands, by its name as an option."""
DECIMALS = (".", ",")
_NAMES = {mark: name for name, mark in THOUSANDS.items()}
_GROUP = re.compile("[,.' \u00a0\u202f\u2019][0-9]{3}(?![0-9])")
_LOOKS_LIKE = {" ": "[ \u00a0\u202f]", "'": "['\u2019]", ",": ",", ".": r"\."}


@dataclass(frozen=True, slots=True)
class Exact:
    """The number digits * 10**exponent.

    `digits` does not end with a zero, so that equal numbers are equal.
    """

    digits: int
    exponent: int

    @classmethod
    def of(cls, digits: str, exponent: int) -> "Exact":
        """Return the number of a text of at most some hundred digits, with or without a minus."""
        significant = digits.rstrip("0")
        if significant in {"", "-"}:
            return cls(0, 0)
        return cls(int(significant), exponent + len(digits) - len(significant))

    @property
    def decimals(self) -> int:
        """How many digits there are after the decimal mark."""
        return max(-self.exponent, 0)

    def __str__(self) -> str:
        sign, digits = "-" if self.digits < 0 else "", str(abs(self.digits))
        if self.exponent >= 0:
            return f"{sign}{digits}{'0' * self.exponent}"
        digits = digits.rjust(self.decimals + 1, "0")
        return f"{sign}{digits[: self.exponent]}.{digits[self.exponent :]}"


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """The mark before decimals, and the mark between thousands, empty for none."""

    decimal: str = "."
    thousands: str = ""

    def read(self, cell: str) -> Exact | None:
        """Return the number of a cell, exactly; None if the cell is no number in this format."""
        match = _pattern(self).fullmatch(cell)
        if match is None:
            return None
        sign, grouped, plain, fraction, exponent = match.groups(default="")
        whole = plain or "".join(character for character in grouped if character.isdecimal())
        return Exact.of(sign + whole + fraction, int(exponent or 0) - len(fraction))

    def options(self) -> str:
        """Return the options of the command that ask for this format, no more than are needed."""
        if not self.thousands:
            return f"--decimal {self.decimal}"
        thousands = f"--thousands {_NAMES[self.thousands]}"
        return (
            thousands if self.decimal == _decimal_with(self.thousands) else f"--decimal {self.decimal} {thousands}"
        )

    def example(self, *, decimals: bool) -> str:
        """Return a number in this format."""
        return f"1{self.thousands}234" + (f"{self.decimal}5" if decimals else "")


@dataclass(frozen=True, slots=True)
class NumberOptions:
    """What is said about the format of a file: each mark, or None where nothing is said.

    Raises ValueError if both marks are the same.
    """

    decimal: str | None = None
    thousands: str | None = None

    def __post_init__(self) -> None:
        if self.thousands and self.thousands == self.decimal:
            raise ValueError("--decimal and --thousands are the same mark")

    @property
    def format(self) -> NumberFormat:
        """The format that cells are read in: plain numbers with a point, where nothing else is said."""
        return NumberFormat(self.decimal or _decimal_with(self.thousands or ""), self.thousands or "")

    def possible(self) -> list[NumberFormat]:
        """Return the formats that fit what is said, those with the fewest options first."""
        formats = [
            NumberFormat(decimal, thousands)
            for thousands, decimal in product(THOUSANDS.values(), DECIMALS)
            if thousands != decimal and self.decimal in {None, decimal} and self.thousands in {None, thousands}
        ]
        return sorted(formats, key=lambda each: len(each.options().split()))


def may_be_grouped(cell: str) -> bool:
    """Return whether a cell has three digits after a mark. Without, no number can be read in two formats."""
    return _GROUP.search(cell) is not None


def _decimal_with(thousands: str) -> str:
    return "," if thousands == "." else "."


@lru_cache(maxsize=64)
def _pattern(numbers: NumberFormat) -> re.Pattern[str]:
    # At most 100 digits, with leading zeros, because Python takes quadratic time for thousands.
    grouped = (
        rf"[1-9][0-9]{{0,2}}(?:{_LOOKS_LIKE[numbers.thousands]}[0-9]{{3}}){{1,33}}"
        if numbers.thousands
        else r"(?!)"
    )
    return re.compile(
        rf" *(-?)(?:({grouped})|([0-9]{{1,100}}))(?:{re.escape(numbers.decimal)}([0-9]{{1,100}}))?"
        r"(?:[eE]([+-]?[0-9]{1,3}))? *"
    )
