"""Imports users and scores from CSV or JSON Lines, and reports by line the rows that it rejects.

The file is read as a stream. A fault in a row costs that row. A fault in the file, such as no header, stops the
import before anything is written. So does a property of the file that must be said, such as its encoding.
"""

from leaderboard.database.importer import BoardChanged, OnConflict
from leaderboard.importing.columns import ColumnOptions
from leaderboard.importing.csv_users import CsvUsers, Rejected, rejection_reason
from leaderboard.importing.json_users import JsonUsers
from leaderboard.importing.reports import ImportReport, Preview, Progress
from leaderboard.importing.run import Listener, import_file, preview_file
from leaderboard.importing.source import UnusableFile, open_source
from leaderboard.importing.understanding import Format, Options, Understood, understand

__all__ = [
    "BoardChanged",
    "ColumnOptions",
    "CsvUsers",
    "Format",
    "ImportReport",
    "JsonUsers",
    "Listener",
    "OnConflict",
    "Options",
    "Preview",
    "Progress",
    "Rejected",
    "Understood",
    "UnusableFile",
    "import_file",
    "open_source",
    "preview_file",
    "rejection_reason",
    "understand",
]
