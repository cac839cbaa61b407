"""`make bench-boards`: measures many boards beside `default`, and large boards beside small ones."""

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from bench import wrk
from bench.boards import report
from bench.boards.measure import measure
from bench.boards.plan import NEEDS_LOAD, PARTS, QUICK, BadPlan, Plan
from bench.boards.result import Result
from bench.progress import Progress
from leaderboard.logs import set_up_logs

LIMIT_S = 5400
_DOCS = Path(__file__).parents[2] / "docs"
_SIZES = {
    "users": "users of `default` beside many boards",
    "entries": "entries of each of many boards",
    "large": "entries of the large board, for `ends` and `depth`",
    "small": "entries of the small board, for `depth`",
}


def main() -> int:
    """Measures and reports."""
    arguments = parser()
    options = arguments.parse_args()
    if sys.platform != "linux":
        arguments.error("it needs Linux, whose /proc tells how much CPU is used by whom")
    try:
        plan = plan_of(options)
        if NEEDS_LOAD.intersection(plan.parts):
            wrk.find()
    except BadPlan as error:
        arguments.error(str(error))
    except wrk.NoWrk as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if options.docs and (options.quick or options.only):
        arguments.error("--docs needs all results: leave out --quick and --only")
    set_up_logs("error", "text")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped on the way out

    result = asyncio.run(_measure(plan))
    print(f"\n{report.text(result)}", flush=True)
    if options.json:
        report.write_json(options.json, result)
    if options.docs:
        report.write_docs(_DOCS / "performance.md", result)
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    found = argparse.ArgumentParser(prog="python -m bench.boards", description=__doc__)
    found.add_argument("--quick", action="store_true", help="smaller sizes, for which a few minutes are enough")
    found.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    found.add_argument("--boards", type=numbers, metavar='"N N"', help="over how many boards requests are spread")
    for name, text in _SIZES.items():
        found.add_argument(f"--{name}", type=int, metavar="N", help=text)
    found.add_argument("--rounds", type=int, metavar="N", help="how often each load is measured")
    found.add_argument("--seconds", type=float, metavar="S", help="about how long to measure each figure")
    found.add_argument(
        "--idle", type=float, metavar="S", dest="idle_s", help="how long to measure without requests"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    found.add_argument("--docs", action="store_true", help="write the results into docs/performance.md")
    return found


def plan_of(options: argparse.Namespace) -> Plan:
    """Returns the plan that the options describe. Raises BadPlan."""
    sizes = {
        name: value
        for name in ("boards", *_SIZES, "rounds", "seconds", "idle_s")
        if (value := getattr(options, name)) is not None
    }
    return replace(QUICK if options.quick else Plan(), parts=tuple(options.only or PARTS), **sizes)


def numbers(text: str) -> list[int]:
    """Returns the numbers in the text, the smallest first."""
    return sorted({int(number) for number in text.split()})


async def _measure(plan: Plan) -> Result:
    async with asyncio.timeout(LIMIT_S):
        return await measure(plan, Progress())


if __name__ == "__main__":
    sys.exit(main())
