"""Runs the system's PgBouncer in front of a test's PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

from leaderboard.config import Settings
from leaderboard.dev import HOST
from leaderboard.dev.process import Account, popen_options
from tests.system import eventually, free_port

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"


class PgBouncer:
    """PgBouncer in transaction mode, otherwise with its defaults."""

    def __init__(self, folder: Path, settings: Settings, account: Account | None, **more: object) -> None:
        """`more` are settings of PgBouncer; it runs as `account`, because it refuses to run as root."""
        self.settings = settings.model_copy(update={"db_host": HOST, "db_port": free_port()})
        self._folder = folder
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        password = settings.db_password.get_secret_value()
        (folder / "users.txt").write_text(f'"{settings.db_user}" "{password}"\n')
        self._lines = {
            "listen_addr": HOST,
            "listen_port": self.settings.db_port,
            "unix_socket_dir": "''",
            "auth_type": "scram-sha-256",
            "auth_file": folder / "users.txt",
            "logfile": folder / "log",
            "pool_mode": "transaction",
            **more,
        }
        self.lead_to(settings)

    def lead_to(self, settings: Settings) -> None:
        """Writes the configuration with this server as the target; SIGHUP makes it take effect."""
        self._behind = settings
        lines = [f"* = host={settings.db_host} port={settings.db_port}"]
        text = "\n".join(["[databases]", *lines, "[pgbouncer]", *(f"{k} = {v}" for k, v in self._lines.items())])
        (self._folder / "pgbouncer.ini").write_text(text + "\n")
        if self._account is not None:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, *self._account)

    @property
    def port(self) -> int:
        return self.settings.db_port

    def move(self, target: int, *, close: bool = True) -> None:
        """Switches to the server on this port. `close` has no effect: connections end when they are free."""
        del close
        assert self._process is not None
        self.lead_to(self._behind.model_copy(update={"db_port": target}))
        self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [PROGRAM, "-q", str(self._folder / "pgbouncer.ini")],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            **popen_options(self._account),
        )
        eventually(self._answers, 10, "PgBouncer answers")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.settings.db_port), 1):
                return True
        except OSError:
            return False
