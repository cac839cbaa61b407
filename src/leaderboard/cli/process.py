"""Runs a command's work with the parts of a process, without their background work."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from leaderboard.app import App
from leaderboard.cli.options import settings_with
from leaderboard.config import Settings

_T = TypeVar("_T")


def with_app(
    work: Callable[[App], Coroutine[Any, Any, _T]], settings: Settings | None = None, *, check_schema: bool = True
) -> _T:
    """Return what `work` returns when it is called with the parts of a process.

    The settings are those of the environment by default. Without `check_schema`, PostgreSQL is not asked before.

    Raises BadSetting, SchemaOutdated, and what `work` raises.
    """

    async def run() -> _T:
        app = App(settings or settings_with())
        await app.database.open()
        try:
            if check_schema:
                await app.database.check_schema()
            return await work(app)
        finally:
            await app.close()

    return asyncio.run(run())
