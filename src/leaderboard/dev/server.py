"""A server process of its own, with its data folder, its port and its end."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import ClassVar, Self

from leaderboard.dev.errors import EmbeddedError
from leaderboard.dev.files import first_number, last_lines, password_in, private
from leaderboard.dev.lock import FolderLock
from leaderboard.dev.process import Account, command_line, popen_options
from leaderboard.dev.root import CLOSED, ENTERED, Place

HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
"""Ports to choose from.

They are below the ports of outgoing connections. So the port of a stopped server stays free until its restart, and
a client that retries a dead port cannot connect to itself.
"""
LOCK_TIMEOUT_S = 1.5
"""How long to wait for another owner of the data folder to end."""

Signals = Sequence[tuple[signal.Signals, float]]
"""How to end a process: each signal, and the seconds to wait for its effect."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What can be chosen for both servers."""

    port: int | None
    """TCP port. None: one of `ports` is chosen at the first start and remembered in the data folder."""
    ports: Sequence[int]
    settings: Mapping[str, str]
    start_timeout_s: float
    signals: Signals


class Server(ABC):
    """One server process with a folder of its own in the data folder; as a context manager: start, stop."""

    name: ClassVar[str]
    """The name of its folder, and of the server in error messages."""

    host = HOST

    def __init__(self, data_dir: Path, options: ServerOptions, lock_timeout_s: float) -> None:
        self.folder = data_dir.resolve() / self.name
        """The folder of all its files, unless `note` says otherwise."""
        self.port = options.port or 0
        """TCP port, known once started."""
        self.password = ""  # nosec B105
        """Known once started."""
        self._options = options
        self._place = Place(self.folder)
        self._process: Popen[bytes] | None = None
        self._lock = FolderLock(self.folder, lock_timeout_s)

    @property
    def pid(self) -> int | None:
        """The running server's process id; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log(self) -> Path:
        """What the server has written since its last start. `server.log.1` is the log of the start before."""
        return self.folder / "server.log"

    @property
    def home(self) -> Path:
        """The folder of the server's data, known once started: `folder`, but for a PostgreSQL started by root."""
        return self._place.home

    @property
    def account(self) -> Account | None:
        """The account that runs the server, known once started; None for the caller's."""
        return self._place.account

    @property
    def note(self) -> str | None:
        """After the start: a message for the developer if the place or the account is unusual."""
        return self._place.note

    @property
    @abstractmethod
    def pid_file(self) -> Path:
        """The file in which the server itself writes its process id.

        The owner cannot write it: it might be killed between starting the server and writing the file.
        """

    def start(self) -> Self:
        """Start the server; does nothing when it runs. A restart has the same data and port.

        Raises EmbeddedError when it does not start, or when the data folder has another live owner.
        """
        if self.pid is not None:
            return self
        try:
            self._take_folder()
            with suppress(FileNotFoundError):
                self.log.replace(self.log.with_suffix(".log.1"))
            self._place = self._choose_place()
            self._end_leftover()
            self.password = password_in(self.folder / "password")
            self._prepare()
            self._start_on_a_port(time.monotonic() + self._options.start_timeout_s)
        except BaseException as error:  # Ctrl-C too: nothing is left running
            self.stop()
            if isinstance(error, OSError | KeyError | subprocess.SubprocessError):
                raise EmbeddedError(f"cannot start {self.name}: {error}") from error
            raise
        return self

    def stop(self) -> None:
        """End the server, by force after about 3 s, and unlock the data folder."""
        try:
            if self._process is not None:
                self._end(self._process.pid, lambda: self.pid is None)
        finally:
            self._process = None
            self._lock.release()

    def kill(self) -> None:
        """SIGKILL the server, as in a crash. The data folder stays locked; `start` restarts the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def remove(self) -> None:
        """Stop the server and delete all its files, wherever they are.

        Raises EmbeddedError when the data folder has another live owner.
        """
        self.stop()
        try:
            self._take_folder()
            self._place = self._choose_place()
            self._end_leftover()
            for folder in {self.home, self.folder}:
                shutil.rmtree(folder)
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command that runs the server."""

    @abstractmethod
    def _mark(self) -> str:
        """Return a part of the server's command line that no other process has."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs before its start."""

    def _runs_as_another(self) -> bool:
        """Return whether another account than the caller's runs the server."""
        return False

    def _choose_place(self) -> Place:
        """Return where the data is, and which account runs the server."""
        return Place(self.folder)

    def _take_folder(self) -> None:
        """Make the folder, set its mode and lock it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.stat().st_uid == os.geteuid():
            self.folder.chmod(ENTERED if self._runs_as_another() else CLOSED)
        self._lock.acquire()

    def _start_on_a_port(self, deadline: float) -> None:
        remembered = self.folder / "port"
        self.port = self.port or first_number(remembered) or secrets.choice(self._options.ports)
        while not self._comes_up(deadline):
            log = last_lines(self.log)
            taken = "Address already in use" in log and self._options.port is None
            # The backends of a killed PostgreSQL are still ending.
            ending = "pre-existing shared memory block" in log
            if not (taken or ending) or time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} did not start; its log {self.log} ends:\n{log}")
            if taken:
                self.port = secrets.choice(self._options.ports)
            else:
                time.sleep(0.05)
        if self._options.port is None:
            with open(remembered, "w", opener=private) as file:
                file.write(str(self.port))

    def _comes_up(self, deadline: float) -> bool:
        """Spawn the server; return whether it is ready before the deadline."""
        self.log.unlink(missing_ok=True)
        self._process = self._spawn(self._command())
        while self.pid is not None and time.monotonic() < deadline:
            # Read the log: another server could answer on the port.
            # A PostgreSQL standby is "ready to accept read-only connections".
            if b"eady to accept " in self.log.read_bytes():
                return True
            time.sleep(0.01)
        return False

    def _spawn(self, command: list[str], stdin: int = DEVNULL) -> Popen[bytes]:
        options = popen_options(self.account) | {"stdin": stdin, "umask": 0o077}
        with open(self.log, "ab", opener=private) as log:
            # In a new session, because Ctrl-C in the terminal is for the owner, which then calls `stop`.
            return Popen(command, stdout=log, stderr=STDOUT, start_new_session=True, **options)  # noqa: S603

    def _end_leftover(self) -> None:
        """End the server that a killed owner left running."""
        pid, mark = first_number(self.pid_file), self._mark()
        if pid is not None and mark in command_line(pid):
            self._end(pid, lambda: mark not in command_line(pid))

    def _end(self, pid: int, ended: Callable[[], bool]) -> None:
        for number, wait_s in self._options.signals:
            deadline = time.monotonic() + wait_s
            if not ended():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)
            while not ended() and time.monotonic() < deadline:
                time.sleep(0.01)
        if not ended():
            raise EmbeddedError(f"{self.name} (process {pid}) does not end")
