"""What the reports of the benchmarks share: tables, targets, and writing into a page."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = "Canvas {color: white;} Graph {color: white; font_size: 14;} Graph.Legend {stroke_width: 0;}"
"""The style of the plots."""


@dataclass(frozen=True, slots=True)
class Target:
    """A measured figure, usually a ratio, and its limit: at least, or at most."""

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
        """Returns the miss as a share of the limit; 0 or less if the target is met."""
        missing = self.limit - self.ratio if self.at_least else self.ratio - self.limit
        return missing / self.limit


def target_table(targets: Sequence[Target]) -> str:
    """Returns a table of the targets with the measured figures."""
    return table(("ratio", "measured", "target", "met"), [target_row(target) for target in targets])


def target_row(target: Target) -> tuple[str, str, str, str]:
    """Returns the line of a target: its name, the measured figure, the limit, and whether it is met."""
    return (
        target.name,
        number(target.ratio) + target.unit,
        f"{'≥' if target.at_least else '≤'} {target.limit:g}{target.unit}",
        "yes" if target.met else f"**no**, missed by {target.missed_by:.0%}",
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(page: str, name: str, measured: str) -> str:
    """Returns the page with `measured` between its marks `name`. Raises ValueError without marks."""
    begin_mark, end_mark = f"<!-- {name} measured -->\n", f"<!-- end of {name} -->\n"
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {begin_mark!r} and {end_mark!r}")
    return f"{before}{begin}\n{measured}\n\n{end}{after}"


def machine(postgres: str) -> str:
    """Returns a description of the machine, with the version of PostgreSQL."""
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:  # not on Linux
        system = platform.platform()
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}, PostgreSQL {postgres}"


def number(value: float) -> str:
    """Returns the number with two or three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def count(users: int) -> str:
    """Returns a number of users, in words if it is round."""
    for size, name in ((1_000_000, "million"), (1_000, "thousand")):
        if users % size == 0:
            return f"{users // size} {name}"
    return f"{users:,}"
