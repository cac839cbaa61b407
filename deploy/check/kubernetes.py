"""Checks of the Helm chart and the plain manifests, as documents; and of the trial, run by podman."""

import tempfile
from functools import partial
from pathlib import Path

from deploy.check import ROOT, Check, Failed, execute, impossible, need, pods
from deploy.check.manifests import CHART, FOLDER, stale, template
from deploy.check.suites import CHART_TESTS

COMBINATIONS = (
    (CHART / "ci" / "least-values.yaml",),
    (CHART / "ci" / "everything-values.yaml",),
    (CHART / "values-trial.yaml",),
    (CHART / "values-cloudnativepg.yaml", CHART / "values-redis-operator.yaml"),
    (FOLDER / "values.yaml",),
)
"""Complete sets of values files."""
VERSIONS = {"1.27": (), "1.30": ("--set", "preStopSeconds=20"), "1.34": (), "1.37": ("--set", "preStopSeconds=20")}
"""Kubernetes versions with options of helm: from the chart's oldest to the validator's newest."""
_ACCEPTED = {
    "CKV_K8S_11": "a CPU limit would make requests miss their deadlines",
    "CKV_K8S_15": "images are pinned by tag or digest, so they need not be pulled at every start",
    "CKV_K8S_21": "the namespace is chosen when the manifests are applied",
    "CKV_K8S_35": "the service reads its settings from the environment only",
    "CKV_K8S_40": "the images of PostgreSQL and Valkey set their uids",
    "CKV_K8S_43": "the operator sets the digest",
}
"""Findings of checkov that are accepted, with the reason."""
_STORES_ACCEPTED = {
    "CKV_K8S_8": "a restart does not help a database or cache that hangs",
    **_ACCEPTED,
}


def _lint() -> str:
    helm = need("helm")
    for values in COMBINATIONS:
        options = [option for path in values for option in ("--values", path)]
        execute(helm, "lint", "--strict", CHART, *options)
    files = [" and ".join(str(path.relative_to(ROOT)) for path in values) for values in COMBINATIONS]
    return "\n".join([f"{len(files)} sets of values", *files])


def _validate() -> str:
    validator = need("kubernetes-validate")
    with tempfile.TemporaryDirectory() as folder:
        for version, more in VERSIONS.items():
            files: list[Path] = []
            for values in COMBINATIONS:
                made = Path(folder) / f"{len(files)}.yaml"
                made.write_text(template(*values, options=("--kube-version", version, *more)), "utf-8")
                files.append(made)
            execute(validator, "--strict", "--quiet", "--no-warn", "-k", version, *files)
    return f"as Kubernetes {', '.join(VERSIONS)}"


def _fresh() -> None:
    old = stale()
    if old:
        raise Failed(f"differ from the chart's output: {', '.join(old)}; run `make manifests`")


def _scan(name: str, accepted: dict[str, str]) -> str:
    execute(
        need("checkov"), "--file", FOLDER / name, "--framework", "kubernetes", "--skip-download", "--compact",
        "--quiet", "--skip-check", ",".join(accepted),
    )  # fmt: skip
    return f"{len(accepted)} kinds of findings are accepted, with reasons"


def _trivy() -> None:
    execute(
        need("trivy"), "config", "--skip-check-update", "--exit-code", "1", "--severity", "HIGH,CRITICAL", FOLDER
    )


CHECKS = (
    Check("Helm: lint --strict, each set of values", _lint),
    Check("Helm: documents are valid", _validate),
    CHART_TESTS,
    Check("Kubernetes: plain manifests equal the chart's output", _fresh),
    Check("Kubernetes: checkov, service", partial(_scan, "leaderboard.yaml", _ACCEPTED)),
    Check("Kubernetes: checkov, migration", partial(_scan, "migrate.yaml", _ACCEPTED)),
    Check("Kubernetes: checkov, trial", partial(_scan, "trial.yaml", _STORES_ACCEPTED)),
    Check("Kubernetes: trivy", _trivy),
    Check("Kubernetes: the trial's pods, by podman", pods.play),
    impossible("Kubernetes: HPA, PDB, NetworkPolicy, spread", "they need a control plane with nodes"),
    impossible("Kubernetes: admission, hooks, rollout, probes by kubelet", "they need a control plane with nodes"),
    impossible(
        "Kubernetes: operators' Cluster, Redis, ServiceMonitor", "they need the operators' own definitions"
    ),
)
