"""Schemathesis: generates valid and invalid requests from the served document, and checks the responses.

`THOROUGH=20` generates twenty times as many, with a new seed each time.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from leaderboard.config import Settings
from tests.http.contract import Caller, documented_calls
from tests.http.ledger import Ledger, valid_rows
from tests.http.schemathesis_hooks import LEAVERS
from tests.system import THOROUGH

HERE = Path(__file__).parent


def test_the_service_conforms_to_its_document(caller: Caller, tmp_path: Path) -> None:
    for number in range(1, LEAVERS.stop):
        assert caller.create(f"first {number}") == number
    assert caller.call("PUT", "/boards/left", {}).status == 201
    entries = [{"userId": number, "score": number} for number in LEAVERS]
    assert caller.post("/boards/left/scores", {"scores": entries}).status == 200
    # The server closes a connection that is idle for as long as Schemathesis takes.
    caller.close()
    seed = 2 if THOROUGH == 1 else random.randrange(10**9)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml"),
            *("run", f"{caller.api.url}/openapi.json", "--no-color"),
            *("--max-examples", str(50 * THOROUGH), "--seed", str(seed)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=600 * THOROUGH,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # It has covered every operation but the one that serves the document, and every link.
    count = len(documented_calls()) - 1
    assert f"{count} selected / {count} total" in done.stdout, done.stdout
    covered = re.search(r"API Links: +(\d+) covered / (\d+) selected / (\d+) total", done.stdout)
    assert covered, done.stdout
    assert set(covered.groups()) == {str(links(caller.contract.document))}, done.stdout


def links(document: dict[str, Any]) -> int:
    """Returns how many links the document has."""
    return sum(
        len(response.get("links", ()))
        for item in document["paths"].values()
        for operation in item.values()
        for response in operation["responses"].values()
    )


def test_all_rows_written_by_schemathesis_are_valid(ledger: Ledger, module_settings: Settings) -> None:
    assert ledger.rows.items() <= valid_rows(module_settings).items()
    ledger.check_process()
