"""Users' own tokens: JSON Web Tokens (RFC 7519) that somebody else issues, and this only verifies.

Imported only where `JWT_KEY` is set: the cryptography it brings along costs each process 20 MB.
"""

import re
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import get_default_algorithms

from leaderboard.model import INT32_MAX

LEEWAY_S = 10
"""By how much the issuer's clock and ours may differ."""

_MAX_TOKEN = 4096
_USER_ID = re.compile(r"[1-9][0-9]{0,9}")
_PUBLIC = re.compile(r"-----BEGIN (RSA )?PUBLIC KEY-----\n.*\n-----END (RSA )?PUBLIC KEY-----", re.DOTALL)
_SECRET = re.compile(r"HS(256|384|512)")


class UserTokens:
    """Verifies the tokens of one issuer.

    The algorithms are ours to say, never the token's: they are pinned, and all of them take the one key. A secret
    serves HMAC only and a public key the others only, so that no public key can be taken for a secret. Raises
    ValueError, which does not quote the key, where they do not fit.

    A token must have the `audience`, if one is given, among its `aud`; otherwise it must have no `aud`, not even
    an empty one. It must have the `issuer`, if one is given, as its `iss`; otherwise it may have any or none.
    """

    def __init__(self, algorithms: Sequence[str], key: str, audience: str = "", issuer: str = "") -> None:
        self._algorithms = list(algorithms)
        self._key: Any = _usable(self._algorithms, key.replace("\\n", "\n").strip())
        self._audience = audience or None
        self._issuer = issuer or None

    def user_id(self, token: bytes) -> str | None:
        """Whose token this is, as a decimal string; None for what is no valid token of a user."""
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
            # PyJWT lets an audience that is empty or null pass where it is to expect none.
            return None
        subject = claims["sub"]
        return subject if _USER_ID.fullmatch(subject) and int(subject) <= INT32_MAX else None


def _usable(algorithms: Sequence[str], key: str) -> Any:
    """The key in the form in which it is verified with."""
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
