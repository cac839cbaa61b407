"""Invalid requests at the level of bytes: framing, request lines, headers.

Granian parses HTTP. These tests check that the end of a request is never ambiguous, so that no request can be
smuggled past a proxy that parses differently.
"""

import socket

import pytest

from leaderboard.config import Settings
from leaderboard.http.requests import MAX_BODY_BYTES
from tests.http.contract import Answer, check_problem, conversation, exchange, talk
from tests.http.ledger import Ledger, refused, short

IS_JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
WELL_FORMED = b'{"username":"smuggled"}'
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


def request(*headers: str, body: bytes = b"", path: str = "/users") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


# Bodies and their declared length


def test_a_body_in_chunks(ledger: Ledger) -> None:
    def send(*parts: bytes) -> Answer:
        answer = exchange(ledger.caller.api, request(IS_JSON, CHUNKED, body=chunks(*parts)))
        assert answer is not None
        return ledger.note(answer)

    body = b'{"username":"in chunks"}'
    assert send(*(body[at : at + 1] for at in range(len(body)))).status == 201
    refused(send(body), "username_taken")
    refused(send(), "malformed_json")
    refused(send(*[b" " * 1024] * 16), "malformed_json")
    refused(send(*[b" " * 1024] * 16, b" "), "body_too_large")
    refused(send(b" " * MAX_BODY_BYTES, body), "body_too_large")
    assert send(body.replace(b"in", b"16 KiB of").ljust(MAX_BODY_BYTES)).status == 201


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 10**9, 10**18])
def test_a_body_declared_too_large_is_refused_at_once(ledger: Ledger, size: int) -> None:
    for headers in ([], ["Expect: 100-continue"]):
        answer = exchange(ledger.caller.api, request(IS_JSON, f"Content-Length: {size}", *headers))
        assert answer is not None
        refused(answer, "body_too_large")
        check_problem(answer)


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        (["Content-Length: 23"], WELL_FORMED, "unsupported_media_type"),
        (["Content-Type:", "Content-Length: 23"], WELL_FORMED, "unsupported_media_type"),
        (["Content-Type: \xff\xfe", "Content-Length: 23"], WELL_FORMED, "unsupported_media_type"),
        (["Content-Type: " + "x" * 50_000, "Content-Length: 23"], WELL_FORMED, "unsupported_media_type"),
        ([IS_JSON, "Content-Type: text/plain", "Content-Length: 23"], WELL_FORMED, "unsupported_media_type"),
        ([IS_JSON], WELL_FORMED, "malformed_json"),
        ([IS_JSON, "Content-Length: 0"], WELL_FORMED, "malformed_json"),
        ([IS_JSON, "Content-Length: 22"], WELL_FORMED, "malformed_json"),
        ([IS_JSON, "Content-Length: 24"], WELL_FORMED, "client_gone"),
        ([IS_JSON, "Content-Length: 16384"], WELL_FORMED, "client_gone"),
        ([IS_JSON, CHUNKED], b"zz\r\n" + WELL_FORMED, "client_gone"),
        ([IS_JSON, CHUNKED], b"17\r\n" + WELL_FORMED, "client_gone"),
        ([IS_JSON, CHUNKED], b"8000000000000000\r\n" + WELL_FORMED, "client_gone"),
        ([IS_JSON, CHUNKED], b"FFFFFFFFFFFFFFFFF\r\n" + WELL_FORMED, "client_gone"),
    ],
    ids=short,
)
def test_headers_that_contradict_the_body(ledger: Ledger, headers: list[str], body: bytes, code: str) -> None:
    cut_short = code == "client_gone"
    answer = exchange(ledger.caller.api, request(*headers, body=body), more_to_come=not cut_short)
    assert answer is not None
    refused(answer, code)
    check_problem(answer)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /users/a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /users/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 1000,
        b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1x\r\nHost: x\r\n\r\n",
        b"GET /livez http/1.1\r\nHost: x\r\n\r\n",
        b"G@T /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET\t/livez\tHTTP/1.1\r\nHost: x\r\n\r\n",
        b" GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /users/\xd9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"x" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        GET + b"Bad Header: x\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
        GET + b"X: a\x1bb\r\n\r\n",
        GET + b"X: a\x7fb\r\n\r\n",
        GET + b"X: a\rb\r\n\r\n",
        GET + b"X: a\r\n folded: x\r\n\r\n",
        GET + b"X\xe9: x\r\n\r\n",
        GET + b": x\r\n\r\n",
        GET + b"X" * 70_000 + b": x\r\n\r\n",
        GET + b"X: " + b"x" * 300_000 + b"\r\n\r\n",
        GET + b" folded: x\r\n\r\n",
        GET + b"no colon\r\n\r\n",
        GET + b"".join(b"X-%d: x\r\n" % number for number in range(1_000)) + b"\r\n",
        GET + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
        request(IS_JSON, "Content-Length: -1", body=WELL_FORMED),
        request(IS_JSON, "Content-Length: +23", body=WELL_FORMED),
        request(IS_JSON, "Content-Length: 0x17", body=WELL_FORMED),
        request(IS_JSON, "Content-Length: 23, 24", body=WELL_FORMED),
        request(IS_JSON, "Content-Length: 23", "Content-Length: 24", body=WELL_FORMED),
        request(IS_JSON, "Content-Length: " + "9" * 5000, body=WELL_FORMED),
        request(IS_JSON, "Content-Length: 18446744073709551615", body=WELL_FORMED),
        request(IS_JSON, "Transfer-Encoding: gzip", body=WELL_FORMED),
        request(IS_JSON, "Transfer-Encoding: chunked, gzip", body=chunks(WELL_FORMED)),
    ],
    ids=short,
)
def test_malformed_http_is_refused_by_the_server(ledger: Ledger, sent: bytes) -> None:
    answer = exchange(ledger.caller.api, sent, more_to_come=False)
    # The server may close the connection while the request is still being sent.
    if answer is not None:
        assert answer.status in {400, 414, 431}
        assert answer.body == b""
    assert ledger.caller.get("/livez").status == 200


# Where a request ends

LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HIDDEN = request(IS_JSON, "Content-Length: 23", "Connection: close", body=WELL_FORMED)
LENGTH = f"Content-Length: {len(HIDDEN) + 5}"


def test_a_request_cannot_be_smuggled_in_a_body(ledger: Ledger) -> None:
    second = request(IS_JSON, "Content-Length: 23", body=WELL_FORMED)
    both = request(IS_JSON, CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n" + second)
    answer = exchange(ledger.caller.api, both)
    assert answer is not None
    refused(answer, "malformed_json")
    assert answer.headers["connection"] == "close"
    # A refused body is not read as the next request.
    large = b" " * MAX_BODY_BYTES + second
    answer = exchange(ledger.caller.api, request(IS_JSON, f"Content-Length: {len(large)}", body=large))
    assert answer is None or answer.code == "body_too_large"


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 4", CHUNKED],
        [CHUNKED, "Content-Length: 4"],
        [CHUNKED, LENGTH],
        [LENGTH, CHUNKED],
        [CHUNKED, "Content-Length: x"],
        [CHUNKED, "Transfer-Encoding: identity"],
        ["Transfer-Encoding: identity", LENGTH],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunkedx"],
        ["Transfer-Encoding:"],
        ["Transfer-Encoding: \x0bchunked"],
        ["Transfer-Encoding: chunked\0"],
        ['Transfer-Encoding: "chunked"'],
        ["Transfer-Encoding: chunked;q=1"],
        ["Transfer-Encoding : chunked"],
        [" Transfer-Encoding: chunked"],
        ["X: x", " Transfer-Encoding: chunked"],
        ["X: x\rTransfer-Encoding: chunked"],
        ["Content-Length : 4"],
        ["Content-Length: 4 5"],
        ["Content-Length: 4,5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", f"{LENGTH}"],
        ["Content-Length: -5"],
        ["Content-Length: 5.0"],
        ["Content-Length: \xb2"],
        ["Content-Length:"],
    ],
    ids=short,
)
def test_ambiguous_framing_closes_the_connection(ledger: Ledger, headers: list[str]) -> None:
    sent = request(IS_JSON, *headers, body=b"0\r\n\r\n" + HIDDEN)
    answers = conversation(ledger.caller.api, sent)
    assert len(answers) == 1, answers
    assert answers[0].status == 400
    assert answers[0].headers["connection"] == "close"


@pytest.mark.parametrize(
    "chunk",
    [
        *(b"-0\r\n\r\n", b"+0\r\n\r\n", b"0x0\r\n\r\n", b" 0\r\n\r\n", b"\t0\r\n\r\n", b"\r\n\r\n", b"g\r\n\r\n"),
        *(b"0\n\n", b"0\r\r", b"0;\n\r\n\r\n", b"0;a\rb\r\n\r\n", b"0\0\r\n\r\n"),
        *(b"2\r\n{}0\r\n\r\n", b"2\r\n{}\n0\r\n\r\n", b"1\r\n{}\r\n0\r\n\r\n", b"3\r\n{}\r\n0\r\n\r\n"),
        *(b"1" + b"0" * 16 + b"\r\n\r\n", b"0;" + b"x" * 20_000 + b"\r\n\r\n"),
    ],
    ids=short,
)
def test_an_invalid_chunk_closes_the_connection(ledger: Ledger, chunk: bytes) -> None:
    answers = conversation(ledger.caller.api, request(IS_JSON, CHUNKED, body=chunk + HIDDEN))
    assert [answer.code for answer in answers] == ["client_gone"], answers


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([CHUNKED], b"0\r\n\r\n"),
        (["Transfer-Encoding:\tChunked \t"], b"0\r\n\r\n"),
        # One coding named twice: the last chunk still ends the body.
        (["Transfer-Encoding: chunked, chunked"], b"0\r\n\r\n"),
        ([CHUNKED], b'000;ext="a\r\n\r\n'),
        ([CHUNKED], b"0 \r\n\r\n"),
        ([CHUNKED], b"0\r\nContent-Length: 500\r\nTransfer-Encoding: x\r\n\r\n"),
        (["Content-Length: 5", "Content-Length: 5"], b"[1,2]"),
        (["Content-Length: 5 \t"], b"[1,2]"),
        (["Content-Length: 0"], b""),
        ([], b""),
        (["Content_Length: 500"], b""),
    ],
    ids=short,
)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_request_ends_where_it_says(ledger: Ledger, method: str, headers: list[str], body: bytes) -> None:
    sent = request(IS_JSON, *headers, body=body).replace(b"POST", method.encode(), 1)
    first, second = conversation(ledger.caller.api, sent + LAST)
    assert first.status in {"POST": {400, 422}, "GET": {422}, "DELETE": {405}}[method]
    assert second.body == b'{"status":"alive"}'


def test_pipelined_requests_are_answered_in_order(ledger: Ledger) -> None:
    wanted = [f"/leaderboard/top/{n}" for n in (1, 0, 3)] * 20
    sent = "".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in wanted).encode()
    answers = conversation(ledger.caller.api, sent + LAST)
    assert [answer.status for answer in answers] == [200, 422, 200] * 20 + [200]


def test_expect_100_continue_is_answered(ledger: Ledger) -> None:
    body = b'{"username":"asked for"}'
    headers = [IS_JSON, f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"]
    with socket.create_connection(("127.0.0.1", ledger.caller.api.settings.port), timeout=30) as connection:
        connection.sendall(request(*headers))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    (answer,) = conversation(ledger.caller.api, request(*headers, body=body))
    assert ledger.note(answer).status == 201


def test_other_versions_of_http_are_refused(ledger: Ledger) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    assert talk(ledger.caller.api, preface) == b"", "the connection is closed"
    upgrade = "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"
    assert b"101 Switching" not in talk(ledger.caller.api, request(*upgrade) + LAST)


# The host

HOSTS = (
    *(b"x", b"localhost:3000", b"127.0.0.1", b"[::1]", b"[::1]:3000", b"[fe80::1%25eth0]", b"A.Example.:80"),
    *(b"a_b", b"xn--bcher-kva.example", b"%C3%BC", b"x:"),
)
NO_HOSTS = (
    *(
        b"",
        b":",
        b":80",
        b"a b",
        b"a, b",
        b"a,a",
        b"a\tb",
        b"a/",
        b"/",
        b"http://a",
        b"a/../b",
        b"user@a",
        b"a?b",
        b"a#b",
    ),
    *(
        b"a:b",
        b"a:80:80",
        b"a:-1",
        b"::1",
        b"[::1",
        b"::1]",
        b"[]",
        b"[::1]x",
        b"\xff",
        b"\xc3\xbc",
        b'"><script>',
        b"a;b",
    ),
    b"a" * 50_000 + b"!",
)
TWO_HOSTS = (
    *(
        b"Host: x\r\nHost: y\r\n",
        b"Host: x\r\nhOST: x\r\n",
        b"Host: x\r\nX: y\r\nHost: x\r\n",
        b"Host:\r\nHost:\r\n",
    ),
    *(b"Host: x\r\nHost:\r\n", b"Host:\r\nHost: x\r\n", b"Host: x\r\n" * 3),
)


@pytest.mark.parametrize(
    "line", [b"GET /livez", b"POST /users", b"DELETE /users/1", b"GET /nowhere", b"OPTIONS *"]
)
@pytest.mark.parametrize("host", [b"", *(b"Host: " + host + b"\r\n" for host in NO_HOSTS), *TWO_HOSTS], ids=short)
def test_a_request_must_have_exactly_one_host(ledger: Ledger, line: bytes, host: bytes) -> None:
    head = line + b" HTTP/1.1\r\n" + host + IS_JSON.encode() + b"\r\n"
    sent = head + b"Content-Length: %d\r\n\r\n" % len(WELL_FORMED) + WELL_FORMED
    first, second = conversation(ledger.caller.api, sent + LAST)
    refused(first, "invalid_host")
    check_problem(first)
    # The request is still framed correctly.
    assert second.body == b'{"status":"alive"}'


@pytest.mark.parametrize("host", TWO_HOSTS, ids=short)
def test_the_target_of_a_request_does_not_decide_between_two_hosts(ledger: Ledger, host: bytes) -> None:
    for version in (b"1.1", b"1.0"):
        answer = exchange(ledger.caller.api, b"GET http://x/livez HTTP/" + version + b"\r\n" + host + b"\r\n")
        assert answer is not None
        refused(answer, "invalid_host")


@pytest.mark.parametrize("host", [b"", b"Host:\r\n", b"Host: x\r\n"], ids=short)
def test_http_10_needs_no_host(ledger: Ledger, host: bytes) -> None:
    answer = exchange(ledger.caller.api, b"GET /livez HTTP/1.0\r\n" + host + b"\r\n")
    assert answer is not None
    assert (answer.status, answer.body) == (200, b'{"status":"alive"}')


# Unusual but valid HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        b"\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere.example/livez HTTP/1.1\r\nHost: x\r\n\r\n",
        # The host in the target counts; the server passes it on as the header.
        b"GET http://elsewhere.example/livez HTTP/1.1\r\n\r\n",
        b"GET https://u:password@elsewhere:99/livez?x#y HTTP/1.1\r\nHost: x\r\n\r\n",  # pragma: allowlist secret
        b"GET /%6civez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez#fragment HTTP/1.1\r\nHost: x\r\n\r\n",
        *(b"GET /livez HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" for host in HOSTS),
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(95)) + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 50_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        b"GET /livez?%00=\xc3\xbc&& HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: \xff\xfe\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\nIf-None-Match: *\r\n\r\n",
    ],
    ids=short,
)
def test_unusual_but_valid_http_is_accepted(ledger: Ledger, sent: bytes) -> None:
    answer = exchange(ledger.caller.api, sent)
    assert answer is not None
    assert (answer.status, answer.body) == (200, b'{"status":"alive"}')


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"livez",
        b"elsewhere.example:443",
        b"javascript:alert(1)",
        b"//livez",
        b"/livez/../livez",
        b"/./livez",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"CONNECT", b"M-SEARCH", b"!#$%&'*+-.^_`|~", b"A" * 5000])
def test_a_target_that_is_not_a_path(ledger: Ledger, method: bytes, target: bytes) -> None:
    answers = conversation(ledger.caller.api, method + b" " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
    # CONNECT needs an authority: without one it is invalid.
    assert [(answer.status, answer.code) for answer in answers] in (
        [(404, "not_found"), (200, "")],
        [(400, "")],
    )
    assert method == b"CONNECT" or len(answers) == 2


@pytest.mark.parametrize("method", [b"OPTIONS", b"CONNECT", b"M-SEARCH", b"!#$%&'*+-.^_`|~", b"A" * 5000, b"get"])
def test_an_unknown_method_is_refused(ledger: Ledger, method: bytes) -> None:
    answers = conversation(ledger.caller.api, method + b" /livez HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
    assert [answer.code for answer in answers] == ["method_not_allowed", ""]
    assert set(answers[0].headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_another_method_in_a_header_is_not_used(ledger: Ledger) -> None:
    for header in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        answer = ledger.caller.send("GET", f"/users/{ledger.victim}", headers=[(header, "DELETE")])
        assert answer.status == 200


def test_an_encoded_line_break_ends_no_header(ledger: Ledger) -> None:
    for path in ("/%0d%0aSet-Cookie:%20a=b", "/users/1%0d%0aSet-Cookie:%20a=b", "/livez?%0d%0aSet-Cookie:%20a=b"):
        answer = ledger.caller.get(path)
        assert "set-cookie" not in answer.headers


# After all of the above


def test_no_smuggled_write_was_done(ledger: Ledger, module_settings: Settings) -> None:
    ledger.check_rows(module_settings)


def test_there_was_no_server_error(ledger: Ledger) -> None:
    ledger.check_process()
