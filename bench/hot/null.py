"""The upper limit of the server: an application that sends stored answers of ours.

`python -m bench.hot.null`, with the answers in the file that BENCH_ANSWERS names.
"""

import os
from pathlib import Path

import msgspec

from bench.hot import fixture
from leaderboard.config import Settings
from leaderboard.http.asgi import AsgiScope, Receive, Send


class Answer(msgspec.Struct, frozen=True):
    """A stored answer."""

    status: int
    headers: list[tuple[str, str]]
    body: str


class Answers(msgspec.Struct, frozen=True):
    """The answers by method and prefix of the path. The first prefix that fits is used."""

    gets: dict[str, Answer]
    posts: dict[str, Answer]


class Null:
    """An ASGI application without a store."""

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
