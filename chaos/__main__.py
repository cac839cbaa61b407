"""`make chaos`: injects every fault under load, then overloads one process, and prints a table of the results.

The exit status is 1 if a promise was broken.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from chaos import overload
from chaos.faults import FAULTS
from chaos.rig import THE_WHEELS, Rig
from chaos.run import Run, table
from leaderboard.logs import set_up_logs


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600, help="how long to inject faults; each is injected at least once"
    )
    parser.add_argument("--seed", type=int, default=None, help="seed of all random choices; default: a new one")
    parser.add_argument(
        "--only", default="", help=f"only the faults whose name has this text; `{overload.NAME}` is the overload"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for servers and logs, which is kept; default: a temporary one"
    )
    parser.add_argument("--short", action="store_true", help="short durations, as in the tests")
    options = parser.parse_args()
    set_up_logs("error", "text")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big")
    faults = [fault for fault in FAULTS if options.only in fault.name]
    print(f"seed {seed}, {options.seconds:.0f} s, {len(faults)} faults", flush=True)
    chance = random.Random(seed)
    ends = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="leaderboard-chaos-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        with Rig(folder, durable=not options.short) as rig:
            run = Run(rig, long=not options.short, say=lambda line: print(line, flush=True))
            for fault in faults:
                run.inject(fault, chance.randrange(2**31))
            while faults and time.monotonic() < ends:
                run.inject(chance.choice(faults), chance.randrange(2**31), again=True)
        missed = 0
        if options.only in overload.NAME:
            overloaded = overload.measure(folder, THE_WHEELS)
            print(overloaded, flush=True)
            missed = len(overloaded.missed)
    print(table(run.results))
    return 1 if run.violations or missed else 0


if __name__ == "__main__":
    sys.exit(main())
