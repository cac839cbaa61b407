"""Runs an import: reads all rows into a temporary table, then writes them to the board."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import CHUNK, Importer, OnConflict, Repeated, Row, WriteProgress
from leaderboard.importing.csv_users import CsvUsers, Rejected
from leaderboard.importing.json_users import JsonUsers
from leaderboard.importing.rejected_file import RejectedFile, RejectedRows
from leaderboard.importing.reports import ImportReport, Preview, Progress
from leaderboard.importing.source import Source, open_source
from leaderboard.importing.understanding import Options, Understood, format_of, understand

_PREVIEWED = 5


def _ignore(_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What is called during an import.

    `understood` is called once with the lines that say what the file was taken for, before anything is read;
    `progress` about every 10,000 rows; `rejected` for each rejected row.
    """

    understood: Callable[[list[str]], None] = _ignore
    progress: Callable[[Progress], None] = _ignore
    rejected: Callable[[Rejected], None] = _ignore


@dataclass(slots=True)
class _Read:
    """What was read into the temporary table."""

    report: ImportReport
    has_images: bool
    first: list[Row] = field(default_factory=list)


async def import_file(
    path: str, importer: Importer, on_conflict: OnConflict, listener: Listener, options: Options | None = None
) -> ImportReport:
    """Import the file at `path`, CSV or JSON Lines, gzipped or not; `-` is standard input.

    Rejected rows are also written to a new file `<path>.rejected.csv`, readable by its owner only.

    Raises UnusableFile, or NamesTaken if `on_conflict` is FAIL and users are on the board: nothing was written
    then. After BoardChanged, any other error or a cancellation, at least what the last `progress` reported is
    committed; importing the file again completes it.
    """
    options = options or Options()
    with open_source(path, options.encoding) as source:
        understood = understand(source.beginning, format_of(path, options), options)
        rejects = RejectedFile(path, listener.rejected, understood, source.encoding, source.status)
        read = await _read(source, understood, options, importer, listener, rejects)
    report = read.report

    def written(so_far: WriteProgress) -> None:
        nonlocal report
        report = replace(report, imported=so_far.imported, updated=so_far.updated, skipped=so_far.skipped)
        listener.progress(Progress("writing", so_far.rows, so_far.rows, importer.rows, report))

    await importer.write(on_conflict, read.has_images, written)
    return report


async def preview_file(
    path: str, importer: Importer, on_conflict: OnConflict, listener: Listener, options: Options | None = None
) -> Preview:
    """Return what `import_file` would do; nothing is written, not even the file of rejected rows.

    Raises UnusableFile and NamesTaken as `import_file` does.
    """
    options = options or Options()
    with open_source(path, options.encoding) as source:
        understood = understand(source.beginning, format_of(path, options), options)
        rejects = RejectedRows(listener.rejected)
        read = await _read(source, understood, options, importer, listener, rejects)
    existing = await importer.count_existing(on_conflict)
    updates = on_conflict is OnConflict.UPDATE
    scores = CsvScores(importer.rules)
    first = [(row[0], row[1], scores.format(row[2]), row[3]) for row in read.first]
    report = replace(
        read.report,
        imported=importer.rows - existing,
        updated=existing if updates else 0,
        skipped=0 if updates else existing,
    )
    return Preview(report, first)


async def _read(
    source: Source,
    understood: Understood,
    options: Options,
    importer: Importer,
    listener: Listener,
    rejects: RejectedRows,
) -> _Read:
    """Read all rows into the temporary table. Reject those that are not valid, or repeat a username."""
    scores = CsvScores(importer.rules, options.numbers)
    said = options.encoding is not None
    users: CsvUsers | JsonUsers
    if understood.format == "jsonl":
        scores = CsvScores(importer.rules)
        users = JsonUsers(source.text, understood, importer.rules, encoding_is_said=said)
    else:
        users = CsvUsers(source.text, understood, scores, encoding_is_said=said)
    listener.understood(understood.describe(source.encoding_name, scores.example))
    result = _Read(ImportReport(), has_images=False)
    read = 0

    def progress() -> None:
        listener.progress(Progress("reading", read, source.position(), source.size, rejects.report(read)))

    with rejects:
        await importer.begin()
        good: list[Row] = []
        for row in users:
            read += 1
            if isinstance(row, Rejected):
                rejects.add(row)
            else:
                good.append(row)
                if len(result.first) < _PREVIEWED:
                    result.first.append(row)
            if read % CHUNK == 0:
                await importer.load(good)
                good.clear()
                progress()
        await importer.load(good)

        def repeated(found: Repeated) -> None:
            rejects.add_repeated(found, scores)
            result.first = [row for row in result.first if row[0] != found.row[0]]

        await importer.drop_repeated(repeated)
        progress()
    result.report, result.has_images = rejects.report(read), users.has_images
    return result
