"""The service's image, run without rights and a place to write, and the wheels that it is made of."""

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

from deploy.check import ROOT, Failed, NotExercised, execute, need, within

_PATIENCE_S = 60
_NAME = "leaderboard-image-check"
_POSTGRES, _REDIS, _API = f"{_NAME}-postgres", f"{_NAME}-redis", f"{_NAME}-api"
_CONFINED = (
    *("--network", _NAME, "--read-only", "--ipc", "none", "--user", "65534:65534"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--env", f"DB_HOST={_POSTGRES}", "--env", "DB_PASSWORD=password", "--env", f"REDIS_URL=redis://{_REDIS}"),
)
"""How `docker run` gets it: also without /dev/shm, the one folder that is else writable."""
_FOLDERS = "/ /tmp /var/tmp /run /dev /dev/shm /data /opt/venv"

_RIGHTS = r"sed -nE 's/^(Uid|CapBnd|NoNewPrivs):[[:space:]]+([[:alnum:]]+).*/\2/p' /proc/1/status"

_MACHINES = ("x86_64", "aarch64")
_OLDEST_GLIBC, _NEWEST_GLIBC = 17, 36
"""2.36 is Debian 12's."""


def docker_engine() -> str:
    """The docker whose engine answers. Raises NotExercised."""
    docker = need("docker")
    if subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        raise NotExercised("no Docker engine answers")
    return docker


def need_images(docker: str, *files: str) -> None:
    """Have the images that these Compose files name. Raises NotExercised if one cannot be pulled."""
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
        raise NotExercised(f"{image} cannot be pulled; deploy/check/standins.sh docker makes stand-ins")


def images(*files: str) -> dict[str, str]:
    """The variables of these Compose files that name images, with their defaults."""
    text = "".join((ROOT / file).read_text("utf-8") for file in files)
    return dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", text))


def official() -> str:
    """Whether the images that the checks ran are those of their publishers. Raises NotExercised if not."""
    docker = need("docker")
    named = [str(os.environ.get(name) or default) for name, default in images("compose.yaml").items()]
    made_here = [image for image in named if not _digests(docker, image)]
    if made_here:
        raise NotExercised(f"no registry gave {', '.join(made_here)}: stand-ins at most")
    return ", ".join(named)


def _digests(docker: str, image: str) -> str:
    """The digests by which registries know this image; none if it was made here or is not here."""
    asks = [docker, "image", "inspect", "--format", '{{join .RepoDigests " "}}', image]
    return subprocess.run(asks, capture_output=True, text=True, check=False).stdout.strip()


def confined() -> str:
    """Run every command that a deployment runs in containers that can write nowhere, as nobody."""
    docker = docker_engine()
    need_images(docker, "compose.yaml")
    execute(docker, "build", "--quiet", "--tag", _NAME, ".", timeout_s=590)
    with _stores(docker):
        _expect("migrate", "applied" in execute(docker, "run", "--rm", *_CONFINED, _NAME, "migrate"), True)
        # Two workers, which are processes of their own.
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
def _stores(docker: str) -> Iterator[None]:
    image = images("compose.yaml")
    try:
        execute(docker, "network", "create", _NAME)
        execute(
            *(docker, "run", "--detach", "--name", _POSTGRES, "--network", _NAME),
            *("--env", "POSTGRES_DB=leaderboard", "--env", "POSTGRES_USER=postgres"),
            *("--env", "POSTGRES_PASSWORD=password", image["POSTGRES_IMAGE"]),
        )
        execute(docker, "run", "--detach", "--name", _REDIS, "--network", _NAME, image["REDIS_IMAGE"])
        # By TCP: while the database is being made, the server listens on its socket only.
        asks = (docker, "exec", _POSTGRES, "pg_isready", "-q", "-h", "127.0.0.1", "-d", "leaderboard")
        within(
            _PATIENCE_S,
            "PostgreSQL is ready",
            lambda: subprocess.run(asks, capture_output=True, check=False).returncode == 0,
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
    within(_PATIENCE_S, "/readyz says ok", lambda: '"status":"ok"' in _get(port, "/readyz"))
    inside = (docker, "exec", _API, "sh", "-c")
    _expect("uid, capabilities, no new privileges", execute(*inside, _RIGHTS).split(), ["65534", "0" * 16, "1"])
    tries = f'for folder in {_FOLDERS}; do touch "$folder/x" 2>/dev/null && echo "$folder"; done; true'
    _expect("folders that it can write to", execute(*inside, tries).split(), [])
    read = _import(docker, "username,score\n" + "".join(f"user{i},{i}\n" for i in range(1000)))
    _expect("import", "1,000 imported" in read.stdout, True)
    refused = _import(docker, "username,score\nada,many\n")
    _expect("import of a row to reject, without a place for it", refused.returncode != 0, True)
    _expect("what it says", "cannot write rejected rows" in refused.stderr, True)
    verified = execute(docker, "run", "--rm", *_CONFINED, _NAME, "verify")
    _expect("verify", "equals PostgreSQL" in verified, True)
    _expect("GET /leaderboard/top/1", '"username":"user999"' in _get(port, "/leaderboard/top/1"), True)
    health = "{{.State.Health.Status}}"
    within(
        _PATIENCE_S,
        "it is healthy",
        lambda: execute(docker, "inspect", "--format", health, _API).strip() == "healthy",
    )
    _expect("changes in its file system", execute(docker, "diff", _API), "")
    began = time.monotonic()
    execute(docker, "stop", "--time", "30", _API)
    took = time.monotonic() - began
    _expect("exit status", execute(docker, "inspect", "--format", "{{.State.ExitCode}}", _API).strip(), "0")
    return f"serve, migrate, import, verify; ended by itself {took:.0f} s after SIGTERM"


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


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Failed(f"{what}: {found}, not {expected}")


def wheels() -> str:
    """Get a wheel of each pin that the Dockerfile installs, for each libc and machine, by its hash."""
    python = _python_version()
    pins = [pin for file in ("requirements.txt", "requirements-build.txt") for pin in _pins(file)]
    with tempfile.TemporaryDirectory() as folder:
        if _download(Path(folder), [pins[0][1]]).returncode:
            raise NotExercised("pip gets no package here")
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
    """The names of the platforms that an image on Alpine takes wheels for, and one on Debian."""
    musl = [f"musllinux_1_{minor}_{machine}" for minor in (2, 1)]
    glibc = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1)]
    return musl, [*glibc, f"manylinux2014_{machine}"]


def _pins(file: str) -> list[tuple[Requirement, str]]:
    """The requirements of a file, each with its line for pip: the pin and its hashes, without the marker."""
    text = re.sub(r"#.*", "", (ROOT / file).read_text("utf-8")).replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        pin, *hashes = re.split(r"\s+(?=--hash=)", line)
        requirement = Requirement(pin)
        found.append((requirement, " ".join([f"{requirement.name}{requirement.specifier}", *hashes])))
    return found


def wanted_pins(pins: list[tuple[Requirement, str]], python: str, machine: str) -> list[str]:
    """The lines for pip of the requirements that CPython of this version on Linux installs."""
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
