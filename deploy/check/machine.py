"""Runs the commands of docs/deploy.md, "systemd", on a Debian with systemd in a podman container.

The container has no network: Debian's packages are in its image, and the wheels are in a mounted folder.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from deploy.check import ROOT, Check, Failed, NotExercised, execute, impossible, within
from deploy.check.podman import Podman, podman_here
from deploy.check.suites import MACHINE_TESTS

_BASE = "localhost/standin:base"
_IMAGE = "localhost/standin:machine"
_CHECKOUT = "/srv/checkout"
_FILES = (
    "LICENSE",
    "README.md",
    "deploy/systemd",
    "pyproject.toml",
    "requirements-build.txt",
    "requirements.txt",
    "src",
)
"""The files of the checkout that the installation needs."""
_DOCKERFILE = f"""
FROM {_BASE}
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    curl dbus nginx postgresql python3-venv systemd systemd-sysv valkey-server
"""
# systemd needs a cgroup v2 hierarchy of its own, whatever the host uses.
_START = "umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec /lib/systemd/systemd"
_STEP_S = 600
_READY_S = 60
_PORTS = ("3001", "3002")
_MAIN_PROCESS = "$(systemctl show --value -p MainPID leaderboard@{port})"
_URL = "http://127.0.0.1"
_HOST = "Host: board.example"
_BROKEN_VERSION = """
install -D -m 755 /dev/stdin /opt/leaderboard/broken/bin/leaderboard <<'END'
#!/bin/sh
[ "$1" = migrate ] || exec sleep 600
END
"""
_CALLS = """
import collections, http.client, itertools, json, pathlib, sys
user, key = sys.argv[1:]
stop, seen = pathlib.Path("/srv/stop"), collections.Counter()
headers = {"Host": "board.example", "Authorization": f"Bearer {key}", "Content-Type": "application/json"}
for number in itertools.count():
    if stop.exists():
        break
    for method, path in ("GET", f"/users/{user}"), ("POST", f"/users/{user}/score"):
        connection = http.client.HTTPConnection("127.0.0.1", timeout=20)
        try:
            connection.request(method, path, json.dumps({"score": number}) if method == "POST" else None, headers)
            seen[f"{method} {connection.getresponse().status}"] += 1
        except OSError as error:
            seen[f"{method} {error!r}"] += 1
        connection.close()
print(json.dumps(seen))
"""


def commands(text: str) -> dict[str, str]:
    """Returns the shell commands below each heading `systemd: PART` of a page, by PART."""
    found: dict[str, str] = {}
    for heading, section in re.findall(r"^### systemd: (.*)\n((?:(?!#{2,3} ).*\n)*)", text, re.MULTILINE):
        found[heading] = "".join(re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    return found


class _Machine:
    """The container; its process 1 is systemd."""

    def __init__(self, podman: Podman, name: str) -> None:
        self._podman = podman
        self._name = name

    def run(self, script: str, *arguments: str) -> str:
        """Runs a bash script in the checkout, as root. Raises Failed with its output."""
        bash = ("bash", "-euo", "pipefail", "-c", script, "bash")
        return self._podman.run("exec", "--workdir", _CHECKOUT, self._name, *bash, *arguments, timeout_s=_STEP_S)

    def succeeds(self, script: str) -> bool:
        """Runs a bash script; returns whether its exit status is 0."""
        try:
            self.run(script)
        except Failed:
            return False
        return True

    def get(self, path: str) -> str:
        """Returns the body of GET through nginx. Raises Failed for an error status."""
        return self.run(f"curl -sS --fail-with-body -H '{_HOST}' {_URL}{path}")

    def set_score(self, user: int, key: str, score: int) -> None:
        """Sets a score through nginx. Raises Failed for an error status."""
        self.run(
            f"curl -sS --fail-with-body -o /dev/null -H '{_HOST}' -H 'Authorization: Bearer {key}'"
            f" -H 'content-type: application/json' -d '{{\"score\": {score}}}' {_URL}/users/{user}/score"
        )

    def has_score(self, user: int, score: int) -> bool:
        """Returns whether a read through nginx shows this score."""
        with contextlib.suppress(Failed):
            return bool(json.loads(self.get(f"/users/{user}"))["score"] == score)
        return False


@contextlib.contextmanager
def _machine(podman: Podman, wheels: Path) -> Iterator[_Machine]:
    name = f"leaderboard-{wheels.parent.name}"
    podman.run(
        "run", "--detach", "--rm", "--name", name, "--privileged", "--network", "none", "--cgroupns", "private",
        "--tmpfs", "/run", "--env", "container=podman", "--env", "PIP_NO_INDEX=1",
        "--env", "PIP_FIND_LINKS=/wheels", "--volume", f"{wheels}:/wheels:ro", "--workdir", "/",
        "--entrypoint", "/bin/sh", _IMAGE, "-c", _START,
    )  # fmt: skip
    try:
        machine = _Machine(podman, name)
        podman.run("exec", name, "mkdir", _CHECKOUT)
        archive = wheels.parent / "checkout.tar"
        execute("tar", "--create", "--file", archive, "--exclude=__pycache__", *_FILES)
        podman.run("cp", str(archive), f"{name}:/srv/checkout.tar")
        machine.run("tar --extract --no-same-owner --file /srv/checkout.tar")
        try:
            within(
                _READY_S,
                "systemd has started",
                lambda: machine.succeeds("systemctl is-active multi-user.target"),
            )
        except Failed as error:
            raise NotExercised(f"{error}: podman cannot run systemd here") from None
        yield machine
    finally:
        podman.run("rm", "--force", "--time", "10", name, accept_failure=True)


def _fetch(podman: Podman, wheels: Path) -> None:
    """Downloads the packages of both requirements files with the pip of the image's Python."""
    wheels.mkdir()
    fetch = (
        "python3 -m venv /srv/venv && /srv/venv/bin/pip --quiet --disable-pip-version-check download"
        " --dest /wheels --require-hashes --only-binary :all:"
        " --requirement /checkout/requirements.txt --requirement /checkout/requirements-build.txt"
    )
    podman.run(
        "run", "--rm", "--network", "host", "--volume", f"{ROOT}:/checkout:ro", "--volume", f"{wheels}:/wheels",
        "--env", "PIP_CERT=/etc/ssl/certs/ca-certificates.crt", "--entrypoint", "sh", _IMAGE, "-c", fetch,
    )  # fmt: skip


def _run_documentation() -> str:
    """Runs the page's commands in their order and checks the results."""
    podman = podman_here(_BASE)
    documented = commands((ROOT / "docs" / "deploy.md").read_text("utf-8"))
    with tempfile.TemporaryDirectory(prefix="machine-") as folder:
        try:
            dockerfile = Path(folder) / "Dockerfile"
            dockerfile.write_text(_DOCKERFILE)
            podman.run(
                "build", "--quiet", "--network", "host", "--pull=never", "--tag", _IMAGE, folder, timeout_s=600
            )
            _fetch(podman, Path(folder) / "wheels")
        except Failed as error:
            raise NotExercised(f"the packages cannot be downloaded: {error}") from None
        with _machine(podman, Path(folder) / "wheels") as machine:
            return _use(machine, documented)


def _use(machine: _Machine, documented: dict[str, str]) -> str:
    output = machine.run(documented.pop("install"))
    key = _found(r"^key +(\S+)$", output)
    if findings := machine.run("systemd-analyze verify /etc/systemd/system/leaderboard*"):
        raise Failed(findings)
    within(_READY_S, "the service answers", lambda: "ada" in _created(machine, key))
    user = int(_found(r'"userId":(\d+)', machine.get("/leaderboard/top/1")))
    _restarted_after_a_kill(machine)

    machine.set_score(user, key, 1815)
    version = machine.run("readlink /opt/leaderboard/current").strip()
    machine.run(f"sed -i 's/^version = .*/version = \"{version}.post1\"/' pyproject.toml")
    with _calls(machine, user, key) as upgraded:
        machine.run(documented.pop("upgrade"))
    _expect_version(machine, f"{version}.post1")
    with _calls(machine, user, key) as rolled_back:
        machine.run(documented.pop("rollback").replace("0.1.0", version))
    _expect_version(machine, version)

    with _calls(machine, user, key) as kept:
        if machine.succeeds(f"{_BROKEN_VERSION}\ndeploy/systemd/use.sh broken"):
            raise Failed("use.sh accepted a version that never becomes ready")
    machine.run(f"deploy/systemd/use.sh {version}")
    _expect_version(machine, version)

    machine.set_score(user, key, 1843)
    machine.run("systemctl start leaderboard-backup")
    machine.set_score(user, key, 7)
    machine.run(documented.pop("backup and restore"))
    within(_READY_S, "the dump's score is back", partial(machine.has_score, user, 1843))
    machine.set_score(user, key, 8)
    machine.run("cd /etc/leaderboard && runuser -u leaderboard -- /opt/leaderboard/current/bin/leaderboard verify")
    if documented.keys() != {"monitoring"}:
        raise Failed(f"sections that were not run: {', '.join(documented)}")
    requests = upgraded.result() + rolled_back.result() + kept.result()
    return f"{requests} requests during an upgrade, a rollback and a failing upgrade: none failed"


def _created(machine: _Machine, key: str) -> str:
    with contextlib.suppress(Failed):
        machine.run(
            f"curl -s -H '{_HOST}' -H 'Authorization: Bearer {key}' -H 'content-type: application/json'"
            f' -d \'{{"username": "ada"}}\' {_URL}/users'
        )
        return machine.get("/leaderboard/top/1")
    return ""


def _restarted_after_a_kill(machine: _Machine) -> None:
    for port in _PORTS:
        machine.run(f"kill -9 {_MAIN_PROCESS.format(port=port)}")
        # The old processes may answer for a moment, until systemd has ended them.
        again = f"systemctl show --value -p NRestarts leaderboard@{port} | grep -qx 1"
        ready = partial(machine.succeeds, f"{again} && curl -sf 127.0.0.1:{port}/readyz")
        within(_READY_S, f"leaderboard@{port} is back", ready)


@contextlib.contextmanager
def _calls(machine: _Machine, user: int, key: str) -> Iterator["Future[int]"]:
    """Reads and writes through nginx during the block; the result is the number of requests.

    Raises Failed if a request failed.
    """
    machine.run("rm -f /srv/stop")
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(machine.run, 'python3 -c "$1" "$2" "$3"', _CALLS, str(user), key)
        counted: Future[int] = Future()
        try:
            yield counted
        finally:
            machine.run("touch /srv/stop")
        counts = json.loads(seen.result())
    if counts.keys() != {"GET 200", "POST 200"}:
        raise Failed(f"requests through nginx while processes were restarted: {counts}")
    counted.set_result(sum(counts.values()))


def _expect_version(machine: _Machine, version: str) -> None:
    for port in _PORTS:
        running = machine.run(f"tr '\\0' ' ' </proc/{_MAIN_PROCESS.format(port=port)}/cmdline")
        if f"/opt/leaderboard/{version}/" not in running:
            raise Failed(f"leaderboard@{port} runs {running}, not {version}")


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise Failed(f"no {pattern} in\n{text}")
    return match[1]


CHECKS = (
    MACHINE_TESTS,
    Check("systemd: the commands of docs/deploy.md", _run_documentation),
    impossible(
        "systemd: a certificate, a boot of the machine",
        "they need a DNS name and a reboot",
    ),
)
