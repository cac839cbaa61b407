"""Injects every fault once, for a short time. `make chaos` does so at length and checks times too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.faults import FAULTS, Fault
from chaos.rig import Rig, Servers
from chaos.run import Run


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, module_folder: Path) -> Iterator[Run]:
    servers = Servers(request.config.getoption("--postgres-bin"), request.config.getoption("--redis-binary"))
    folder = module_folder / "chaos"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    # Redis keeps its usual deadline, because some faults make it hang.
    patient = {"request_timeout_ms": 60_000, "db_timeout_ms": 60_000}
    with Rig(folder, servers, durable=False, settings=patient) as rig:
        yield Run(rig, long=False, say=print, timed=False)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_promises_are_kept(run: Run, fault: Fault) -> None:
    verdict = run.inject(fault, seed=1)
    assert not verdict.violations, {kind: texts for kind, texts in verdict.wrong.items() if texts}
    assert verdict.reads > 0
    assert verdict.writes > 0


def test_the_rank_index_and_the_cache_of_seasons_are_at_work_meanwhile(run: Run) -> None:
    fault = next(fault for fault in FAULTS if "more than the log lists" in fault.name)
    verdict = run.inject(fault, seed=2)
    result = run.results[fault.name]
    assert not verdict.violations
    assert min(result.work) > 0, result.work
