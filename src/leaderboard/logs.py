"""Structured logs on standard error."""

import json
import logging
import re
import sys
import traceback
from typing import Any, Literal

import structlog

from leaderboard.printable import printable, printable_lines, shortened

MAX_CHARACTERS = 10_000
"""Characters of one text in a log line, such as a traceback. A longer text loses its middle."""

_PRINTED_AS_THEY_ARE = frozenset({"level", "logger", "logger_name", "timestamp"})
_PRINTED_BELOW = frozenset({"exception", "stack", "stack_info"})
_NOT_PLAIN = re.compile(r"[^ -~]")


def set_up_logs(level: str, style: Literal["json", "text"]) -> None:
    """Send one line an event to standard error, from this program and from the libraries it uses.

    A traceback has no local variables: they hold keys, names and bodies of requests. Characters that are not
    printable are escaped. "json": a line is ASCII, and its strings mean exactly what was logged. "text": a
    traceback follows its line, and each of its lines has a mark, so that no message can forge a line of the log.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    finish: list[structlog.typing.Processor] = [structlog.processors.ExceptionRenderer(_traceback), _bounded]
    if style == "json":
        finish += [structlog.processors.JSONRenderer(_json)]
    else:
        # It gets exceptions as text; its default formatter, which shows local variables, must not be reachable.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        )
        finish += [_printable_event, console]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Writes a line and its end in one call: several processes share standard error.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def _traceback(exc_info: structlog.typing.ExcInfo) -> str:
    return "".join(traceback.format_exception(*exc_info)).rstrip("\n")


def _bounded(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: _short(value) for key, value in event.items()}


def _short(value: object) -> object:
    if isinstance(value, str):
        return shortened(value, MAX_CHARACTERS)
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def _printable_event(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make printable what ConsoleRenderer prints unchanged; of other texts it prints the printable `repr`.

    The further lines of an event go below its line too: Granian logs a traceback as one text.
    """
    shown: structlog.typing.EventDict = {}
    below: list[str] = []
    for key, value in event.items():
        if key == "event":
            first, *more = str(value).split("\n", 1)
            shown[key] = printable(first)
            below = more + below
        elif key in _PRINTED_BELOW:
            below.append(str(value))
        elif key in _PRINTED_AS_THEY_ARE:
            shown[key] = printable(str(value))
        elif isinstance(value, str) or repr(value).isprintable():
            shown[printable(key)] = value
        else:
            shown[printable(key)] = printable(repr(value))
    if below:
        shown["exception"] = printable_lines("\n".join(below))
    return shown


def _json(event: structlog.typing.EventDict, **options: Any) -> str:
    """`event` as JSON in ASCII without control characters."""
    return _NOT_PLAIN.sub(_json_escape, json.dumps(event, ensure_ascii=False, **options))


def _json_escape(match: re.Match[str]) -> str:
    character = match[0]
    if "\ud800" <= character <= "\udfff":
        # No character, so JSON has no way to write it that every reader takes.
        return "\\" + printable(character)
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
