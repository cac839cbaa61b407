"""Being told to stop: at once, once or twice, alone or with the terminal's whole process group."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.system import ApiProcess, eventually


@pytest.mark.parametrize("how", ["ctrl-c", "group", "process"])
def test_it_stops_at_once(serve: Callable[..., ApiProcess], how: str) -> None:
    """Granian's worker hung until it was killed, 4 s later, when it was told twice: 1 time in 20 by Ctrl-C."""
    for _ in range(5):
        api = serve(workers=2)
        assert api.create(f"user {time.monotonic()}").status_code == 201
        assert api.process is not None
        started = time.monotonic()
        match how:
            case "ctrl-c":
                os.killpg(api.process.pid, signal.SIGINT)
            case "group":
                os.killpg(api.process.pid, signal.SIGTERM)
            case "process":
                api.process.terminate()
        assert api.process.wait(10) == 0
        assert time.monotonic() - started < 3
        group = api.process.pid
        eventually(lambda group=group: not alive(group), 2, "none of its processes is left")  # type: ignore[misc]
        api.process = None


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
