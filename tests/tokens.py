"""What an issuer of users' tokens does, and what a forger tries."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def pem(private: Any) -> tuple[str, str]:
    """The private and the public key."""
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        public.decode(),
    )


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones, but for the changes; None takes a claim away."""
    now = int(time.time())
    made = {"sub": "7", "exp": now + 60, "iat": now} | changes
    return {name: value for name, value in made.items() if value is not None}


def by_hand(header: dict[str, Any], payload: dict[str, Any] | bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """A token that no library would make."""
    parts = [json.dumps(header).encode(), payload if isinstance(payload, bytes) else json.dumps(payload).encode()]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")


def hs256(secret: str) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.new(secret.encode(), signed, hashlib.sha256).digest()
