"""The lock that gives a data folder one owner at a time."""

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from leaderboard.dev.errors import EmbeddedError
from leaderboard.dev.files import private


class FolderLock:
    """An exclusive lock on a folder. The lock file names the owner's process."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        """`timeout_s` is how long `acquire` waits for another owner.

        When an owner is killed, its forked workers hold the lock until they notice that.
        """
        self._folder = folder
        self._timeout_s = timeout_s
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Lock the folder; does nothing when this object has locked it. Raises EmbeddedError at the timeout."""
        if self._file is not None:
            return
        # Close-on-exec, so that the servers do not hold the lock. The kernel drops it when this process ends.
        file = open(self._folder / "lock", "a+", opener=private)  # noqa: SIM115 - closed by `release`
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read()
                    file.close()
                    raise EmbeddedError(
                        f"{self._folder} is in use by process {owner}: end that first, or use another data folder"
                    ) from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Unlock the folder; does nothing when it is not locked."""
        if self._file is not None:
            # A forked child shares the lock: closing the file alone would leave the lock to the child.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None
