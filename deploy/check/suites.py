"""Checks that are test files: pytest runs them with the programs that the machine has."""

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from deploy.check import ROOT, Check, Failed, NotExercised, execute, impossible

_FILE_S = 900


@dataclass(frozen=True, slots=True)
class Suite:
    """Runs a test file. The remark has the counts, and the reason for each skipped test."""

    file: str

    def __call__(self) -> str:
        """Runs the file. Raises Failed and NotExercised as `outcome` does."""
        if not (ROOT / self.file).exists():
            raise NotExercised(f"there is no {self.file}")
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            execute(
                sys.executable, "-m", "pytest", self.file, "-p", "no:cacheprovider", f"--junitxml={report}",
                timeout_s=_FILE_S, accept=(0, 1),
            )  # fmt: skip
            return outcome(report)


def outcome(report: Path) -> str:
    """Summarises a JUnit report: one line with the counts, and one per reason to skip.

    Raises Failed with the names of the failed tests, and NotExercised if all tests were skipped.
    """
    passed = 0
    failed: list[str] = []
    skipped: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
        wrong = [*case.iter("failure"), *case.iter("error")]
        skip = case.find("skipped")
        if wrong:
            message, *_ = wrong[0].get("message", "").splitlines() or [""]
            failed.append(f"failed: {case.get('name')}: {message}")
        elif skip is not None:
            skipped[skip.get("message", "")] += 1
        else:
            passed += 1
    counts = f"{passed} passed, {len(failed)} failed, {skipped.total()} skipped"
    lines = [counts, *failed, *(f"{count} skipped: {reason}" for reason, count in skipped.items())]
    if failed:
        raise Failed("\n".join(lines))
    if not passed:
        raise NotExercised("\n".join(lines))
    return "\n".join(lines)


PROXIES = (
    Check("Proxies: nginx, Caddy", Suite("tests/http/test_behind_a_proxy.py")),
    impossible("Proxies: Traefik", "no package registry has it; its configuration is in docs/deploy.md"),
)
STORES = (
    Check("PostgreSQL: TLS, URL, rights, few connections", Suite("tests/deploy/test_postgres_setups.py")),
    Check("PostgreSQL: behind PgBouncer", Suite("tests/deploy/test_pgbouncer.py")),
    Check("Redis: TLS, Cluster, Sentinel, rights", Suite("tests/deploy/test_redis_setups.py")),
)
CHART_TESTS = Check("Helm: the chart's output", Suite("tests/deploy/test_helm.py"))
VALKEY_ACCESS = Check("AWS: permissions in Valkey", Suite("tests/deploy/test_valkey_access.py"))
IMAGE_TESTS = Check("Image: the pins of the base images", Suite("tests/deploy/test_images.py"))
MACHINE_TESTS = Check("systemd: units and nginx", Suite("tests/deploy/test_machine.py"))
