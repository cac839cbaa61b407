"""PostgreSQL primaries and standbys that can be stopped and promoted."""

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from leaderboard.config import Settings
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import popen_options, run
from tests.system import eventually, free_port, sql

CAUGHT_UP = "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"


class Node:
    """One server, copied from another one, on its own port."""

    def __init__(self, seed: EmbeddedPostgres, folder: Path, settings: Settings) -> None:
        """Uses the programs, account and password of `seed`. `settings` name the database."""
        self._seed = seed
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = settings.model_copy(update={"db_host": HOST, "db_port": free_port()})

    @classmethod
    def standby_of(cls, seed: EmbeddedPostgres, port: int, settings: Settings) -> Self:
        """Starts a new standby of the server on `port`."""
        folder = seed.home / f"node-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        if seed.account is not None:
            os.chown(folder, *seed.account)
        source = f"host={HOST} port={port} user={seed.user} password={seed.password}"
        command = [str(seed.programs / "pg_basebackup"), "-D", str(folder)]
        done = run([*command, "-R", "-X", "stream", "-c", "fast", "-N", "-d", source], seed.account)
        assert done.returncode == 0, done.stderr
        return cls(seed, folder, settings).start()

    @property
    def port(self) -> int:
        return self.settings.db_port

    def start(self) -> Self:
        options = {"port": self.port, "listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off"}
        with (self._seed.folder / f"{self._folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._seed.programs / "postgres"), "-D", str(self._folder)]
                + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **popen_options(self._seed.account),
            )
        eventually(self.answers, 30, "the server is up")
        return self

    def answers(self) -> bool:
        try:
            return bool(sql(self.settings, "SELECT 1"))
        except Exception:
            return False

    def wait_for_each_commit(self) -> None:
        """Makes replication synchronous, and waits until the standby has caught up."""
        sql(self.settings, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        sql(self.settings, "SELECT pg_reload_conf()")
        eventually(lambda: sql(self.settings, CAUGHT_UP), 30, "the standby has caught up")

    def promote(self) -> None:
        sql(self.settings, "SELECT pg_promote()")
        eventually(lambda: not sql(self.settings, "SELECT pg_is_in_recovery()")[0][0], 30, "it is promoted")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def come_back_as_standby(self) -> None:
        """Starts again in recovery: answers reads with what it had, and takes no writes."""
        marker = self._folder / "standby.signal"
        marker.touch()
        if self._seed.account is not None:
            os.chown(marker, *self._seed.account)
        sql_line = "\nprimary_conninfo = ''\nsynchronous_standby_names = ''\n"
        with (self._folder / "postgresql.auto.conf").open("a") as settings:
            settings.write(sql_line)
        self.start()

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder)
