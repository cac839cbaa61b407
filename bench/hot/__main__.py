"""`make bench`: measures the hot path, the limits of its parts, and a plain design."""

import argparse
import asyncio
import importlib.util
import signal
import sys
from pathlib import Path

from bench import wrk
from bench.hot import report
from bench.hot.measure import Plan, measure
from bench.hot.result import NULL, OURS, PLAIN, Result
from bench.hot.work import MOSTLY_READS, READS, SET_SCORE
from bench.progress import Progress
from bench.servers import servers
from leaderboard.logs import set_up_logs

FULL = Plan(users=1_000_000, rounds=3, seconds=2)
QUICK = Plan(
    users=1_000_000,
    rounds=3,
    seconds=0.8,
    contestants=(NULL, PLAIN, OURS),
    works=(*READS, MOSTLY_READS, SET_SCORE),
    only_many=True,
    limits=False,
)
TOLERANCE = 0.15
"""With --quick, a target may be missed by this share, because machines vary."""
LIMIT_S = 900
_DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Measures and reports. With --quick, returns 1 if a target is missed by more than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m bench.hot", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="measure only what the targets need; exit 1 if one is missed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results as SVG")
    parser.add_argument(
        "--docs", action="store_true", help="write the results into docs/performance.md and docs/hot.svg"
    )
    options = parser.parse_args()
    if (options.plot or options.docs) and importlib.util.find_spec("ziaplot") is None:
        parser.error("to draw, ziaplot is needed: pip install --require-hashes -r requirements-bench.txt")
    if options.quick and options.docs:
        parser.error("--docs needs all results: leave out --quick")
    if sys.platform != "linux":
        parser.error("it needs Linux, whose /proc tells how much CPU is used by whom")
    try:
        wrk.find()
    except wrk.NoWrk as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    set_up_logs("error", "text")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped on exit

    async def work() -> Result:
        with servers(log_level="error", stop_delay_ms=0) as settings:
            async with asyncio.timeout(LIMIT_S):
                return await measure(settings, QUICK if options.quick else FULL, Progress())

    result = asyncio.run(work())
    print(f"\n{report.text(result)}", flush=True)
    if options.json:
        report.write_json(options.json, result)
    if options.plot:
        report.write_plot(options.plot, result)
    if options.docs:
        report.write_docs(_DOCS / "performance.md", _DOCS / "hot.svg", result)
    missed = [target for target in report.targets(result) if target.missed_by > TOLERANCE]
    return 1 if options.quick and missed else 0


if __name__ == "__main__":
    sys.exit(main())
