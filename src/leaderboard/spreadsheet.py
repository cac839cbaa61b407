r"""Cells that a spreadsheet must not run as formulas.

A spreadsheet may take a cell that begins with `=`, `+`, `-`, `@`, a tab or a line break for a formula. `neutral`
writes an apostrophe before such a cell, and before one that has apostrophes and then such a beginning. So
`original` takes away one apostrophe, and the cell is as before. A cell such as `'tis` is written as it is.
"""

import re

# The fullwidth forms too: a spreadsheet in Japanese takes them for the others.
_FORMULA = re.compile(r"'*\s*[\t\r\n=+\-@\uff1d\uff0b\uff0d\uff20]")


def neutral(cell: str) -> str:
    """Return the cell as text for a spreadsheet: with an apostrophe if it would be a formula without it."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def original(cell: str) -> str:
    """Return the cell that `neutral` was called with."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
