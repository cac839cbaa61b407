"""Values that have broken programs before, as data: the tests carry each to every place where it can go.

What is listed as bad is refused wherever it is a value of that kind; what is listed as strange is taken as it is.
"""
# ruff: noqa: RUF001 - letters that look like others belong here

# Whole bodies

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
    b'\x0c{"username":"a"}',
    b'\xc2\xa0{"username":"a"}',
    b'{"username":"a"}\xef\xbb\xbf',
    b'\xff\xfe{"username":"a"}',
    b"+ADw-{}",
    b'{"username":"\xf8\x88\x80\x80\x80"}',
    b'{"username":"\xc1\xb3"}',
    b'{"score":1e}',
    b'{"score":--1}',
    b'{"score":1 000}',
    b'{"score":\xd9\xa3}',
    b'{"score":TRUE}',
    b'{"score":True}',
    b'{"score":None}',
    b"0x7b7d",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
]

TOO_DEEP = [
    b"[" * 8_000 + b"]" * 8_000,
    b'{"a":' * 2_700 + b"1" + b"}" * 2_700,
    b'{"username":' + b"[" * 8_000 + b"]" * 8_000 + b"}",
    b'{"username":"deep","x":' + b'[{"":' * 2_000 + b"0" + b"}]" * 2_000 + b"}",
]

NO_OBJECTS = ["[]", "[{}]", '"a"', '""', "5", "5.0", "-0", "1e400", "9" * 5000, "true", "null"]

# Values in JSON, as they are spelled

TOO_LARGE = ["9007199254740992", "-9007199254740992", "9007199254740993", "9007199254740993.0"]
TOO_LARGE += [
    "9007199254740992.0",
    "9.007199254740993e15",
    "-9007199254740993e0",
    str(2**63 - 1),
    str(-(2**63)),
    str(2**63),
    str(2**64),
]
TOO_LARGE += ["1e16", "1e400", "-1e400", "1e999999999999999999", "1e" + "9" * 5000, "-1E+" + "9" * 5000]
TOO_LARGE += ["9" * 5000, "-" + "9" * 5000, "9" * 5000 + ".0", "9" * 5000 + ".5"]

FRACTIONS = ["5.5", "-0.1", "1e-3", "15e-1", "5e-324", "0." + "1" * 5000, "5." + "0" * 5000 + "1"]
FRACTIONS += ["9007199254740990.5", "9007199254740991.4", "-9007199254740991.000000001"]
FRACTIONS += ["1e-999999999999999999", "1e-" + "9" * 5000, "9" * 5000 + "e-4999", "9" * 5000 + "e-4980"]

NOT_SCORES = [*TOO_LARGE, *FRACTIONS]
NOT_SCORES += ["true", "false", '"5"', '""', '"\\u0000"', "null", "[]", "{}", "[5]", '{"score":5}']

SCORES = {
    **{str(score): score for score in (0, 1, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1)},
    **{str(score): score for score in (2**53 - 2, 2**53 - 1, -(2**53) + 2, -(2**53) + 1)},
    **dict.fromkeys(("-0", "0.0", "-0.0", "0e0", "-0e5", "0.00e-7", "0e" + "9" * 5000, "-0.0E-" + "9" * 5000), 0),
    **dict.fromkeys(("5.0", "5e0", "500e-2", "0.5E+1", "5." + "0" * 5000, "5" + "0" * 5000 + "e-5000"), 5),
    **dict.fromkeys(("1e3", "1E3", "1.0e+3", "1e" + "0" * 5000 + "3", "0." + "0" * 5000 + "1e5004"), 1000),
    **dict.fromkeys(("9007199254740991.0", "9.007199254740991e15", "90071992547409910e-1"), 2**53 - 1),
    **dict.fromkeys(("-9007199254740991.00", "-9007199254740991e0"), -(2**53) + 1),
    "9007199254740990.0": 2**53 - 2,
}
"""Each spelling of an integer in the range, with the integer."""

# Members that no call knows, and how a refusal names them
UNKNOWN_FIELDS = [
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
]

# Text: names

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
    "\ufdd0",
    "a\u2029b",
    "a\x00b" * 40,
    "\ud83d",
    "\u2800",
    "\xad",
    "\ufeff\u2060",
    "a\u202db",
    "ab\u200bc",
    "ab\u200fc",
    "admin\u200b",
    "a\u061cb",
    "\ufff9a\ufffab\ufffb",
    "\U000e0061a",
    "a\u2068b",
]

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
    "می\u200cخواهم",
    "👨\u200d👩\u200d👧",
    "\ue000\U0010fffd",
    "Z" + "\u0301" * 120,
    "😀" * 128,
    "ａｄｍｉｎ",
    "ﷺ" * 128,
    "x' UNION SELECT NULL,NULL--",
    "Robert'); DROP TABLE users;--",
    "$1",
    "<svg/onload=alert(1)>",
    "&lt;b&gt;",
    "{{7*7}}",
    "GET / HTTP/1.1",
    "-0",
    "1e400",
    "NaN",
    "undefined",
    "__proto__",
    "{leaderboard}:state",
]

# Text: image URLs

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
    "https://user:password@img.example.com/",  # pragma: allowlist secret
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
    "javascript://img.example.com/%0aalert(1)",
    "vbscript:x",
    "blob:https://img.example.com/1",
    "view-source:https://img.example.com/",
    "https://@img.example.com/",
    "https://img.example.com@evil.example/",
    "https://img.example.com:443@evil.example/",
    "https://img.example.com\\@evil.example/",
    "https://img.example.com%2f@evil.example/",
    "https://[2001:db8::1%25eth0]/",
    "https://[2001:db8::1]evil.example/",
    "https://[::ffff:999.1.1.1]/",
    "https://2001:db8::1/",
    "https://img.example.com:65536/",
    "https://img..example.com/",
    "https://" + ".".join(["a" * 63] * 4) + "/",
    "https://раураl.example/",
    "https://img\u3002example/",
    "https://img.example.com/\u200b",
    "https://img.example.com/%00\0",
    "https://img.example.com/<script>",
    "https://img.example.com/'><",
    "http://",
    "http",
]

GOOD_URLS = [
    "http://localhost",
    "HTTPS://IMG.EXAMPLE.COM:443/?a=%C3%BC&b",
    "https://[2001:db8::1]:8080/a",
    "https://xn--bcher-kva.example/#top",
    HOST + "a" * (2048 - len(HOST)),
]

# Segments of a path, as they are sent: no positive integer in its plain spelling

BAD_NUMBERS = ["0", "-1", "+5", "%2B5", "00", "01", "007", "1.0", "1e3", "0x1", "1_0", "%20", "%201", "1%20", "x"]
BAD_NUMBERS += ["%D9%A3", "%EF%BC%91", "%C2%B2", "%00", "1%00", "..", ".", "%2E%2E", "%FF", "%", "NaN", "null"]
BAD_NUMBERS += [
    str(10**30),
    str(10**5),
    "9" * 5_000,
    "-0",
    "1,2",
    "1;2",
    "%0A",
    "1%0A",
    "%E2%80%AE1",
    "{id}",
    "'--",
]
BAD_NUMBERS += [
    "%C0%B1",
    "%E0%80%B1",
    "%F0%80%80%B1",
    "%2531",
    "%252e%252e",
    "%25",
    "%u0031",
    "%5C1",
    "1%5C",
    "1;a=b",
    "1:1",
    "1@1",
    "*",
    "true",
    "%221%22",
    "%EF%BB%BF1",
    "1%CC%81",
    "%F0%9D%9F%8F",
    "1%0D",
    "1%09",
    "%0D%0ASet-Cookie:%20a=b",
    "9" * 60_000,
    "%39" * 20_000,
    "\xd9\xa3",
]
# A slash that is encoded is part of a segment, and no segment may have it.
ENCODED_SLASHES = ["1%2F", "%2F1", "1%2f2", "1%2Fscore", "1%2fcontext", "..%2F1", "%2e%2e%2f1", "%2F"]

# Where a value can go beside body and path
HEADERS = [
    *("Accept", "Accept-Encoding", "Authorization", "Cookie", "User-Agent", "Range", "If-None-Match"),
    *("If-Modified-Since", "X-Forwarded-For", "Forwarded", "X-HTTP-Method-Override", "Origin", "Referer", "Via"),
    *("Idempotency-Key", "Traceparent", "Upgrade", "TE", "Expect", "X-Anything"),
]

# Content-Type of a body that is JSON all the same
NO_JSON_TYPES = [
    "",
    "text/plain",
    "text/json",
    "application",
    "application/",
    "/json",
    "json",
    "application/jsonx",
    "application/json5",
    "application/x-json",
    "application/ld+json",
    "application/problem+json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=application/json",
    "text/plain; application/json",
    "text/plain, application/json",
    "application/json, text/plain",
    "application/json, application/json",
    "application /json",
    "application/json\xa0",
    '"application/json"',
    "*/*",
    "\xff\xfe",
    "x" * 50_000,
]
JSON_TYPES = [
    "application/json",
    "APPLICATION/JSON",
    "Application/Json;charset=UTF-8",
    "application/json;",
    "application/json ; charset=utf-8",
    "application/json; charset=utf-16",
    'application/json; charset="x;y"',
    "application/json;boundary=x",
]
CODINGS = [
    "gzip",
    "GZIP",
    "x-gzip",
    "br",
    "deflate",
    "zstd",
    "compress",
    "identity, gzip",
    "gzip, gzip",
    "\xff",
    "x",
]
