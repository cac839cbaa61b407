"""Reads the patch files and applies them to a copy of the source."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent


class BadPatch(Exception):
    """A patch file has a malformed header, or does not apply."""


@dataclass(frozen=True)
class Mutant:
    """One patch file.

    `tests` are pytest's node ids. If one names no parameters, one failing parameter is enough. `raises` are the
    exceptions that a failure may be. Any other exception means that the patch broke more than it should.
    """

    path: Path
    without: str
    tests: tuple[str, ...]
    raises: frozenset[str] = frozenset({"AssertionError"})

    @property
    def name(self) -> str:
        return self.path.stem

    @classmethod
    def read(cls, path: Path) -> "Mutant":
        """Raises BadPatch for a header that is malformed or incomplete."""
        header, diff, _ = path.read_text("utf-8").partition("\ndiff --git ")
        fields = dict[str, str]()
        for line in filter(None, header.splitlines()):
            name, colon, value = line.partition(": ")
            if not colon or name not in {"Without it", "Fails", "With"} or name in fields:
                raise BadPatch(f"{path.name}: {line!r} is not Without it:, Fails: or With:, once each")
            fields[name] = value
        if not diff or not fields.keys() >= {"Without it", "Fails"}:
            raise BadPatch(f"{path.name}: Without it:, Fails: or the diff is missing")
        return cls(
            path,
            fields["Without it"],
            tuple(fields["Fails"].split(", ")),
            frozenset(fields.get("With", "AssertionError").split(", ")),
        )

    def apply(self, root: Path, *options: str) -> None:
        """Apply the patch to the files below `root`, which may lie outside a repository; `options` are git's.

        One line of context is enough, so that an edit beside the patched lines does no harm. Raises BadPatch.
        """
        done = subprocess.run(
            ["git", "apply", "-C1", "--whitespace=nowarn", *options, str(self.path)],
            cwd=root,
            # Otherwise a repository that `root` lies in would be taken for its own.
            env=os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)},
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BadPatch(f"{self.path.name} does not apply: {done.stderr.strip()}")


def mutants() -> list[Mutant]:
    """All mutants, by name. Raises BadPatch."""
    return [Mutant.read(path) for path in sorted(FOLDER.glob("*.patch"))]


@contextmanager
def copy_of_source() -> Iterator[Path]:
    """A temporary folder with a copy of `src` in it."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        shutil.copytree(ROOT / "src", Path(folder, "src"), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)
