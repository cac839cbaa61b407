"""The result of an import, and its progress."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class ImportReport:
    """How many rows were read: `read` = `imported` (new users) + `updated` + `skipped` + `rejected`."""

    read: int = 0
    imported: int = 0
    updated: int = 0
    skipped: int = 0
    rejected: int = 0
    rejected_path: Path | None = None
    """The file of the rejected rows, if there are any."""

    def summary(self) -> str:
        """Return the counts and the path in one line."""
        counts = ("read", "imported", "updated", "skipped", "rejected")
        text = ", ".join(f"{getattr(self, name):,} {name}" for name in counts)
        return f"{text}: see {self.rejected_path}" if self.rejected_path else text


@dataclass(frozen=True, slots=True)
class Preview:
    """What an import would do, and its first good rows: line, username, score and image URL."""

    report: ImportReport
    first: list[tuple[int, str, str, str | None]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is. It has two stages; `rows` and `done` start at 0 in each.

    `done` and `total` are bytes of the file (compressed, if it is) while reading, and rows while writing. `total`
    is None for a pipe. The rows that `report` counts as imported and updated are committed.
    """

    stage: Literal["reading", "writing"]
    rows: int
    done: int
    total: int | None
    report: ImportReport
