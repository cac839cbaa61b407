"""Verifies users' tokens: JSON Web Tokens (RFC 7519) that another service issues.

Import this only if JWT_KEY is set: its cryptography takes 20 MB of memory in each process.
"""

import re
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import get_default_algorithms

from leaderboard.model import INT32_MAX
from leaderboard.rules import check_external_id

LEEWAY_S = 10
"""Seconds by which the issuer's clock and ours may differ."""

_MAX_TOKEN = 4096
_USER_ID = re.compile(r"[1-9][0-9]{0,9}")
_PUBLIC = re.compile(r"-----BEGIN (RSA )?PUBLIC KEY-----\n.*\n-----END (RSA )?PUBLIC KEY-----", re.DOTALL)
_SECRET = re.compile(r"HS(256|384|512)")


class UserTokens:
    """Verifies the tokens of one issuer.

    Only the given algorithms are accepted, whatever a token says, and all of them use the one key. HMAC needs a
    secret and the others a public key, so a public key cannot be used as a secret. Raises ValueError, without the
    key, if the key does not fit the algorithms.

    With `audience`, a token's `aud` must contain it; without, a token must have no `aud`, not even an empty one.
    With `issuer`, a token's `iss` must be it; without, it may have any or none.
    """

    def __init__(self, algorithms: Sequence[str], key: str, audience: str = "", issuer: str = "") -> None:
        self._algorithms = list(algorithms)
        self._key: Any = _prepared(self._algorithms, key.replace("\\n", "\n").strip())
        self._audience = audience or None
        self._issuer = issuer or None

    def user_id(self, token: bytes) -> str | None:
        """Return the token's user as a path names it, or None if the token is not valid.

        That is the id as a decimal string, or `@` and the external id. They are not compared with each other: a
        token that names a user by one of them is not for the paths with the other.
        """
        if len(token) > _MAX_TOKEN:
            return None
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        if self._audience is None and "aud" in claims:
            # PyJWT accepts an empty or null audience if none is expected.
            return None
        return _user(claims["sub"])


def _user(subject: str) -> str | None:
    """Return the subject of a token if it names a user."""
    if subject.startswith("@"):
        try:
            check_external_id(subject[1:])
        except ValueError:
            return None
        return subject
    return subject if _USER_ID.fullmatch(subject) and int(subject) <= INT32_MAX else None


def _prepared(algorithms: Sequence[str], key: str) -> Any:
    """Return the key in the form that PyJWT verifies with. Raises ValueError."""
    secret = all(_SECRET.fullmatch(name) for name in algorithms)
    if not secret and not _PUBLIC.fullmatch(key):
        raise ValueError(f"a public key in PEM (SubjectPublicKeyInfo) for {', '.join(algorithms)}")
    prepared: Any = None
    for name in algorithms:
        algorithm = get_default_algorithms()[name]
        try:
            prepared = algorithm.prepare_key(key)
            fits = algorithm.check_key_length(prepared) is None
        except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
            fits = False
        if not fits:
            kind = "a secret of at least as many bytes as the hash has" if secret else "a public key in PEM"
            raise ValueError(f"{kind} that suits {name}")
    return prepared
