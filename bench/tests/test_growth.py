"""`make bench-growth` runs on a small board, reports, and finds a wrong rank index."""

import asyncpg
import pytest

from bench.growth import report
from bench.growth.board import Board, WrongAnswer
from bench.growth.measure import measure
from bench.progress import Progress
from bench.tables import filled
from leaderboard.app import App
from leaderboard.config import Settings

pytestmark = pytest.mark.anyio

USERS = 2000
ONE_TOO_MANY_BEFORE_THE_LAST_FENCE = """
UPDATE rank_index SET
    written_by = pg_current_xact_id(),
    counts = counts[:cardinality(counts) - 1] || counts[cardinality(counts)] + 1
"""


async def test_a_board_is_measured_and_reported(settings: Settings) -> None:
    result = await measure(settings, USERS, Progress(), seconds=0.1, steady_s=0.2)
    assert len(result.steady) == 1
    table, summary = report.table([result]), report.summary([result])
    assert "| context at 50 %, ms |" in table
    assert all(line.count("|") == 3 for line in table.splitlines())
    assert len(summary.splitlines()) == 2 + len(report.targets([result]))


async def test_a_wrong_rank_ends_the_measuring(settings: Settings, db: asyncpg.Connection) -> None:
    app = App(settings)
    await app.database.open()
    try:
        board = Board(app, db, USERS, Progress())
        await board.fill()
        await board.build()
        await board.check()
        await db.execute(ONE_TOO_MANY_BEFORE_THE_LAST_FENCE)
        with pytest.raises(WrongAnswer):
            await board.check()
    finally:
        await app.database.close()


def test_the_page_keeps_its_text_around_what_was_measured() -> None:
    page = "before\n<!-- growth measured -->\nold\n<!-- end of growth -->\nafter\n"
    once = filled(page, "growth", "new")
    assert once == "before\n<!-- growth measured -->\n\nnew\n\n<!-- end of growth -->\nafter\n"
    assert filled(once, "growth", "new") == once
    with pytest.raises(ValueError, match="lacks the lines"):
        filled(once, "hot", "new")
