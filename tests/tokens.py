"""Creates users' tokens, valid and forged."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def pem(private: Any) -> tuple[str, str]:
    """Returns the private and the public key in PEM."""
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        public.decode(),
    )


def claims(**changes: Any) -> dict[str, Any]:
    """Returns valid claims with the changes applied; None removes a claim."""
    now = int(time.time())
    merged = {"sub": "7", "exp": now + 60, "iat": now} | changes
    return {name: value for name, value in merged.items() if value is not None}


def by_hand(header: dict[str, Any], payload: dict[str, Any] | bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """Returns a token with any header and payload, also ones that a JWT library refuses to create."""
    parts = [json.dumps(header).encode(), payload if isinstance(payload, bytes) else json.dumps(payload).encode()]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")


def hs256(secret: str) -> Callable[[bytes], bytes]:
    """Returns a function that signs with HMAC-SHA-256."""
    return lambda signed: hmac.new(secret.encode(), signed, hashlib.sha256).digest()
