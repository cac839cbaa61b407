"""How the benchmarks say what they found: tables, targets met or missed, and both between two marks of a page."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = "Canvas {color: white;} Graph {color: white; font_size: 14;} Graph.Legend {stroke_width: 0;}"
"""Of the plots."""


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio, or another figure, that matters, and what it should be: at least, or at most."""

    name: str
    ratio: float
    limit: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.missed_by <= 0

    @property
    def missed_by(self) -> float:
        """By which share of the limit; not above 0 if it is met."""
        missing = self.limit - self.ratio if self.at_least else self.ratio - self.limit
        return missing / self.limit


def target_table(targets: Sequence[Target]) -> str:
    """Each with what was measured."""
    rows = [
        (
            target.name,
            number(target.ratio) + target.unit,
            f"{'≥' if target.at_least else '≤'} {target.limit:g}{target.unit}",
            "yes" if target.met else f"**no**, missed by {target.missed_by:.0%}",
        )
        for target in targets
    ]
    return table(("ratio", "measured", "target", "met"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(page: str, name: str, measured: str) -> str:
    """The page with this between its marks of that name. Raises ValueError when it has none."""
    begin_mark, end_mark = f"<!-- {name} measured -->\n", f"<!-- end of {name} -->\n"
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {begin_mark!r} and {end_mark!r}")
    return f"{before}{begin}\n{measured}\n\n{end}{after}"


def machine(postgres: str) -> str:
    """What was measured on, with PostgreSQL's version."""
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:  # not on Linux
        system = platform.platform()
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}, PostgreSQL {postgres}"


def number(value: float) -> str:
    """With two or three digits that say something."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def count(users: int) -> str:
    """A number of users in words, if it is round."""
    for size, name in ((1_000_000, "million"), (1_000, "thousand")):
        if users % size == 0:
            return f"{users // size} {name}"
    return f"{users:,}"
