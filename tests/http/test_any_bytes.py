"""Arbitrary bytes as requests: the process answers or closes the connection, never with 5xx, and keeps running."""

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from tests.http.contract import Caller, conversation, talk
from tests.http.ledger import Ledger, valid_rows
from tests.system import THOROUGH

WELL_FORMED = b'{"username":"at random"}'
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

LINES = st.sampled_from(
    b"""POST /users HTTP/1.1
POST /users/1/score HTTP/1.1
GET /livez HTTP/1.1
GET /leaderboard/top/10 HTTP/1.1
GET http://x/livez HTTP/1.1
GET /%ff%00 HTTP/1.1
HEAD / HTTP/1.0
OPTIONS * HTTP/1.1
CONNECT x:1 HTTP/1.1
DELETE /users/1
GET / HTTP/9
PRI * HTTP/2.0
GET
""".split(b"\n")
)
FIELDS = st.sampled_from(
    b"""Content-Type: application/json
Content-Encoding: gzip
Transfer-Encoding: chunked
Transfer-Encoding: gzip, chunked
Content-Length: 0
Content-Length: 24
Content-Length: 99999
Content-Length: 1e3
Connection: close
Connection: keep-alive, close, upgrade
Expect: 100-continue
Upgrade: websocket
Accept: text/html
Range: bytes=-1
TE: trailers
Trailer: X
Host:
:
 folded
""".split(b"\n")
) | st.sampled_from([b"Authorization: Bearer \xff", b"X: " + b"x" * 9000])
CHUNKS = [b"18\r\n" + WELL_FORMED + b"\r\n0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nX\r\n\r\n"]
CHUNKS += [b"5;x=y\r\nhello\r\n", b"fffffffff\r\n", b"2\r\n{}\r\n1\r\n"]
BODIES = st.sampled_from([WELL_FORMED, b"", b"\r\n", b"\0" * 20_000, *CHUNKS])
NOISE = st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b";", b"0"]) | st.binary(max_size=4)


@st.composite
def nearly_http(draw: st.DrawFn) -> bytes:
    """Returns valid requests with a few bytes changed, doubled or missing."""
    sent = b""
    for _ in range(draw(st.integers(1, 3))):
        fields = draw(st.lists(FIELDS, max_size=4, unique=True))
        sent += b"\r\n".join([draw(LINES), b"Host: x", *fields, b"", draw(BODIES)])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(sent)))
        until = min(at + draw(st.integers(0, 8)), len(sent))
        again = sent[at:until] if draw(st.booleans()) else b""
        sent = sent[:at] + again + draw(NOISE) + again + sent[until:]
    return sent


@settings(
    max_examples=300 * THOROUGH,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(nearly_http() | st.binary(max_size=2000))
def test_any_bytes_as_requests(caller: Caller, sent: bytes) -> None:
    received = talk(caller.api, sent, more_to_come=False)
    assert received == b"" or re.match(rb"HTTP/1\.[01] [1-4]", received), received
    assert not re.search(rb"HTTP/1\.[01] (?![1-4]\d\d )", received), received
    (answer,) = conversation(caller.api, LAST)
    assert answer.body == b'{"status":"alive"}'


def test_all_rows_written_are_valid(ledger: Ledger, module_settings: Settings) -> None:
    assert ledger.rows.items() <= valid_rows(module_settings).items()
    ledger.check_process()
