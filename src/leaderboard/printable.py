"""Makes text from outside safe to show on a terminal and in a log that is read line by line.

Names, URLs, paths and errors' messages quote a client, a file or a database. Shown unchanged, an escape sequence
commands the terminal, a line break forges a line of the log, and a bidi override reorders it.
"""

_MARK = "  | "
_CUT = "\n… {} characters are left out …\n"


def printable(text: str) -> str:
    r"""`text` on one line, with an escape such as `\x1b` or `\u202e` for each character that is not printable.

    Printable is what `str.isprintable` says: no control or format character, no line or paragraph separator, no
    half of a surrogate pair, no space but the plain one. A backslash stays as it is, so the result is for people:
    it does not distinguish an escape from the same characters in `text`.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """Each line of `text` printable, after a mark that says that it belongs to the line before.

    For tracebacks and the end of a server's log, which are unreadable on one line. No log line begins with the
    mark, so a line break in an error's message cannot forge one, not even for a reader that strips spaces.
    """
    return "\n".join(f"{_MARK}{printable(line)}" for line in text.split("\n"))


def shortened(text: str, most: int) -> str:
    """`text`, or about `most` characters of it: its beginning, and more of its end, where an error stands."""
    if len(text) <= most:
        return text
    head = most // 3
    tail = most - head
    return text[:head] + _CUT.format(len(text) - most) + text[-tail:]
