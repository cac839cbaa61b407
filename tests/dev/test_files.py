"""The development servers' files are readable by their owner only, and no link leads their writes elsewhere."""

import os
import stat
from pathlib import Path

import pytest

from leaderboard.dev import EmbeddedError, EmbeddedPostgres, EmbeddedValkey
from leaderboard.dev.process import Account, run
from tests.dev.servers import ROOT, ask, only_root, postgres_in, psql, running_in, valkey_in

pytestmark = pytest.mark.slow


def assert_closed(folder: Path, account: int) -> None:
    """Assert that others can read and change nothing, and that a PostgreSQL cluster belongs to `account`."""
    found = [folder, *folder.rglob("*")]
    assert len(found) > 3
    for path in found:
        info = path.lstat()
        owner = account if "cluster" in path.relative_to(folder).parts else os.geteuid()
        assert info.st_uid == owner, path
        if not stat.S_ISLNK(info.st_mode):
            assert stat.S_IMODE(info.st_mode) & (0o066 if stat.S_ISDIR(info.st_mode) else 0o077) == 0, path


def read_by(account: Account, folder: Path) -> list[Path]:
    """Return the files, but for a cluster's, that a process of that account can read."""
    files = [path for path in folder.rglob("*") if path.is_file() and "cluster" not in path.parts]
    return [path for path in files if run(["/bin/cat", str(path)], account).returncode == 0]


def account_of(pid: int | None) -> Account:
    return Account(*os.stat(f"/proc/{pid}")[4:6])


@pytest.mark.parametrize("umask", [0o022, 0])
def test_files_are_for_their_owner_only(data_dir: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):
            with postgres_in(data_dir) as postgres, valkey_in(data_dir) as valkey:
                account = account_of(postgres.pid)
                assert ask(valkey, "SAVE") == ["+OK"]
            assert_closed(data_dir / "postgres", account.uid)
            assert_closed(data_dir / "valkey", account.uid)
    finally:
        os.umask(before)
    assert {path.name for path in data_dir.glob("*/*")} >= {"password", "port", "server.conf", "server.log.1"}
    if ROOT:
        assert account.uid != 0
        assert read_by(account, data_dir) == []


@only_root
def test_files_that_others_can_read_are_closed(data_dir: Path) -> None:
    """An earlier version gave the password to PostgreSQL's account and let everybody read the files."""
    with postgres_in(data_dir) as postgres, valkey_in(data_dir):
        account = account_of(postgres.pid)
    for path in data_dir.glob("*/*"):
        if path.name in {"lock", "password", "port", "server.conf"}:
            path.chmod(0o666)
    for path in (data_dir / "postgres", data_dir / "valkey"):
        path.chmod(0o777)
    os.chown(data_dir / "postgres" / "password", *account)
    with postgres_in(data_dir) as postgres, valkey_in(data_dir):
        assert psql(postgres, "SELECT 1") == "1"
        assert read_by(account, data_dir) == []
        info = (data_dir / "postgres" / "password").stat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)


@pytest.mark.parametrize("name", ["lock", "password", "port", "server.conf"])
@pytest.mark.parametrize("exists", [True, False])
def test_no_file_is_written_through_a_link(data_dir: Path, name: str, exists: bool) -> None:
    kind = EmbeddedValkey if name == "server.conf" else EmbeddedPostgres
    target = data_dir.parent / "target"
    if exists:
        target.write_text("")
    folder = kind(data_dir).folder
    folder.mkdir(parents=True)
    (folder / name).symlink_to(target)
    with pytest.raises(EmbeddedError, match=name), kind(data_dir):
        pass
    assert target.exists() == exists
    assert not exists or target.read_text() == ""
    assert running_in(data_dir) == []
