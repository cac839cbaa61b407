"""Runs the pods of deploy/kubernetes/trial.yaml with podman, without a cluster.

podman applies the user, the capabilities, the limits and the read-only root file system of the manifest. This
module replaces what a cluster would do: pods have the names of their Services, Secrets become plain values,
volumes are folders that all users can write to, and the probes run from outside.
"""

import base64
import contextlib
import copy
import http.client
import re
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from deploy.check import Failed, NotExercised, expect, within
from deploy.check.manifests import FOLDER
from deploy.check.podman import Podman, podman_here

Document = dict[str, Any]

_READY_S = 60
_SERVERS = ("leaderboard-postgres", "leaderboard-valkey")
_API = "leaderboard"
_RIGHTS = r"sed -nE 's/^(Uid|CapBnd|NoNewPrivs|Seccomp):[[:space:]]+([[:alnum:]]+).*/\2/p' /proc/self/status"


def play() -> str:
    """Runs PostgreSQL, Valkey and the API; inspects, uses and stops the API's container."""
    documents = [each for each in yaml.safe_load_all((FOLDER / "trial.yaml").read_text("utf-8")) if each]
    podman = podman_here("localhost/" + _container(_template(documents, _API))["image"])
    for server in _SERVERS:
        image = _container(_template(documents, server))["image"]
        full = image if "/" in image else f"library/{image}"
        if not podman.has(f"docker.io/{full}"):
            raise NotExercised(f"no image {image}; deploy/check/standins.sh builds substitutes")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        pods = _Pods(podman, documents, Path(folder))
        stack.callback(pods.remove)
        for server in _SERVERS:
            pods.start(server)
        # PostgreSQL's readiness probe; Valkey is ready at once.
        probe = _container(_template(documents, _SERVERS[0]))["readinessProbe"]["exec"]["command"]
        within(_READY_S, "PostgreSQL is ready", lambda: pods.succeeds(_SERVERS[0], "postgres", *probe))
        port = _free_port()
        pods.start(_API, port)
        return _use(pods, port)


class _Pods:
    """Starts pods of a Deployment or StatefulSet with podman, and removes them."""

    def __init__(self, podman: Podman, documents: list[Document], folder: Path) -> None:
        self._podman = podman
        self._documents = documents
        self._folder = folder
        self._started: list[str] = []

    def grace_s(self) -> int:
        return int(_template(self._documents, _API)["spec"]["terminationGracePeriodSeconds"])

    def probe_path(self, kind: str) -> str:
        return str(_container(_template(self._documents, _API))[kind]["httpGet"]["path"])

    def start(self, name: str, port: int | None = None) -> None:
        """Starts the pod of this name, with its first container's port as `port` on 127.0.0.1."""
        configs = [each for each in self._documents if each["kind"] == "ConfigMap"]
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump_all([*configs, self._pod(name, port)]), "utf-8")
        self._started.append(name)
        self._podman.run("kube", "play", str(path))

    def _pod(self, name: str, port: int | None) -> Document:
        template = copy.deepcopy(_template(self._documents, name))
        spec = template["spec"]
        for claim in _workload(self._documents, name)["spec"].get("volumeClaimTemplates", []):
            spec.setdefault("volumes", []).append({"name": claim["metadata"]["name"], "emptyDir": {}})
        for volume in spec.get("volumes", []):
            if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory":
                folder = self._folder / f"{name}-{volume['name']}"
                folder.mkdir()
                folder.chmod(0o777)
                volume.pop("emptyDir")
                volume["hostPath"] = {"path": str(folder), "type": "Directory"}
        memory = [each["name"] for each in spec.get("volumes", []) if "emptyDir" in each]
        spec["volumes"] = [each for each in spec.get("volumes", []) if each["name"] not in memory]
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                container.pop(probe, None)
            mounts = container.get("volumeMounts", [])
            container["volumeMounts"] = [each for each in mounts if each["name"] not in memory]
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    variable["value"] = self._secret(**variable.pop("valueFrom")["secretKeyRef"])
        if port is not None:
            spec["containers"][0]["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}
        # A container that exits must stay, with its exit status.
        spec["restartPolicy"] = "Never"
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": spec,
        }

    def _secret(self, name: str, key: str) -> str:
        (secret,) = [
            each for each in self._documents if each["kind"] == "Secret" and each["metadata"]["name"] == name
        ]
        return base64.b64decode(secret["data"][key]).decode()

    def succeeds(self, pod: str, container: str, *command: str) -> bool:
        try:
            self.inside(pod, container, *command)
        except Failed:
            return False
        return True

    def inside(self, pod: str, container: str, *command: str) -> str:
        return self._podman.run("exec", f"{pod}-{container}", *command).strip()

    def exit_status(self, pod: str, container: str) -> int:
        return int(self._podman.run("inspect", "--format", "{{.State.ExitCode}}", f"{pod}-{container}"))

    def stop(self, pod: str, container: str, grace_s: int) -> None:
        self._podman.run("stop", "--time", str(grace_s), f"{pod}-{container}")

    def logs(self, pod: str, container: str) -> str:
        return self._podman.run("logs", f"{pod}-{container}", accept_failure=True)

    def remove(self) -> None:
        for pod in reversed(self._started):
            self._podman.run("pod", "rm", "--force", "--time", "5", pod, accept_failure=True)


def _use(pods: _Pods, port: int) -> str:
    alive, ready = pods.probe_path("livenessProbe"), pods.probe_path("readinessProbe")
    try:
        within(_READY_S, f"{alive} answers", lambda: _get(port, alive)[0] == 200)
        within(_READY_S, f"{ready} is ok", lambda: '"status":"ok"' in _get(port, ready)[1])
    except Failed as error:
        raise Failed(f"{error}\n{pods.logs(_API, 'api')[-2000:]}") from None
    expect(
        "uid, capabilities, no new privileges, seccomp",
        pods.inside(_API, "api", "sh", "-c", _RIGHTS).split(),
        ["10001", "0" * 16, "1", "2"],
    )
    mounted = pods.inside(_API, "api", "cat", "/proc/mounts")
    expect(
        "the root file system is read-only", re.search(r"^\S+ / \S+ ro,", mounted, re.MULTILINE) is not None, True
    )
    expect("/data can be written to", pods.succeeds(_API, "api", "touch", "/data/x"), True)
    expect("POST /users", _get(port, "/users", b'{"username": "ada", "score": 1815}')[0], 201)
    expect("GET /leaderboard/top/1", '"username":"ada"' in _get(port, "/leaderboard/top/1")[1], True)
    expect("verify", "equals PostgreSQL" in pods.inside(_API, "api", "leaderboard", "verify"), True)
    return _stop(pods, port, alive, ready)


def _stop(pods: _Pods, port: int, alive: str, ready: str) -> str:
    """Stops the API as a kubelet does; it must exit within the grace period and answer until then."""
    seen: set[tuple[int, int]] = set()

    def stop() -> float:
        started = time.monotonic()
        pods.stop(_API, "api", pods.grace_s())
        return time.monotonic() - started

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop)
        while not stopping.done():
            with contextlib.suppress(OSError):
                seen.add((_get(port, alive)[0], _get(port, ready)[0]))
            time.sleep(0.05)
    expect("alive and not ready while it stops", (200, 503) in seen, True)
    expect("the exit status", pods.exit_status(_API, "api"), 0)
    return f"exited {stopping.result():.0f} s after SIGTERM; the grace period is {pods.grace_s()} s"


def _workload(documents: list[Document], name: str) -> Document:
    (found,) = [
        each
        for each in documents
        if each["kind"] in {"Deployment", "StatefulSet"} and each["metadata"]["name"] == name
    ]
    return found


def _template(documents: list[Document], name: str) -> Document:
    template: Document = _workload(documents, name)["spec"]["template"]
    return template


def _container(template: Document) -> Document:
    container: Document = template["spec"]["containers"][0]
    return container


def _get(port: int, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Returns status and text of an answer. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(
            "POST" if body else "GET", path, body, {"content-type": "application/json"} if body else {}
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
