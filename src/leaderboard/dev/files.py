"""Files that only their owner can read, and what the servers' files contain."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def private(path: str, flags: int) -> int:
    """Open a file for its owner only: an `opener` for `open`. A symbolic link is an error."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def password_in(path: Path) -> str:
    """Return the password in `path`. The first call creates a random one."""
    with open(path, "a+", opener=private) as file:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.seek(0)
        password = file.read()
        if not password:
            password = secrets.token_hex(16)
            file.write(password)
    return password


def first_number(path: Path) -> int | None:
    """Return the number in the first line, or None when there is no such file or number."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return int(path.read_text().splitlines()[0])
    return None


def last_lines(log: Path) -> str:
    """Return the last 15 lines of a log, or an empty string when there is no log."""
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return ""


@contextmanager
def pipe_with(text: str) -> Iterator[int]:
    """Yield the reading end of a pipe that holds `text`, which must fit into the pipe's buffer."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text.encode())
        os.close(writer)
        yield reader
    finally:
        os.close(reader)
