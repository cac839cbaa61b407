"""Imports users and scores from a CSV file, and reports by line the rows that it rejects.

The file is read as a stream. A fault in a row costs that row. A fault in the file, such as no header, stops the
import before anything is written.
"""

from leaderboard.database.importer import BoardChanged, OnConflict
from leaderboard.importing.csv_users import CsvUsers, Rejected, rejection_reason
from leaderboard.importing.reports import ImportReport, Progress
from leaderboard.importing.run import import_file
from leaderboard.importing.source import UnusableFile, open_source

__all__ = [
    "BoardChanged",
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
