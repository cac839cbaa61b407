"""Runs an import: reads all rows into a temporary table, then writes them to the board."""

from collections.abc import Callable
from dataclasses import replace

from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import CHUNK, Importer, OnConflict, Row, WriteProgress
from leaderboard.importing.csv_users import CsvUsers, Rejected
from leaderboard.importing.rejected_file import RejectedFile
from leaderboard.importing.reports import ImportReport, Progress
from leaderboard.importing.source import open_source


async def import_file(
    path: str,
    importer: Importer,
    on_conflict: OnConflict,
    progress: Callable[[Progress], None],
    rejected: Callable[[Rejected], None] = lambda _: None,
) -> ImportReport:
    """Import the CSV file at `path`, gzipped or not; `-` is standard input.

    `progress` is called about every 10,000 rows, and `rejected` for each rejected row. Rejected rows are also
    written to a new file `<path>.rejected.csv`, readable by its owner only.

    Raises UnusableFile, or NamesTaken if `on_conflict` is FAIL and users are on the board: nothing was written
    then. After BoardChanged, any other error or a cancellation, at least what the last `progress` reported is
    committed; importing the file again completes it.
    """
    read = 0
    scores = CsvScores(importer.rules)
    with open_source(path) as source, RejectedFile(path, rejected, source.status) as rejects:
        await importer.begin()
        good: list[Row] = []
        users = CsvUsers(source.text, scores)
        for row in users:
            read += 1
            if isinstance(row, Rejected):
                rejects.add(row)
            else:
                good.append(row)
            if read % CHUNK == 0:
                await importer.load(good)
                good.clear()
                progress(Progress("reading", read, source.position(), source.size, rejects.report(read)))
        await importer.load(good)
        await importer.drop_repeated(lambda repeated: rejects.add_repeated(repeated, scores))
        progress(Progress("reading", read, source.position(), source.size, rejects.report(read)))
    report = rejects.report(read)

    def written(so_far: WriteProgress) -> None:
        nonlocal report
        report = replace(report, imported=so_far.imported, updated=so_far.updated, skipped=so_far.skipped)
        progress(Progress("writing", so_far.rows, so_far.rows, importer.rows, report))

    await importer.write(on_conflict, users.has_images, written)
    return report
