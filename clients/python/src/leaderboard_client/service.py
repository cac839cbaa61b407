"""Where the service is, and the headers that all requests have."""

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import httpx

_KEY = re.compile(r"[!-~]+")


class Service:
    """The address of a service, and the credential for it."""

    def __init__(self, url: str, key: str | None) -> None:
        """`key` is an API key or a user's token. Raises ValueError."""
        parsed = httpx.URL(url)
        if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query or parsed.fragment:
            raise ValueError(f"the URL of the service is {url!r}, must be like https://scores.example.com")
        if parsed.userinfo:
            raise ValueError("the URL of the service has a user name or password; give the key as `key`")
        self.url = str(parsed).rstrip("/")
        self._headers = {"User-Agent": f"leaderboard-client/{_version()} Python/{platform.python_version()}"}
        if key is not None:
            if not _KEY.fullmatch(key):
                # The key itself is not shown, because errors are logged.
                raise ValueError("the key must be one or more visible ASCII characters, without blanks")
            self._headers["Authorization"] = f"Bearer {key}"

    def headers(self, of_call: Mapping[str, str]) -> Mapping[str, str]:
        """Returns all headers of a request."""
        return {**self._headers, **of_call}


def _version() -> str:
    try:
        return version("leaderboard-client")
    except PackageNotFoundError:
        return "unknown"
