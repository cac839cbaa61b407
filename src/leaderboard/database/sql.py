"""Loads SQL: named blocks of files such as `queries/*.sql`, and the steps of `migrations/*.sql`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

_NAME = re.compile(r"^-- name: *(\w+) *$", re.MULTILINE)
_STEP = re.compile(r"^-- step(?: builds (\w+))? *$", re.MULTILINE)


def load_queries(file: str) -> Mapping[str, str]:
    """Return the statements of `queries/<file>.sql` by the names in their `-- name:` lines."""
    text = resources.files(__package__).joinpath("queries", f"{file}.sql").read_text("utf-8")
    return named_queries(f"{file}.sql", text)


def named_queries(file: str, text: str) -> Mapping[str, str]:
    """Return the statements in the text of one file by the names in their `-- name:` lines."""
    pieces = _NAME.split(text)[1:]
    names = pieces[::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file} names a query twice")
    return MappingProxyType(dict(zip(names, (body.strip() for body in pieces[1::2]), strict=True)))


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a migration, run in a transaction of its own.

    `builds_index` names the index of a `CREATE INDEX CONCURRENTLY`, which cannot run in a transaction.
    """

    version: int
    step: int
    name: str
    sql: str
    builds_index: str | None


def load_steps() -> list[Step]:
    """Return all steps of all migrations, in the order in which they are applied."""
    files = (f for f in resources.files(__package__).joinpath("migrations").iterdir() if f.name.endswith(".sql"))
    steps = []
    for file in sorted(files, key=lambda f: f.name):
        version, _, name = file.name.removesuffix(".sql").partition("_")
        pieces = _STEP.split(file.read_text("utf-8"))[1:]
        steps += [
            Step(int(version), number, name, sql.strip(), index)
            for number, (index, sql) in enumerate(zip(pieces[::2], pieces[1::2], strict=True), 1)
        ]
    return steps
