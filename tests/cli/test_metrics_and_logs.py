"""A log event is one line without escape sequences, whether we log it or a library does."""

import json
import re
import socket
import subprocess
import sys
from typing import Any

import pytest

FORGED = "2026-01-01T00:00:00Z [info     ] all is well"
STRANGE = f"a\n{FORGED}\r\x1b[2J\0\x7f\x85\x9b31m\u2028\u2029\u202e\u2066\udcff\ud800é😀\\"
SECRET = "the-key-of-a-request"  # pragma: allowlist secret

PREPARE = f"""
import logging, sys, traceback, warnings
import structlog
from leaderboard.logs import set_up_logs
strange = {STRANGE!r}
set_up_logs("debug", sys.argv[1])
log, other = structlog.get_logger(), logging.getLogger("other")

class Strange:
    def __repr__(self):
        return strange

def fail(depth=0):
    secret = "-".join(["the", "key", "of", "a", "request"])
    if depth:
        fail(depth - 1)
    raise ValueError(strange)
"""


def logged(style: str, program: str) -> str:
    """Return what a program writes on standard error. It has a logger of ours, `log`, and a library's, `other`."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + program, style], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == b""
    return done.stderr.decode()


def json_lines(text: str) -> list[dict[str, Any]]:
    assert re.fullmatch(r"[ -~\n]*", text), "plain ASCII"
    return [json.loads(line) for line in text.splitlines()]


def text_lines(text: str) -> list[str]:
    """Return a text for each event: its line and the marked lines that continue it."""
    lines = text.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), text
    assert FORGED not in lines
    events: list[str] = []
    for line in lines:
        if line.startswith("  | "):
            events[-1] += f"\n{line}"
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+Z \[\w+ *\] ", line), line
            events.append(line)
    return events


EVERYWHERE = """
log.info(strange)
log.info("value", path=strange)
log.info("key", **{strange: 1})
log.info("several", first=[strange], pair=(strange, strange), table={strange: strange})
log.info("object", it=Strange())
log.info("columns", logger=strange, logger_name=strange, stack=strange)
other.warning(strange)
other.warning("by arguments: %s %r", strange, Strange())
other.warning("with a stack", stack_info=True)
warnings.warn(strange)
"""


def test_text_is_escaped_and_one_line_for_each_event() -> None:
    events = text_lines(logged("text", EVERYWHERE))
    assert len(events) == 10
    for event in events:
        assert "with a stack" in event or r"\x1b[2J" in event
        assert "with a stack" in event or r"\u202e" in event


def test_json_is_ascii_and_decodes_to_what_was_logged() -> None:
    lines = json_lines(logged("json", EVERYWHERE))
    assert len(lines) == 10
    # Some JSON readers reject lone surrogates.
    meant = STRANGE.replace("\udcff", r"\udcff").replace("\ud800", r"\ud800")
    assert lines[0]["event"] == lines[1]["path"] == lines[6]["event"] == meant
    assert lines[2][meant] == 1
    assert lines[3]["first"] == [meant]
    assert lines[4]["it"] == meant


FAILURES = """
try:
    try:
        fail()
    except ValueError as error:
        raise KeyError(strange) from error
except KeyError as error:
    log.exception("ours")
    log.error("ours", exc_info=error)
    other.exception("theirs")
    other.error(traceback.format_exc())
"""


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_traceback_is_complete_and_has_no_local_variables(style: str) -> None:
    text = logged(style, FAILURES)
    events = [line["event"] for line in json_lines(text)] if style == "json" else text_lines(text)
    assert len(events) == 4
    assert text.count("direct cause") == 4
    assert text.count("in fail") == 4
    assert text.count("ValueError: a") == 4
    assert SECRET not in text


def test_a_log_line_without_an_exception_has_no_traceback() -> None:
    (event,) = text_lines(logged("text", 'log.error("none", exc_info=True)'))
    assert event.endswith("none")


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize(
    "program",
    [
        "sys.setrecursionlimit(1200)\ntry: fail(1000)\nexcept ValueError: log.exception('deep')",
        "try: raise ValueError('x' * 1_000_000 + ' the end')\nexcept ValueError: other.exception('long')",
        "log.info('value', path='x' * 1_000_000 + ' the end', first=['x' * 1_000_000])",
        "other.warning('x' * 1_000_000 + ' the end')",
        "try: raise ExceptionGroup('many', [ValueError(strange)] * 1000)\n"
        "except ExceptionGroup: log.exception('many')",
    ],
    ids=["frames", "message", "value", "event", "group"],
)
def test_a_line_is_bounded_and_keeps_its_end(style: str, program: str) -> None:
    text = logged(style, program)
    # Each character may be written as an escape of several.
    assert len(text) < 80_000
    if style == "json":
        assert len(json_lines(text)) == 1
    else:
        assert len(text_lines(text)) == 1
    assert "the end" in text or r"ud800\u00e9" in text or r"\ud800é" in text


@pytest.mark.parametrize("style", ["json", "text"])
def test_an_event_is_one_write(style: str) -> None:
    """Otherwise the lines of several processes would mix. In this socket each write is a message of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = """
strange *= 100
try: fail()
except ValueError: log.exception("ours")
try: fail()
except ValueError: other.exception("theirs")
"""
    with ours, theirs:
        command = [sys.executable, "-c", PREPARE + program, style]
        with subprocess.Popen(command, stderr=theirs.fileno()) as process:
            written = [ours.recv(1_000_000) for _ in range(2)]
        assert process.returncode == 0
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
    assert [data.endswith(b"\n") for data in written] == [True, True]
    assert [name in data for name, data in zip((b"ours", b"theirs"), written, strict=True)] == [True, True]


def test_the_level_applies_to_libraries() -> None:
    program = 'log.warning("a"); other.warning("b"); log.error("c"); other.error("d")'
    events = text_lines(logged("text", f'set_up_logs("error", "text")\n{program}'))
    assert [event.split()[-1] for event in events] == ["c", "d"]
