"""Imports users from a CSV file, reading it as a stream, and reports by line the rows that it rejects.

A fault in a row costs that row. A fault in the file, such as no header, stops the import before anything is
written.
"""

from leaderboard.database.importer import OnConflict
from leaderboard.importing.csv_users import CsvUsers, Rejected, rejection_reason
from leaderboard.importing.reports import ImportReport, Progress
from leaderboard.importing.run import import_file
from leaderboard.importing.source import UnusableFile, open_source

__all__ = [
    "CsvUsers",
    "ImportReport",
    "OnConflict",
    "Progress",
    "Rejected",
    "UnusableFile",
    "import_file",
    "open_source",
    "rejection_reason",
]
