"""Bad input of every kind: each refused as design §3 says, all that is wrong named at once, and nothing written.

What is accepted on the way is kept in a ledger; in the end the table must be the ledger, row for row.
"""
# ruff: noqa: RUF001 - letters that look like others belong here

import json
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.http.wire import MAX_BODY
from leaderboard.model import INT32_MAX, INT32_MIN
from tests.http.contract import Answer, Caller, check_problem, documented_calls, exchange
from tests.system import sql

Row = tuple[str, str | None, int]


class Ledger:
    """Sends writes and keeps what was acknowledged: id → name, image, score."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.rows: dict[int, Row] = {}
        self.victim = self.note(caller.post("/users", {"username": "victim"})).json()["userId"]

    def post(self, path: str, body: Any) -> Answer:
        return self.note(self.caller.post(path, body))

    def create(self, body: Any) -> Answer:
        return self.post("/users", body)

    def set(self, body: Any) -> Answer:
        return self.post(f"/users/{self.victim}/score", body)

    def note(self, answer: Answer) -> Answer:
        assert answer.status < 500, answer
        if answer.status in (200, 201):
            user = answer.json()
            self.rows[user["userId"]] = (user["username"], user["imageUrl"], user["score"])
        return answer


@pytest.fixture(scope="module")
def ledger(caller: Caller) -> Ledger:
    return Ledger(caller)


def short(value: object) -> str:
    return ascii(value)[:40]


def refused(answer: Answer, code: str, *fields: str) -> None:
    assert answer.code == code, answer
    if fields:
        assert set(answer.fields) == set(fields), answer


# JSON

MALFORMED: list[bytes] = [
    b"",
    b" \n",
    b"\0",
    b"\xff" * 100,
    b"{",
    b"}",
    b"{}}",
    b'{"username"',
    b'{"username":}',
    b'{"username":"cut',
    b'{"username":"cut\\',
    b'{"username":"cut\\ud83d',
    b'{"username":"a"} x',
    b'{"username":"a"}{"username":"b"}',
    b'{"username":"a"}\n{"username":"b"}\n',
    b'{"username":"a",}',
    b'{"username":"a" "score":1}',
    b'{,"username":"a"}',
    b"{'username':'a'}",
    b"{username:1}",
    b'{"username":"a"/* a comment */}',
    b'{"username":"a"} // a comment',
    b'{"username":"\\x41"}',
    b'{"username":"\\u12"}',
    b'{"username":"a\nb"}',
    b'{"username":"a\0b"}',
    b'{"username":"\xe9"}',
    b'{"username":"\xc0\xaf"}',
    b'{"username":"\xed\xa0\x80"}',
    b'{"username":"\xf4\x90\x80\x80"}',
    b'\xef\xbb\xbf{"username":"a"}',
    '{"username":"a"}'.encode("utf-16"),
    '{"username":"a"}'.encode("utf-16-le"),
    '{"username":"a"}'.encode("utf-16-be"),
    '{"username":"a"}'.encode("utf-32"),
    b"username=a&score=1",
    b"<user><username>a</username></user>",
    b"undefined",
    b'{"username":"a","username":"a"}',
    b'{"username":"a","score":1,"score":2}',
    b'{"username":"a","score":1,"\\u0073core":2}',
    b'{"username":"a","x":{"y":[{"z":1,"z":1}]}}',
    b'{"\\ud800":1,"\\ud800":1}',
    b"NaN",
    b"[NaN]",
    b'{"username":"a","x":[[Infinity]]}',
    *(b'{"username":"a","score":%s}' % number for number in (b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf")),
    *(
        b'{"username":"a","score":%s}' % number
        for number in (b"+5", b"05", b"-05", b"5.", b".5", b"0x5", b"5e", b"1_0")
    ),
    b'{"username":"a","score":%s}' % (b"0" * 5000),
    b'{"username":"a","score":- 1}',
    b"[" * 10_000,
    b'{"a":' * 3_000,
    b'[{"a":' * 2_000,
]


@pytest.mark.parametrize("body", MALFORMED, ids=short)
def test_a_body_that_is_not_json(ledger: Ledger, body: bytes) -> None:
    refused(ledger.create(body), "malformed_json")
    refused(ledger.set(body), "malformed_json")


TOO_DEEP = [
    b"[" * 8_000 + b"]" * 8_000,
    b'{"a":' * 2_700 + b"1" + b"}" * 2_700,
    b'{"username":' + b"[" * 8_000 + b"]" * 8_000 + b"}",
    b'{"username":"deep","x":' + b'[{"":' * 2_000 + b"0" + b"}]" * 2_000 + b"}",
]


@pytest.mark.parametrize("body", TOO_DEEP, ids=short)
def test_nested_too_deep(ledger: Ledger, body: bytes) -> None:
    assert len(body) <= MAX_BODY
    refused(ledger.create(body), "malformed_json")
    refused(ledger.set(body), "malformed_json")


@pytest.mark.parametrize(
    "body", ["[]", "[{}]", '"a"', '""', "5", "5.0", "-0", "1e400", "9" * 5000, "true", "null"]
)
def test_a_body_must_be_an_object(ledger: Ledger, body: str) -> None:
    refused(ledger.create(body), "invalid_field", "body")
    refused(ledger.set(body), "invalid_field", "body")


NOT_INT32 = ["1e400", "-1e400", "1e" + "9" * 5000, "1E2", "1e0", "5.0", "0.0", "-0.0", "0." + "1" * 5000, "5e-324"]
NOT_INT32 += [str(2**31), str(-(2**31) - 1), str(2**53 + 1), str(2**63), str(2**64), "9" * 5000, "-" + "9" * 5000]
NOT_INT32 += ["true", "false", '"5"', '""', '"\\u0000"', "null", "[]", "{}", "[5]", '{"score":5}']


@pytest.mark.parametrize("number", NOT_INT32, ids=short)
def test_a_score_that_is_no_int32(ledger: Ledger, number: str) -> None:
    refused(ledger.set(f'{{"score":{number}}}'), "invalid_field", "score")
    answer = ledger.create(f'{{"username":"\\u0000","score":{number},"imageUrl":1,"\\ud800":2}}')
    refused(answer, "invalid_field", "username", "score", "imageUrl", "\\ud800")


@pytest.mark.parametrize(
    ("number", "score"), [("-0", 0), ("0", 0), (str(INT32_MAX), INT32_MAX), (str(INT32_MIN), INT32_MIN)]
)
def test_a_score_at_the_edge(ledger: Ledger, number: str, score: int) -> None:
    answer = ledger.set(f' {{\t"score" :\r\n{number} }} ')
    assert (answer.status, answer.json()["score"]) == (200, score)
    # Not "-0", which some readers take for a number with a fraction.
    assert f'"score":{score},'.encode() in answer.body


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("", ""),
        (" username", " username"),
        ("Username", "Username"),
        ("username\0", "username\0"),
        ("userId", "userId"),
        ("__proto__", "__proto__"),
        ("\ud800", "\\ud800"),
        ("\udfff\ud800", "\\udfff\\ud800"),
        ("x" * 10_000, "x" * 500 + "…"),
        ("\ud800" * 2_000, "\\ud800" * 500 + "…"),
        ("<script>", "<script>"),
    ],
    ids=short,
)
def test_an_unknown_field_is_named(ledger: Ledger, name: str, named: str) -> None:
    refused(ledger.create({"username": 5, name: 1}), "invalid_field", "username", named)
    refused(ledger.set({"score": "5", name: 1}), "invalid_field", "score", named)


@pytest.mark.parametrize("value", [None, 5, 5.5, True, [], {}, ["a"], {"username": "a"}])
def test_text_fields_take_text_only(ledger: Ledger, value: object) -> None:
    fields = {"username", "imageUrl"} - ({"imageUrl"} if value is None else set())
    refused(ledger.create({"username": value, "imageUrl": value}), "invalid_field", *fields)


# Names

BAD_NAMES = [
    "",
    " ",
    " \t\r\n\u3000\u2003",
    "a" * 129,
    "\U0001d538" * 129,
    "\u00e9" * 129,
    "a" + "\u0301" * 2_000,
    "a\0",
    "\0",
    "a\x1bb",
    "a\x7fb",
    "a\x85b",
    "a\nb",
    "a\u2028b",
    "\ud800",
    "a\udc80",
    "\udc00\ud800",
    "a\u202eb",
    "\u202a",
    "a\u2066b\u2069",
    "a\u0378",
    "a\ufffe",
    "\U0010ffff",
    "\u200b",
    "\u200d\ufe0f",
    "\u3164",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=short)
def test_a_name_that_is_none(ledger: Ledger, name: str) -> None:
    refused(ledger.create({"username": name}), "invalid_field", "username")
    answer = ledger.create({"username": name, "score": 2**31, "imageUrl": "data:,", "admin": 1})
    refused(answer, "invalid_field", "username", "score", "imageUrl", "admin")


STRANGE_NAMES = [
    "'; DROP TABLE users; --",
    "1' OR '1'='1",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "${jndi:ldap://x/a}",
    "%s%n %(x)s {0} {x}",
    "../../etc/passwd",
    "C:\\\\",
    "\\u0041",
    '"',
    "NULL",
    "0",
    "раураl",
    "ab\u200bc",
    "می\u200cخواهم",
    "ab\u200fc",
    "👨\u200d👩\u200d👧",
    "\ue000\U0010fffd",
    "Z" + "\u0301" * 120,
    "😀" * 128,
]


@pytest.mark.parametrize("name", STRANGE_NAMES, ids=short)
def test_a_strange_name_is_a_name(ledger: Ledger, name: str) -> None:
    answer = ledger.create({"username": name, "score": INT32_MAX})
    assert answer.status == 201
    user_id = answer.json()["userId"]
    everyone = ledger.caller.get("/leaderboard/top/10000").json()["users"]
    (listed,) = [user["username"] for user in everyone if user["userId"] == user_id]
    stored = ledger.rows[user_id][0]
    assert listed == stored == ledger.caller.get(f"/users/{user_id}").json()["username"]
    refused(ledger.create({"username": name}), "username_taken")
    page = ledger.caller.get("/", Accept="text/html").body
    assert b"<script>alert" not in page
    assert b"<img src=x" not in page


def test_names_that_become_the_same_are_one(ledger: Ledger) -> None:
    assert ledger.create({"username": "e\u0301" * 128}).json()["username"] == "\u00e9" * 128
    refused(ledger.create({"username": "\u00e9" * 128}), "username_taken")
    # Too long as sent and still too long as it would be stored.
    refused(ledger.create({"username": "e\u0301" * 129}), "invalid_field", "username")


# URLs

HOST = "https://img.example.com/"
BAD_URLS = [
    "",
    " ",
    "a",
    "/a.png",
    "//img.example.com/a.png",
    "javascript:alert(1)",
    "JAVASCRIPT:alert(1)",
    "java\nscript:alert(1)",
    "data:image/png;base64,AAAA",
    "file:///etc/passwd",
    "ftp://img.example.com/",
    "https:img.example.com",
    "https:\\\\img.example.com",
    "https://",
    "https:///a.png",
    "https://:443/",
    "https://user:password@img.example.com/",
    "https://user@img.example.com/",
    "https://img.example.com:99999/",
    "https://img.example.com:0/",
    "https://img.example.com:x/",
    "https://img.example.com:/",
    "https://[::1/",
    "https://[zz]/",
    "https://[1.2.3.4]/",
    "https://bücher.example/",
    "https://img.example.com/ü.png",
    "https://img.example.com/\ud800",
    "https://img.example.com/\0",
    "https://img.example.com/a b",
    " https://img.example.com/",
    "https://img.example.com/\n",
    "https://img.example.com/\u202e",
    "https://img.example.com/%",
    'https://img.example.com/"onerror=',
    "https://-x.example/",
    "https://" + "a" * 64 + ".example/",
    HOST + "a" * (2049 - len(HOST)),
    HOST + "a" * 10_000,
]


@pytest.mark.parametrize("url", BAD_URLS, ids=short)
def test_an_image_url_that_is_none(ledger: Ledger, url: str) -> None:
    refused(ledger.create({"username": "with a url", "imageUrl": url}), "invalid_field", "imageUrl")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "HTTPS://IMG.EXAMPLE.COM:443/?a=%C3%BC&b",
        "https://[2001:db8::1]:8080/a",
        "https://xn--bcher-kva.example/#top",
        HOST + "a" * (2048 - len(HOST)),
    ],
    ids=short,
)
def test_an_image_url_is_kept_as_it_is(ledger: Ledger, url: str) -> None:
    answer = ledger.create({"username": f"at {len(url)} {url[:50]}", "imageUrl": url})
    assert (answer.status, answer.json()["imageUrl"]) == (201, url)


# What travels around the body, on a bare socket


def request(*headers: str, body: bytes = b"", path: str = "/users") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


IS_JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


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
    refused(send(b" " * MAX_BODY, body), "body_too_large")
    assert send(body.replace(b"in", b"16 KiB of").ljust(MAX_BODY)).status == 201


@pytest.mark.parametrize("size", [MAX_BODY + 1, 10**9, 10**18])
def test_a_body_that_says_it_is_too_large_is_not_waited_for(ledger: Ledger, size: int) -> None:
    for headers in ([], ["Expect: 100-continue"]):
        answer = exchange(ledger.caller.api, request(IS_JSON, f"Content-Length: {size}", *headers))
        assert answer is not None
        refused(answer, "body_too_large")
        check_problem(answer)


WELL_FORMED = b'{"username":"smuggled"}'


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
        ([IS_JSON, CHUNKED], b"FFFFFFFFFFFFFFFFF\r\n" + WELL_FORMED, "client_gone"),
    ],
    ids=short,
)
def test_headers_that_do_not_fit_the_body(ledger: Ledger, headers: list[str], body: bytes, code: str) -> None:
    cut_short = code == "client_gone"
    answer = exchange(ledger.caller.api, request(*headers, body=body), more_to_come=not cut_short)
    assert answer is not None
    refused(answer, code)
    check_problem(answer)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


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
        GET + b"Bad Header: x\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
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
def test_what_is_not_http_is_refused_by_the_server(ledger: Ledger, sent: bytes) -> None:
    answer = exchange(ledger.caller.api, sent, more_to_come=False)
    # It may hang up on us while we are still sending.
    if answer is not None:
        assert answer.status in {400, 414, 431}
        assert answer.body == b""
    assert ledger.caller.get("/livez").status == 200


def test_a_request_cannot_be_smuggled_behind_another(ledger: Ledger) -> None:
    second = request(IS_JSON, "Content-Length: 23", body=WELL_FORMED)
    both = request(IS_JSON, CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n" + second)
    answer = exchange(ledger.caller.api, both)
    assert answer is not None
    refused(answer, "malformed_json")
    assert answer.headers["connection"] == "close"
    # A refused body is not read as the next request.
    large = b" " * MAX_BODY + second
    answer = exchange(ledger.caller.api, request(IS_JSON, f"Content-Length: {len(large)}", body=large))
    assert answer is None or answer.code == "body_too_large"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        b"\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere.example/livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez?%00=\xc3\xbc&& HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: \xff\xfe\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\nIf-None-Match: *\r\n\r\n",
    ],
    ids=short,
)
def test_odd_but_http(ledger: Ledger, sent: bytes) -> None:
    answer = exchange(ledger.caller.api, sent)
    assert answer is not None
    assert (answer.status, answer.body) == (200, b'{"status":"alive"}')


@pytest.mark.parametrize("path", ["/assets/../openapi.json", "/assets/%2e%2e/style.css", "/assets/..%2fpages.py"])
def test_nothing_but_the_assets_is_an_asset(caller: Caller, path: str) -> None:
    assert caller.get(path).code == "not_found"


# Any input at all

ANY_TEXT = st.text(st.characters(codec=None), max_size=200)
FIELD = st.sampled_from(["username", "score", "imageUrl"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT | FIELD, inner, max_size=4)
)
OBJECTS = st.dictionaries(FIELD | ANY_TEXT, SCALARS | VALUES, max_size=4)
NEARLY = st.sampled_from([b'{"username":"nearly","score":5}', b'{"score":-2147483648,"imageUrl":null}', b"{}"])
PIECES = st.sampled_from(
    [b"{", b"}", b"[", b'"', b":", b",", b"\\u", b"\\ud800", b"1e9", b"-", b"NaN", b"\xed", b"\0"]
)
BROKEN = st.tuples(NEARLY, st.integers(0, 40), st.integers(0, 40), PIECES).map(
    lambda t: t[0][: t[1]] + t[3] + t[0][t[2] :]
)
# One process for all examples is what is wanted; what they wrote is in the ledger.
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WRITE_CODES = {"", "malformed_json", "invalid_field", "username_taken", "body_too_large"}


def check_write(ledger: Ledger, body: bytes) -> None:
    for answer in (ledger.create(body), ledger.set(body)):
        assert answer.code in WRITE_CODES
        assert (answer.code == "") == (answer.status in (200, 201))


@MANY
@given(VALUES | OBJECTS)
def test_any_json_value_as_body(ledger: Ledger, value: object) -> None:
    check_write(ledger, json.dumps(value).encode())


@MANY
@given(st.binary(max_size=200) | BROKEN | st.integers(MAX_BODY - 1, MAX_BODY + 2).map(bytes))
def test_any_bytes_as_body(ledger: Ledger, body: bytes) -> None:
    check_write(ledger, body)


SEGMENTS = ANY_TEXT | st.text(st.sampled_from("0123456789+-_. %/\0\n٣１e"), max_size=12) | st.integers().map(str)


@MANY
@given(st.sampled_from(documented_calls()), SEGMENTS, st.booleans())
def test_any_text_as_a_path(ledger: Ledger, call: tuple[str, str], text: str, safe: bool) -> None:
    segment = quote(text.encode("utf-8", "surrogatepass"), safe="%/+" if safe else "")
    method, template = call
    path = template.replace("{id}", segment).replace("{n}", segment)
    if path == template:
        path += segment
    if unquote(path).endswith("\n"):
        path += "x"  # see the known fault at the end
    answer = ledger.caller.send(method, path, b'{"score":1}' if method == "POST" else None)
    assert answer.status < 500
    if answer.status == 200 and method == "POST":
        ledger.note(answer)


# Laws of all of the above


def test_nothing_was_written_but_what_was_acknowledged(ledger: Ledger, module_settings: Settings) -> None:
    rows = sql(module_settings, "SELECT user_id, user_name, image_url, total_score FROM users")
    assert {row["user_id"]: tuple(row)[1:] for row in rows} == ledger.rows
    assert "smuggled" not in {row["user_name"] for row in rows}


def test_nothing_went_wrong_on_our_side(ledger: Ledger) -> None:
    counts = [line for line in ledger.caller.get("/metrics").body.decode().splitlines() if 'status="5' in line]
    # While it started it was not ready.
    assert not [line for line in counts if "/readyz" not in line]


def test_a_length_with_thousands_of_leading_zeros(ledger: Ledger) -> None:
    body = b'{"username":"zeros"}'
    answer = exchange(ledger.caller.api, request(IS_JSON, f"Content-Length: {len(body):05000d}", body=body))
    assert answer is None or answer.status < 500


@pytest.mark.parametrize("path", ["/livez%0A", "/%0A", "/users/1/score%0A", "/leaderboard/user/1/context%0A"])
def test_a_line_break_after_a_path(caller: Caller, path: str) -> None:
    assert caller.get(path).code == "not_found"
