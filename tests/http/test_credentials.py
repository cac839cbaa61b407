"""API keys are parsed, found and made, and only valid users' tokens are accepted."""

import hashlib
import hmac
import math
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.credentials import BadEntry, KeyRing, new_key, parse_keys
from leaderboard.tokens import LEEWAY_S, UserTokens
from tests.tokens import by_hand, claims, hs256, pem

FIRST, SECOND, THIRD = (f"{word}-and-long-enough" for word in ("first", "second", "third"))
HASHED = "sha256:" + hashlib.sha256(THIRD.encode()).hexdigest()


def test_entries_may_be_hashed_and_named() -> None:
    keys = parse_keys(f" {FIRST},game:read+write:{SECOND}\n ops_1:admin:{HASHED},, ")
    assert [(key.name, sorted(key.scopes)) for key in keys] == [
        (f"sha256 {hashlib.sha256(FIRST.encode()).hexdigest()[:8]}", ["read", "write"]),
        ("game", ["read", "write"]),
        ("ops_1", ["admin"]),
    ]
    ring = KeyRing(keys)
    assert [ring.find(key.encode()) for key in (FIRST, SECOND, THIRD)] == list(keys)
    (bare,) = parse_keys(HASHED)
    assert bare.scopes == {"read", "write"}


def test_a_key_may_be_limited_to_boards() -> None:
    text = f"game:read+write@laps:{FIRST} ops:admin@default+2024.w-1_x:{HASHED} all:write:{SECOND}"
    assert [(key.name, key.boards) for key in parse_keys(text)] == [
        ("game", {"laps"}),
        ("ops", {"default", "2024.w-1_x"}),
        ("all", None),
    ]


@pytest.mark.parametrize(
    "boards", ["@", "@Laps", "@laps+", "@+laps", "@laps,", "@-laps", "@laps@weekly", "@" + "x" * 65]
)
def test_a_limit_that_names_no_board_is_refused(boards: str) -> None:
    with pytest.raises(BadEntry):
        parse_keys(f"game:write{boards}:{FIRST}")


def test_the_hash_of_an_empty_text_is_no_key() -> None:
    """A script that hashes an unset variable would otherwise let in every call with an empty key."""
    with pytest.raises(BadEntry, match="empty"):
        parse_keys(f"ops:write:sha256:{hashlib.sha256(b'').hexdigest()}")


def test_other_credentials_are_not_found() -> None:
    ring = KeyRing(parse_keys(f"{FIRST},{HASHED}"))
    strange = (b"", FIRST[:-1].encode(), FIRST.upper().encode(), HASHED.encode(), HASHED[7:].encode(), b"\xff")
    assert [ring.find(each) for each in strange] == [None] * len(strange)
    assert KeyRing(()).find(b"") is None


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    really = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return really(one, other)

    ring = KeyRing(parse_keys(f"{FIRST},{SECOND},{HASHED}"))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for credential in (FIRST, SECOND, THIRD, "", "x", "x" * 5000):
        compared.clear()
        ring.find(credential.encode())
        assert compared == [(32, 32)] * 3, "all keys, by digests of the same length"


def test_a_new_key_is_found_by_its_entry() -> None:
    made = [new_key() for _ in range(100)]
    assert len({key for key, _ in made}) == 100
    for key, hashed in made:
        assert KeyRing(parse_keys(f"it:admin:{hashed}")).find(key.encode()) is not None
        assert KeyRing(parse_keys(key)).find(key.encode()) is not None


# Users' tokens

SECRET = "a secret that is shared with the issuer of the tokens, of 64 bytes"  # pragma: allowlist secret


RSA, RSA_SMALL = pem(rsa.generate_private_key(65537, 2048)), pem(rsa.generate_private_key(65537, 1024))
EC, EC_384 = pem(ec.generate_private_key(ec.SECP256R1())), pem(ec.generate_private_key(ec.SECP384R1()))
ED = pem(ed25519.Ed25519PrivateKey.generate())
KEYS = {
    **{f"HS{bits}": (SECRET, SECRET) for bits in (256, 384, 512)},
    **{f"{kind}{bits}": RSA for kind in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": EC,
    "ES384": EC_384,
    "EdDSA": ED,
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_valid_token_names_its_user_with_each_algorithm(algorithm: str) -> None:
    private, public = KEYS[algorithm]
    tokens = UserTokens([algorithm], public)
    assert tokens.user_id(jwt.encode(claims(), private, algorithm).encode()) == "7"
    # On one line, as in an environment file.
    assert (
        UserTokens([algorithm], public.replace("\n", "\\n")).user_id(
            jwt.encode(claims(sub="2147483647"), private, algorithm).encode()
        )
        == "2147483647"
    )
    for other, (key, _) in KEYS.items():
        if other != algorithm:
            assert tokens.user_id(jwt.encode(claims(), key, other).encode()) is None, other


NOW = int(time.time())


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": NOW - LEEWAY_S - 2},
        {"exp": "soon"},
        {"exp": [NOW + 60]},
        {"nbf": NOW + 10_000},
        {"iat": NOW + 10_000},
        {"iat": "now"},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "0"},
        {"sub": "07"},
        {"sub": "-7"},
        {"sub": "7.0"},
        {"sub": " 7"},
        {"sub": "7\n"},
        {"sub": "\N{ARABIC-INDIC DIGIT SEVEN}"},
        {"sub": "2147483648"},
        {"sub": "99999999999"},
        {"sub": "ada"},
        {"aud": "another service"},
        {"exp": math.inf},
        {"exp": math.nan},
        {"padding": "x" * 5000},
    ],
)
def test_bad_tokens_are_rejected(changes: dict[str, Any]) -> None:
    assert (
        UserTokens(["HS256"], SECRET).user_id(by_hand({"alg": "HS256"}, claims(**changes), hs256(SECRET))) is None
    )


def test_small_clock_differences_are_tolerated() -> None:
    tokens = UserTokens(["HS256"], SECRET)
    now = int(time.time())
    late = claims(exp=now - LEEWAY_S + 5)
    early = claims(nbf=now + LEEWAY_S - 5, iat=now + LEEWAY_S - 5)
    for each in (late, early):
        assert tokens.user_id(jwt.encode(each, SECRET, "HS256").encode()) == "7"


def test_audience_and_issuer_are_required_when_set() -> None:
    tokens = UserTokens(["HS256"], SECRET, "board", "https://issuer.example")
    good = claims(aud=["other", "board"], iss="https://issuer.example")
    assert tokens.user_id(jwt.encode(good, SECRET, "HS256").encode()) == "7"
    for wrong in ({"aud": "other"}, {"aud": None}, {"iss": "https://other.example"}, {"iss": None}):
        token = jwt.encode({k: v for k, v in (good | wrong).items() if v is not None}, SECRET, "HS256")
        assert tokens.user_id(token.encode()) is None, wrong


BOARD, ISSUER = "board", "https://issuer.example"
NO_TEXT: tuple[Any, ...] = ("", [], [""], None, 0, False, {}, [[]], [None])
"""Values of a claim that are no name."""


def signed(**changes: Any) -> bytes:
    """Return a token with the good claims and these; None is null."""
    return by_hand({"alg": "HS256"}, claims() | changes, hs256(SECRET))


@pytest.mark.parametrize("issuer", ["", ISSUER])
@pytest.mark.parametrize("aud", ["other", "board ", ["other"], {"board": 1}, ["board", 7], [["board"]], *NO_TEXT])
def test_a_token_with_another_audience_is_rejected(aud: Any, issuer: str) -> None:
    token = signed(aud=aud, iss=ISSUER)
    for audience in ("", BOARD):
        assert UserTokens(["HS256"], SECRET, audience, issuer).user_id(token) is None, audience


@pytest.mark.parametrize("issuer", ["", ISSUER])
def test_a_token_has_the_required_audience_or_none(issuer: str) -> None:
    closed, open_ = (UserTokens(["HS256"], SECRET, audience, issuer) for audience in (BOARD, ""))
    assert (closed.user_id(signed(iss=ISSUER)), open_.user_id(signed(iss=ISSUER))) == (None, "7")
    for aud in ("board", ["board"], ["other", "board"], ["", "board"]):
        token = signed(aud=aud, iss=ISSUER)
        assert (closed.user_id(token), open_.user_id(token)) == ("7", None), aud


@pytest.mark.parametrize("audience", ["", BOARD])
@pytest.mark.parametrize("iss", [ISSUER, ISSUER + "/", [ISSUER], [ISSUER, ""], {ISSUER: 1}, *NO_TEXT])
def test_the_issuer_is_the_required_one(iss: Any, audience: str) -> None:
    aud = {"aud": audience} if audience else {}
    token = signed(iss=iss, **aud)
    expected = "7" if iss == ISSUER else None
    assert UserTokens(["HS256"], SECRET, audience, ISSUER).user_id(token) == expected
    assert UserTokens(["HS256"], SECRET, audience).user_id(token) == "7", "without JWT_ISSUER, any or none"
    assert UserTokens(["HS256"], SECRET, audience, ISSUER).user_id(signed(**aud)) is None


def test_a_token_does_not_choose_how_it_is_verified() -> None:
    public = RSA[1]
    tokens = UserTokens(["RS256", "RS512"], public)
    good = jwt.encode(claims(), RSA[0], "RS512").encode()
    assert tokens.user_id(good) == "7"
    unsigned = good.rpartition(b".")[0]
    for forged in (
        *(by_hand({"alg": none}, claims(), lambda _: b"") for none in ("none", "None", "NONE", "", "nOnE")),
        by_hand({}, claims(), lambda _: b""),
        # The public key as a secret, with and without its last line end.
        *(by_hand({"alg": "HS256"}, claims(), hs256(key)) for key in (public, public.strip(), "")),
        by_hand({"alg": ["RS256"]}, claims(), lambda _: b"x"),
        by_hand({"alg": "RS256", "jwk": {"kty": "oct", "k": ""}}, claims(), hs256("")),
        by_hand({"alg": "RS512", "crit": ["exp"]}, claims(), lambda _: b"x"),
        by_hand({"alg": "RS512", "b64": False, "crit": ["b64"]}, b"", lambda _: b""),
        jwt.encode(claims(), pem(rsa.generate_private_key(65537, 2048))[0], "RS512").encode(),
        unsigned,
        unsigned + b".",
        good[:-8] + b"AAAAAAAA",
    ):
        assert tokens.user_id(forged) is None, forged
    # With HMAC only the secret verifies.
    tokens = UserTokens(["HS256"], SECRET)
    for forged in (
        by_hand({"alg": "none"}, claims(), lambda _: b""),
        by_hand({"alg": "HS256"}, claims(), hs256("")),
        by_hand({"alg": "HS256"}, claims(), hs256(SECRET[:-1])),
        by_hand({"alg": "HS512"}, claims(), hs256(SECRET)),
        good,
    ):
        assert tokens.user_id(forged) is None, forged


@given(
    st.binary(max_size=200)
    | st.text(max_size=60).map(lambda text: by_hand({"alg": "HS256"}, text.encode(), hs256(SECRET)))
)
def test_no_token_raises_an_exception(token: bytes) -> None:
    assert UserTokens(["HS256"], SECRET).user_id(token) is None


@pytest.mark.parametrize(
    ("algorithms", "key"),
    [
        ("HS256", "short"),
        ("HS512", "x" * 63),
        ("HS256", RSA[1]),
        ("HS256", RSA[0]),
        ("HS256 RS256", RSA[1]),
        ("HS256 RS256", SECRET),
        ("RS256", RSA[0]),
        ("RS256", EC[1]),
        ("RS256", RSA_SMALL[1]),
        ("RS256", SECRET),
        ("RS256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        ("ES256", EC_384[1]),
        ("ES256", EC[0]),
        ("ES256 RS256", EC[1]),
        ("ES256 ES384", EC[1]),
        ("EdDSA", ED[0]),
        ("EdDSA", EC[1]),
    ],
)
def test_a_key_that_does_not_fit_the_algorithms_is_rejected_and_not_shown(algorithms: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"a public key in PEM|a secret of at least") as error:
        UserTokens(algorithms.split(), key)
    assert key.strip().splitlines()[-1] not in str(error.value)
