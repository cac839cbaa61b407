"""Checks of the service's image: run without privileges and writable folders; and of its wheels."""

import contextlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from deploy.check import ROOT, Failed, NotExercised, execute, expect, need, within

_READY_S = 60
_NAME = "leaderboard-image-check"
_POSTGRES, _REDIS, _API = f"{_NAME}-postgres", f"{_NAME}-redis", f"{_NAME}-api"
_CONFINED = (
    *("--network", _NAME, "--read-only", "--ipc", "none", "--user", "65534:65534"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--env", f"DB_HOST={_POSTGRES}", "--env", "DB_PASSWORD=password", "--env", f"REDIS_URL=redis://{_REDIS}"),
)
"""Options of `docker run`. `--ipc none` removes /dev/shm, which would be the only writable folder."""
_FOLDERS = "/ /tmp /var/tmp /run /dev /dev/shm /data /opt/venv"

_RIGHTS = r"sed -nE 's/^(Uid|CapBnd|NoNewPrivs):[[:space:]]+([[:alnum:]]+).*/\2/p' /proc/1/status"

_MACHINES = ("x86_64", "aarch64")
_OLDEST_GLIBC, _NEWEST_GLIBC = 17, 36
"""Minor versions of glibc 2; 2.36 is Debian 12's."""


def docker_engine() -> str:
    """Returns the path of docker. Raises NotExercised if its engine does not answer."""
    docker = need("docker")
    if subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        raise NotExercised("no Docker engine answers")
    return docker


def need_images(docker: str, *files: str) -> None:
    """Pulls the missing images of these Compose files. Raises NotExercised if one cannot be pulled."""
    for image in images(*files).values():
        here = subprocess.run([docker, "image", "inspect", image], capture_output=True, check=False)
        if here.returncode == 0:
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            pulled = subprocess.run(
                [docker, "pull", "--quiet", image], capture_output=True, timeout=300, check=False
            )
            if pulled.returncode == 0:
                continue
        raise NotExercised(f"{image} cannot be pulled; deploy/check/standins.sh docker builds substitutes")


def images(*files: str) -> dict[str, str]:
    """Returns the variables of these Compose files that name images, with their defaults."""
    text = "".join((ROOT / file).read_text("utf-8") for file in files)
    return dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", text))


def official() -> str:
    """Returns the images' names if they are from a registry. Raises NotExercised otherwise."""
    docker = need("docker")
    named = [str(os.environ.get(name) or default) for name, default in images("compose.yaml").items()]
    built_here = [image for image in named if not _digests(docker, image)]
    if built_here:
        raise NotExercised(f"not from a registry: {', '.join(built_here)}")
    return ", ".join(named)


def _digests(docker: str, image: str) -> str:
    """Returns the registry digests of an image; empty if it was built here or is missing."""
    command = [docker, "image", "inspect", "--format", '{{join .RepoDigests " "}}', image]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def confined() -> str:
    """Runs every command of a deployment as `nobody`, in containers without writable folders."""
    docker = docker_engine()
    need_images(docker, "compose.yaml")
    execute(docker, "build", "--quiet", "--tag", _NAME, ".", timeout_s=590)
    with _servers(docker):
        expect("migrate", "applied" in execute(docker, "run", "--rm", *_CONFINED, _NAME, "migrate"), True)
        # Two workers, so that worker processes are covered, too.
        execute(
            *(docker, "run", "--detach", "--name", _API, *_CONFINED, "--env", "WORKERS=2"),
            *("--publish", "127.0.0.1::3000", _NAME),
        )
        try:
            return _use(docker)
        except Failed as error:
            logs = subprocess.run([docker, "logs", _API], capture_output=True, text=True, check=False)
            raise Failed(f"{error}\n{logs.stderr[-2000:]}") from None


@contextlib.contextmanager
def _servers(docker: str) -> Iterator[None]:
    image = images("compose.yaml")
    try:
        execute(docker, "network", "create", _NAME)
        execute(
            *(docker, "run", "--detach", "--name", _POSTGRES, "--network", _NAME),
            *("--env", "POSTGRES_DB=leaderboard", "--env", "POSTGRES_USER=postgres"),
            *("--env", "POSTGRES_PASSWORD=password", image["POSTGRES_IMAGE"]),
        )
        execute(docker, "run", "--detach", "--name", _REDIS, "--network", _NAME, image["REDIS_IMAGE"])
        # Over TCP: while the database is being created, the server listens only on its socket.
        ready = (docker, "exec", _POSTGRES, "pg_isready", "-q", "-h", "127.0.0.1", "-d", "leaderboard")
        within(
            _READY_S,
            "PostgreSQL is ready",
            lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0,
        )
        yield
    finally:
        subprocess.run(
            [docker, "rm", "--force", "--volumes", _API, _POSTGRES, _REDIS], capture_output=True, check=False
        )
        subprocess.run([docker, "network", "rm", _NAME], capture_output=True, check=False)
        subprocess.run([docker, "image", "rm", _NAME], capture_output=True, check=False)


def _use(docker: str) -> str:
    port = int(execute(docker, "port", _API, "3000/tcp").split(":")[-1])
    within(_READY_S, "/readyz is ok", lambda: '"status":"ok"' in _get(port, "/readyz"))
    inside = (docker, "exec", _API, "sh", "-c")
    expect("uid, capabilities, no new privileges", execute(*inside, _RIGHTS).split(), ["65534", "0" * 16, "1"])
    tries = f'for folder in {_FOLDERS}; do touch "$folder/x" 2>/dev/null && echo "$folder"; done; true'
    expect("folders that it can write to", execute(*inside, tries).split(), [])
    read = _import(docker, "username,score\n" + "".join(f"user{i},{i}\n" for i in range(1000)))
    expect("import", "1,000 imported" in read.stdout, True)
    refused = _import(docker, "username,score\nada,many\n")
    expect("import of a row to reject, without a writable folder", refused.returncode != 0, True)
    expect("its error", "cannot write rejected rows" in refused.stderr, True)
    verified = execute(docker, "run", "--rm", *_CONFINED, _NAME, "verify")
    expect("verify", "equals PostgreSQL" in verified, True)
    expect("GET /leaderboard/top/1", '"username":"user999"' in _get(port, "/leaderboard/top/1"), True)
    health = "{{.State.Health.Status}}"
    within(
        _READY_S,
        "it is healthy",
        lambda: execute(docker, "inspect", "--format", health, _API).strip() == "healthy",
    )
    expect("changes in its file system", execute(docker, "diff", _API), "")
    began = time.monotonic()
    execute(docker, "stop", "--time", "30", _API)
    took = time.monotonic() - began
    expect("exit status", execute(docker, "inspect", "--format", "{{.State.ExitCode}}", _API).strip(), "0")
    return f"serve, migrate, import, verify; exited {took:.0f} s after SIGTERM"


def _import(docker: str, rows: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [docker, "run", "--rm", "--interactive", *_CONFINED, _NAME, "import", "-"],
        input=rows,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def wheels() -> str:
    """Downloads the wheel of each pin in the Dockerfile by its hash, for each libc and architecture."""
    python = _python_version()
    pins = [pin for file in ("requirements.txt", "requirements-build.txt") for pin in _pins(file)]
    with tempfile.TemporaryDirectory() as folder:
        if _download(Path(folder), [pins[0][1]]).returncode:
            raise NotExercised("pip cannot download packages here")
        for machine in _MACHINES:
            wanted = wanted_pins(pins, python, machine)
            for platforms in _platforms(machine):
                target = [part for platform in platforms for part in ("--platform", platform)]
                done = _download(
                    Path(folder) / platforms[0],
                    wanted,
                    *("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *target),
                )
                if done.returncode:
                    raise Failed("\n".join([f"{platforms[0]}:", *done.stderr.strip().splitlines()[-3:]]))
    return f"{len(wanted)} wheels for CPython {python}, by hash: musl and glibc, {' and '.join(_MACHINES)}"


def _python_version() -> str:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    (version,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-", text, re.MULTILINE)
    return str(version)


def _platforms(machine: str) -> tuple[list[str], list[str]]:
    """Returns the platform tags that pip accepts on Alpine, and those on Debian."""
    musl = [f"musllinux_1_{minor}_{machine}" for minor in (2, 1)]
    glibc = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1)]
    return musl, [*glibc, f"manylinux2014_{machine}"]


def _pins(file: str) -> list[tuple[Requirement, str]]:
    """Returns the requirements of a file, each with its line for pip: pin and hashes, without the marker."""
    text = re.sub(r"#.*", "", (ROOT / file).read_text("utf-8")).replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        pin, *hashes = re.split(r"\s+(?=--hash=)", line)
        requirement = Requirement(pin)
        found.append((requirement, " ".join([f"{requirement.name}{requirement.specifier}", *hashes])))
    return found


def wanted_pins(pins: list[tuple[Requirement, str]], python: str, machine: str) -> list[str]:
    """Returns pip's lines for the requirements that apply to this CPython version on Linux."""
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return [line for pin, line in pins if pin.marker is None or pin.marker.evaluate(environment)]


def _download(folder: Path, lines: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(lines), "utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--require-hashes", "--dest", str(folder), *options, "--requirement", str(requirements)),
        ],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
