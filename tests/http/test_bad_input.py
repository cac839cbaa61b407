"""Bad input of every kind: each refused as design §3 says, all that is wrong named at once, and nothing written.

The values are in `corpus`. What is accepted on the way is kept in a ledger; in the end the table must be the
ledger, row for row. What is wrong with a request around its body is in `test_framing`.
"""
# ruff: noqa: RUF001 - letters that look like others belong here

import gzip
import json
import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.http.requests import MAX_BODY_BYTES
from leaderboard.model import SCORE_MAX
from leaderboard.rules import clean_image_url, clean_username
from tests.http.contract import Answer, Caller, documented_calls
from tests.http.corpus import (
    BAD_NAMES,
    BAD_NUMBERS,
    BAD_URLS,
    CODINGS,
    ENCODED_SLASHES,
    FRACTIONS,
    GOOD_URLS,
    HEADERS,
    JSON_TYPES,
    MALFORMED,
    NO_JSON_TYPES,
    NO_OBJECTS,
    NOT_SCORES,
    SCORES,
    STRANGE_NAMES,
    TOO_DEEP,
    TOO_LARGE,
    UNKNOWN_FIELDS,
)
from tests.http.ledger import Ledger, refused, short

# JSON


@pytest.mark.parametrize("body", MALFORMED, ids=short)
def test_a_body_that_is_not_json(ledger: Ledger, body: bytes) -> None:
    refused(ledger.create(body), "malformed_json")
    refused(ledger.set(body), "malformed_json")


@pytest.mark.parametrize("body", TOO_DEEP, ids=short)
def test_nested_too_deep(ledger: Ledger, body: bytes) -> None:
    assert len(body) <= MAX_BODY_BYTES
    refused(ledger.create(body), "malformed_json")
    refused(ledger.set(body), "malformed_json")


@pytest.mark.parametrize("body", NO_OBJECTS, ids=short)
def test_a_body_must_be_an_object(ledger: Ledger, body: str) -> None:
    refused(ledger.create(body), "invalid_field", "body")
    refused(ledger.set(body), "invalid_field", "body")


@pytest.mark.parametrize("number", NOT_SCORES, ids=short)
def test_a_score_that_is_no_integer_in_the_range(ledger: Ledger, number: str) -> None:
    refused(ledger.set(f'{{"score":{number}}}'), "invalid_field", "score")
    answer = ledger.create(f'{{"username":"\\u0000","score":{number},"imageUrl":1,"\\ud800":2}}')
    refused(answer, "invalid_field", "username", "score", "imageUrl", "\\ud800")


@pytest.mark.parametrize("number", [*TOO_LARGE, *FRACTIONS], ids=short)
def test_a_refused_number_is_said_to_be_too_large_or_no_integer(ledger: Ledger, number: str) -> None:
    (message,) = ledger.set(f'{{"score":{number}}}').fields.values()
    assert ("fraction" in message) == (number in FRACTIONS), message
    assert (f"{-SCORE_MAX} to {SCORE_MAX}" in message) == (number in TOO_LARGE), message


@pytest.mark.parametrize(("number", "score"), SCORES.items(), ids=short)
def test_every_spelling_of_an_integer_is_that_score(ledger: Ledger, number: str, score: int) -> None:
    answer = ledger.set(f' {{\t"score" :\r\n{number} }} ')
    assert (answer.status, answer.json()["score"]) == (200, score)
    # Not "-0", which some readers take for a number with a fraction.
    assert f'"score":{score},'.encode() in answer.body
    answer = ledger.create(f'{{"username":"spelled {number[:100]}","score":{number}}}')
    assert (answer.status, answer.json()["score"]) == (201, score)


@pytest.mark.parametrize(("name", "named"), UNKNOWN_FIELDS, ids=short)
def test_an_unknown_field_is_named(ledger: Ledger, name: str, named: str) -> None:
    refused(ledger.create({"username": 5, name: 1}), "invalid_field", "username", named)
    refused(ledger.set({"score": "5", name: 1}), "invalid_field", "score", named)


@pytest.mark.parametrize("value", [None, 5, 5.5, True, [], {}, ["a"], {"username": "a"}])
def test_text_fields_take_text_only(ledger: Ledger, value: object) -> None:
    fields = {"username", "imageUrl"} - ({"imageUrl"} if value is None else set())
    refused(ledger.create({"username": value, "imageUrl": value}), "invalid_field", *fields)


# Names


@pytest.mark.parametrize("name", BAD_NAMES, ids=short)
def test_a_name_that_is_none(ledger: Ledger, name: str) -> None:
    refused(ledger.create({"username": name}), "invalid_field", "username")
    answer = ledger.create({"username": name, "score": 2**53, "imageUrl": "data:,", "admin": 1})
    refused(answer, "invalid_field", "username", "score", "imageUrl", "admin")


@pytest.mark.parametrize("name", STRANGE_NAMES, ids=short)
def test_a_strange_name_is_a_name(ledger: Ledger, name: str) -> None:
    answer = ledger.create({"username": name, "score": SCORE_MAX})
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


@pytest.mark.parametrize("url", BAD_URLS, ids=short)
def test_an_image_url_that_is_none(ledger: Ledger, url: str) -> None:
    refused(ledger.create({"username": "with a url", "imageUrl": url}), "invalid_field", "imageUrl")


@pytest.mark.parametrize("url", GOOD_URLS, ids=short)
def test_an_image_url_is_kept_as_it_is(ledger: Ledger, url: str) -> None:
    answer = ledger.create({"username": f"at {len(url)} {url[:50]}", "imageUrl": url})
    assert (answer.status, answer.json()["imageUrl"]) == (201, url)


# Every value in every place

TEXTS = list(
    dict.fromkeys([*BAD_NAMES, *STRANGE_NAMES, *BAD_URLS, *GOOD_URLS, *(name for name, _ in UNKNOWN_FIELDS)])
)
TOKENS = list(dict.fromkeys([*NOT_SCORES, *SCORES, *map(json.dumps, TEXTS)]))
RULES: dict[str, Callable[[str], object]] = {"username": clean_username, "imageUrl": clean_image_url}


def allowed(field: str, token: str) -> bool:
    """Whether a JSON value, as it is spelled, may stand in that field."""
    if field == "score":
        return token in SCORES
    if not token.startswith('"'):
        return token == "null" and field == "imageUrl"
    value, rule = json.loads(token), RULES[field]
    try:
        rule(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("token", TOKENS, ids=short)
def test_a_value_is_taken_where_it_may_stand_and_nowhere_else(ledger: Ledger, token: str) -> None:
    for field in ("username", "score", "imageUrl"):
        name = "" if field == "username" else '"username":"somebody",'
        answer = ledger.create(f"{{{name}{json.dumps(field)}:{token}}}")
        if allowed(field, token):
            # "somebody" is taken from the first time on.
            assert answer.status == 201 or answer.code == "username_taken", answer
        else:
            refused(answer, "invalid_field", field)
    if allowed("score", token):
        assert ledger.set(f'{{"score":{token}}}').status == 200
    else:
        refused(ledger.set(f'{{"score":{token}}}'), "invalid_field", "score")
    for answer in (ledger.create(f'{{"unknown":{token}}}'), ledger.set(f'{{"unknown":{token}}}')):
        refused(answer, "invalid_field")
        assert "unknown" in answer.fields
    refused(ledger.create(f"[{token}]"), "invalid_field", "body")


def places(segment: str, *parameters: str) -> Iterator[tuple[str, str]]:
    """Method and path of every call that has one of these parameters, with the segment in its place."""
    for method, path in documented_calls():
        if any(f"{{{parameter}}}" in path for parameter in parameters):
            spelled = re.sub(rf"\{{({'|'.join(parameters)})\}}", lambda _: segment, path)
            yield method, spelled.replace("{board}", "default")


@pytest.mark.parametrize(
    "segment", [*BAD_NUMBERS, *(quote(text, "", errors="surrogatepass") for text in TEXTS)], ids=short
)
def test_a_parameter_is_a_number_and_nothing_else(ledger: Ledger, segment: str) -> None:
    if segment == str(10**5) or re.fullmatch(r"[1-9]", segment) or "%2F" in segment or not segment:
        return  # a number, no segment, or two
    for method, path in places(segment, "id", "n"):
        answer = ledger.caller.send(method, path, b'{"score":1}' if method in {"POST", "PUT", "PATCH"} else None)
        refused(answer, "invalid_parameter")


@pytest.mark.parametrize("segment", ENCODED_SLASHES)
def test_an_encoded_slash_separates_nothing(ledger: Ledger, segment: str) -> None:
    for method, path in places(segment, "id", "n", "board"):
        refused(ledger.caller.send(method, path, b'{"score":1}' if method == "POST" else None), "not_found")


@pytest.mark.parametrize("call", documented_calls(), ids=" ".join)
def test_no_path_has_a_second_spelling_with_encoded_slashes(ledger: Ledger, call: tuple[str, str]) -> None:
    method, path = call
    path = path.replace("{id}", str(ledger.victim)).replace("{n}", "1")
    slashes = [found.start() for found in re.finditer("/", path)]
    # A path needs its first.
    spellings = [path[:at] + "%2f" + path[at + 1 :] for at in slashes[1:]]
    for spelling in (*spellings, path.replace("/", "/%2F", 1), f"{path}%2F"):
        answer = ledger.caller.send(method, spelling, b"{}" if method == "POST" else None)
        refused(answer, "not_found")
    # Behind the path it is nobody's business.
    assert ledger.caller.get("/livez?a=%2F").status == 200


@pytest.mark.parametrize("text", TEXTS, ids=short)
def test_a_header_may_say_anything(ledger: Ledger, text: str) -> None:
    # Control characters are refused below us: see `test_framing`.
    text = re.sub("[\0-\x08\n-\x1f\x7f]", "?", text)
    for encoded in {text.encode("utf-8", "surrogatepass"), text.encode("latin-1", "replace")}:
        value = encoded.decode("latin-1")
        for header in HEADERS:
            answer = ledger.caller.send("GET", f"/users/{ledger.victim}", headers=[(header, value)])
            assert answer.status == 200, (header, answer)


# What a body is said to be

JSON_BODY = b'{"username":"said to be something else"}'


@pytest.mark.parametrize("content_type", NO_JSON_TYPES, ids=short)
def test_a_body_that_is_not_said_to_be_json(ledger: Ledger, content_type: str) -> None:
    for path in ("/users", f"/users/{ledger.victim}/score"):
        answer = ledger.caller.send("POST", path, JSON_BODY, [("Content-Type", content_type)])
        refused(answer, "unsupported_media_type")


@pytest.mark.parametrize("types", [("application/json", "text/plain"), ("text/plain", "application/json")])
def test_a_body_that_is_said_to_be_two_things(ledger: Ledger, types: tuple[str, str]) -> None:
    headers = [("Content-Type", content_type) for content_type in types]
    refused(ledger.caller.send("POST", "/users", JSON_BODY, headers), "unsupported_media_type")


@pytest.mark.parametrize("content_type", JSON_TYPES)
def test_json_is_utf_8_whatever_the_parameters_say(ledger: Ledger, content_type: str) -> None:
    def send(encoding: str) -> Answer:
        body = json.dumps({"username": f"ü {content_type}"}, ensure_ascii=False).encode(encoding)
        return ledger.note(ledger.caller.send("POST", "/users", body, [("Content-Type", content_type)]))

    assert send("utf-8").status == 201
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"):
        refused(send(encoding), "malformed_json")


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_is_said_to_be_compressed(ledger: Ledger, coding: str) -> None:
    # Whether it is or not: what was meant is not known.
    for body in (JSON_BODY, gzip.compress(JSON_BODY), gzip.compress(b" " * 1_000_000)):
        for path in ("/users", f"/users/{ledger.victim}/score"):
            answer = ledger.caller.send("POST", path, body, [("Content-Encoding", coding)])
            refused(answer, "unsupported_encoding")
            assert answer.headers["accept-encoding"] == "identity"


def test_a_body_that_is_compressed_and_not_said_to_be(ledger: Ledger) -> None:
    refused(ledger.create(gzip.compress(JSON_BODY)), "malformed_json")
    answer = ledger.caller.send("POST", "/users", b'{"username":"as it is"}', [("Content-Encoding", "Identity")])
    assert ledger.note(answer).status == 201


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
NEARLY = st.sampled_from(
    [b'{"username":"nearly","score":5}', b'{"score":-9007199254740991,"imageUrl":null}', b"{}"]
)
PIECES = st.sampled_from(
    [b"{", b"}", b"[", b'"', b":", b",", b"\\u", b"\\ud800", b"1e9", b".0", b"e", b"-", b"NaN", b"\xed", b"\0"]
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
@given(st.binary(max_size=200) | BROKEN | st.integers(MAX_BODY_BYTES - 1, MAX_BODY_BYTES + 2).map(bytes))
def test_any_bytes_as_body(ledger: Ledger, body: bytes) -> None:
    check_write(ledger, body)


SEGMENTS = ANY_TEXT | st.text(st.sampled_from("0123456789+-_. %/\0\n٣１e"), max_size=12) | st.integers().map(str)


# A segment that is the id of a user would erase it, which the ledger does not know.
CALLS = [call for call in documented_calls() if call != ("DELETE", "/users/{id}")]


@MANY
@given(st.sampled_from(CALLS), SEGMENTS, st.booleans())
def test_any_text_as_a_path(ledger: Ledger, call: tuple[str, str], text: str, safe: bool) -> None:
    segment = quote(text.encode("utf-8", "surrogatepass"), safe="%/+" if safe else "")
    method, template = call
    path = template.replace("{id}", segment).replace("{n}", segment).replace("{board}", "default")
    if "{id}" not in template and "{n}" not in template:
        path += segment
    answer = ledger.caller.send(method, path, b'{"score":1}' if method == "POST" else None)
    assert answer.status < 500
    if answer.status == 200 and method == "POST":
        ledger.note(answer)


# Laws of all of the above


def test_nothing_was_written_but_what_was_acknowledged(ledger: Ledger, module_settings: Settings) -> None:
    ledger.check_rows(module_settings)


def test_nothing_went_wrong_on_our_side(ledger: Ledger) -> None:
    ledger.check_process()


@pytest.mark.parametrize("path", ["/livez%0A", "/%0A", "/users/1/score%0A", "/leaderboard/user/1/context%0A"])
def test_a_line_break_after_a_path(caller: Caller, path: str) -> None:
    assert caller.get(path).code == "not_found"
