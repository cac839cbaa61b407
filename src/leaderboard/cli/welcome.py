"""The text that `leaderboard dev` prints when the API answers."""

import http.client
import time

from leaderboard.config import Settings


def print_welcome(settings: Settings) -> None:
    """Wait until the API is ready; then print the addresses, and a call for each endpoint, ready to paste."""
    _wait_until_ready(settings.port)
    url = f"http://localhost:{settings.port}{settings.root_path}"
    variables = {
        "DB_HOST": settings.db_host,
        "DB_PORT": settings.db_port,
        "DB_PASSWORD": settings.db_password.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
    }
    exports = " ".join(f"{name}={value}" for name, value in variables.items())
    print(_WELCOME.format(url=url, settings=settings, exports=exports, **variables), flush=True)


def _wait_until_ready(port: int) -> None:
    while True:
        # Not urllib, which would use a proxy that the environment names.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()


_WELCOME = """
Leaderboard runs at {url} (the board in a browser; the API is documented at {url}/docs)

  PostgreSQL  postgresql://{settings.db_user}:{DB_PASSWORD}@{DB_HOST}:{DB_PORT}/{settings.db_name}
  Valkey      {REDIS_URL}

  curl {url}/users -H 'content-type: application/json' -d '{{"username": "ada", "score": 1815}}'
  curl {url}/users/1
  curl {url}/users/1/score -H 'content-type: application/json' -d '{{"score": 1000000}}'
  curl {url}/leaderboard/top/10
  curl {url}/leaderboard/user/1/context
  curl '{url}/leaderboard?limit=10'
  curl {url}/            # also /livez /readyz /metrics /openapi.json

To point other commands, such as .venv/bin/leaderboard import, at these servers:

  export {exports}

Ctrl-C stops everything."""
