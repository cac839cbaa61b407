"""The limit of the server: answers that are bytes already, which ours gave before.

`python -m bench.hot.null`, the answers in the file that BENCH_ANSWERS names.
"""

import os
from pathlib import Path

import msgspec

from bench.hot import fixture
from leaderboard.config import Settings
from leaderboard.http.asgi import AsgiScope, Receive, Send


class Answer(msgspec.Struct, frozen=True):
    """What is answered, always."""

    status: int
    headers: list[tuple[str, str]]
    body: str


class Answers(msgspec.Struct, frozen=True):
    """By how a path begins, the first that fits, for each method."""

    gets: dict[str, Answer]
    posts: dict[str, Answer]


class Null:
    """Plain ASGI without a store."""

    def __init__(self, answers: Answers) -> None:
        self._gets = [(path, _messages(answer)) for path, answer in answers.gets.items()]
        self._posts = [(path, _messages(answer)) for path, answer in answers.posts.items()]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        candidates = self._gets
        if scope["method"] == "POST":
            candidates = self._posts
            await receive()
        path = scope["path"]
        start, body = next(messages for prefix, messages in candidates if path.startswith(prefix))
        await send(start)
        await send(body)


def _messages(answer: Answer) -> tuple[dict[str, object], dict[str, object]]:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    return (
        {"type": "http.response.start", "status": answer.status, "headers": headers},
        {"type": "http.response.body", "body": answer.body.encode()},
    )


def _worker(_settings: Settings) -> Null:
    return Null(msgspec.json.decode(Path(os.environ["BENCH_ANSWERS"]).read_bytes(), type=Answers))


if __name__ == "__main__":
    fixture.serve(_worker)
