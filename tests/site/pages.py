"""Follows a page of the documentation: saves its files, and runs its commands, in order."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = re.compile(r"^\$ ((?:'[^']*'|\\\n|[^'\n])+)\n((?:(?!\$ ).+\n)*)", re.MULTILINE)
"""A command, which goes on after a backslash and within quotes, and the answer below it."""


@dataclass(frozen=True)
class Block:
    """One block of code, with the text between it and the block before."""

    language: str
    text: str
    before: str

    @property
    def file(self) -> str | None:
        """The name under which the reader saves it, or None."""
        names = re.findall(r"Save\s+this\s+as\s+`([\w.-]+)`", self.before)
        return names[-1] if names else None

    @property
    def note(self) -> str:
        """What the page says to the test alone."""
        notes = re.findall(r"<!-- test: (.*?) -->", self.before)
        return notes[-1] if notes else ""


def blocks(page: str) -> Iterator[Block]:
    """Yields the blocks of a page below `docs/`."""
    text = DOCS.joinpath(page).read_text("utf-8")
    end = 0
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], text[end : found.start()])
        end = found.end()


@dataclass
class Reader:
    """A reader at a terminal in `folder`, with these variables. What the page calls X is `names[X]` here."""

    folder: Path
    names: Mapping[str, str]
    variables: Mapping[str, str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        """Does what a page says. Raises AssertionError if an answer is not the one that is shown."""
        if block.file is not None:
            self.folder.joinpath(block.file).write_text(self._named(block.text), "utf-8")
        elif block.language == "console":
            found = COMMAND.findall(block.text)
            assert len(found) == len(re.findall(r"^\$ ", block.text, re.MULTILINE)), block.text
            for command, answer in found:
                self._run(command, answer)
        elif block.note == "in the background":
            process = subprocess.Popen(
                ["sh", "-c", self._named(block.text)],
                cwd=self.folder,
                env=self._environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self.running.append(process)
        else:
            assert block.note, f"a test runs neither this nor says why not:\n{block.text}"

    def close(self) -> None:
        """Ends what runs in the background."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)

    def _run(self, command: str, answer: str) -> None:
        script = self._named(command).replace("curl ", "curl --silent --show-error ")
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        # What is left out is some text or none.
        shown = ".*".join(re.escape(part) for part in _one_line(self._named(answer)).split("…"))
        assert re.fullmatch(shown, _one_line(done.stdout)), f"{command}\n{done.stdout}"

    def _named(self, text: str) -> str:
        for name, here in self.names.items():
            text = text.replace(name, here)
        return text

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "COLUMNS": "200"} | dict(self.variables)


def _one_line(text: str) -> str:
    return "".join(line.strip() for line in text.splitlines())
