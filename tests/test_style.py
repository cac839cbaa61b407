"""The rules of CONTRIBUTING that a program can check: docstrings, words, sizes, and the reader's map."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "leaderboard"
CLIENT = ROOT / "clients" / "python" / "src" / "leaderboard_client"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")

MAX_FIRST_LINE = 100
MAX_ATTRIBUTES = 10
MAX_GLOSSARY = 12
STRUCTS = {"Metrics"}
"""Classes that only hold values, so that their number of attributes is no sign of several jobs."""
OTHER_WORDS = re.compile(
    r"(?<![`\"])\b(whoever|nobody|somebody|in vain|hearsay|the truth|is told|are told|be told|tells? (?:us|it)"
    r"|out of use|fence|fences|unfolded|doubts?|doubted|torn)\b(?![`\"])",
    re.IGNORECASE,
)
"""Words of an old private vocabulary, and words that hide the subject of a sentence."""


def modules() -> list[Path]:
    return sorted(path for folder in (SOURCE, CLIENT) for path in folder.rglob("*.py"))


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the docstring of the module, and of its classes and functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", path.name), text


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_of_a_docstring_is_a_short_sentence(path: Path) -> None:
    for name, text in docstrings(path):
        first, *rest = text.split("\n")
        assert len(first) <= MAX_FIRST_LINE, f"{name}: {len(first)} characters"
        # A handler's docstring is the summary of its route in the OpenAPI document.
        ends = path.name.endswith("handlers.py") or first.rstrip().endswith((".", "?", ":", "`"))
        assert ends, f"{name}: {first!r} does not end in its line"
        assert not rest or not rest[0].strip(), f"{name}: the second paragraph comes after an empty line"


@pytest.mark.parametrize(
    "path",
    [
        *modules(),
        *sorted(SOURCE.rglob("*.sql")),
        *sorted(SOURCE.rglob("*.lua")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "clients").glob("*/*.md")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_text_has_plain_words(path: Path) -> None:
    if path.name == "CONTRIBUTING.md":
        pytest.skip("it shows what not to write")
    lines = path.read_text("utf-8").splitlines()
    found = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if OTHER_WORDS.search(line)]
    assert not found, "\n".join(found)


def attributes(node: ast.ClassDef) -> set[str]:
    """Returns the attributes that the methods of a class assign to `self`."""
    found: set[str] = set()
    for each in ast.walk(node):
        targets = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
        for target in targets if isinstance(each, ast.Assign | ast.AnnAssign | ast.AugAssign) else ():
            if (
                isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            ):
                found.add(target.attr)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_class_has_few_attributes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name not in STRUCTS:
            found = attributes(node)
            assert len(found) <= MAX_ATTRIBUTES, f"{node.name} has {len(found)}: {sorted(found)}"


# The reader's map


def steps() -> list[tuple[str, str]]:
    """Returns the file and the name of each line of the call chains."""
    blocks = re.findall(r"^```\n(.*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [re.match(r" *(\S+\.(?:py|sql|lua)) *([\w.]*)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if match is None]
    return [(match[1], match[2]) for match in found if match]


def test_the_map_has_both_paths() -> None:
    assert len(steps()) > 25


@pytest.mark.parametrize(("file", "name"), steps(), ids=str)
def test_every_step_of_the_map_exists(file: str, name: str) -> None:
    path = SOURCE / file
    assert path.is_file()
    text = path.read_text("utf-8")
    *owner, last = name.split(".")
    assert not owner or re.search(rf"^class {owner[0]}\b", text, re.MULTILINE), f"{file} has no class {owner}"
    if path.suffix == ".py":
        assert re.search(rf"def {last}\b", text), f"{file} has no function {last}"
    else:
        assert last in text


def test_the_glossary_is_short() -> None:
    (table,) = re.findall(r"^\| word \| meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", ARCHITECTURE, re.MULTILINE)
    assert len(table.splitlines()) <= MAX_GLOSSARY
