"""Makes text from outside safe to print on a terminal and in a log of lines.

Names, URLs, paths and error messages contain text from clients, files and databases. Printed unchanged, an escape
sequence would control the terminal, a line break would forge a log line, and a bidi override would reorder it.
"""

_MARK = "  | "
_CUT = "\n… {} characters are left out …\n"


def printable(text: str) -> str:
    r"""Return `text` on one line, with an escape such as `\x1b` for each character that is not printable.

    `str.isprintable` decides: no control or format character, no line or paragraph separator, no lone surrogate,
    no space but U+0020. A backslash stays as it is, so an escape looks the same as these characters in `text`.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """Return `text` with each line printable, after a mark that says that it continues a log line.

    For tracebacks and the end of a server's log, which are unreadable on one line. No log line begins with the
    mark, so a line break in an error message cannot forge a log line, even for a reader that strips spaces.
    """
    return "\n".join(f"{_MARK}{printable(line)}" for line in text.split("\n"))


def shortened(text: str, most: int) -> str:
    """Return `text`, or about `most` characters: its beginning, and more of its end, where an error is."""
    if len(text) <= most:
        return text
    head = most // 3
    tail = most - head
    return text[:head] + _CUT.format(len(text) - most) + text[-tail:]
