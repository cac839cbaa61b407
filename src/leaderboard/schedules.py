"""When the seasons of a board end: each hour, day, week, month or year, or by a cron expression.

Pure functions of the time that they are given. Days of 23 and 25 hours, and local times that are missing or there
twice, are explained in docs/decisions/0017-season-schedules.md.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

Every = Literal["hour", "day", "week", "month", "year"]

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)

_EVERY = MappingProxyType(
    {
        "hour": None,
        "day": "0 0 * * *",
        "week": "0 0 * * MON",
        "month": "0 0 1 * *",
        "year": "0 0 1 1 *",
    }
)
"""The values of `every`, and the cron expression of each. "hour" has none: an hour that is there twice is two."""
_EVERY_ALLOWED = f"{', '.join(_EVERY)} are allowed"

_FIELDS = (
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of the month", "1-31, L and LW"),
    ("month", "1-12 and JAN-DEC"),
    ("day of the week", "0-7 and SUN-SAT, 5L and MON#2"),
)
_CRON_ALLOWED = f"five fields are allowed: {', '.join(name for name, _ in _FIELDS)}, such as 0 4 * * MON"
_MAX_CRON = 200
"""Most characters of a cron expression. A list of all 60 minutes has 169."""
_MAX_SHOWN = 40
_ANY_TIME = datetime(2000, 1, 1)
"""Where the search for the first end of a cron expression begins, to learn whether it ever comes.

Ends repeat every 400 years, and the longest pause between two is 40 years (a weekday on 29 February).
"""

_MEMBERS = ("every", "cron", "timezone")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When seasons end: `every` ("hour", "day", "week", "month", "year") or `cron`, in a time zone.

    A week ends on Monday at 00:00. `timezone` is a name of the IANA database. Raises ValueError whose message says
    what is wrong and what is allowed.
    """

    every: str | None = None
    cron: str | None = None
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        if self.every is not None and self.cron is not None:
            raise ValueError("has both every and cron; one of them is allowed")
        if self.timezone not in _zone_names():
            raise ValueError(
                f"timezone {_shown(self.timezone)} is unknown;"
                " names of the IANA time zone database are allowed, such as UTC or Europe/Berlin"
            )
        if self.cron is not None:
            _check_cron(self.cron)
        elif self.every is None:
            raise ValueError(f"needs every or cron; for every, {_EVERY_ALLOWED}; for cron, {_CRON_ALLOWED}")
        elif self.every not in _EVERY:
            raise ValueError(f"every is {_shown(self.every)}; {_EVERY_ALLOWED}")

    @classmethod
    def from_json(cls, members: Mapping[str, object]) -> Self:
        """Return the schedule that a parsed JSON object describes; null is a missing field. Raises ValueError."""
        texts: dict[str, str] = {}
        for name, value in members.items():
            if name not in _MEMBERS:
                raise ValueError(f"has the unknown field {_shown(name)}; there are {', '.join(_MEMBERS)}")
            if isinstance(value, str):
                texts[name] = " ".join(value.split()) if name == "cron" else value
            elif value is not None:
                raise ValueError(f"{name} must be a string")
        return cls(**texts)

    def to_json(self) -> dict[str, str]:
        """Return the schedule as a JSON object. `from_json` makes an equal one of it."""
        return {name: value for name in _MEMBERS if (value := getattr(self, name)) is not None}

    def next_end(self, after: datetime) -> datetime:
        """Return the first end later than `after`. Both are aware; the result is in UTC.

        A local time that is missing ends the season at the moment when the clock is put forward. A local time that
        is there twice ends it the first time, except that "hour" ends it both times. Raises ValueError if `after`
        is naive, OverflowError if the end is after the year 9999.
        """
        if after.utcoffset() is None:
            raise ValueError("after has no time zone; an aware datetime is needed")
        after, zone = after.astimezone(UTC), ZoneInfo(self.timezone)
        cron = self.cron or _EVERY[self.every or ""]
        return _next_hour(after, zone) if cron is None else _next_local_time(cron, after, zone)

    def ends_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the ends later than `after` and not later than `until`, the earliest first, in UTC."""
        end = self.next_end(after)
        while end <= until:
            yield end
            end = self.next_end(end)


@cache
def _zone_names() -> frozenset[str]:
    """Return the names of all time zones.

    The list of the package `tzdata` is the same on every machine. The system's folder also has files that are not
    time zones, and zones that count leap seconds.
    """
    return frozenset(files("tzdata").joinpath("zones").read_text("ascii").split())


def _check_cron(cron: str) -> None:
    """Raises ValueError if a cron expression is malformed or never comes."""
    if len(cron) > _MAX_CRON:
        raise ValueError(f"cron is {len(cron)} characters long; up to {_MAX_CRON} are allowed")
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"cron {_shown(cron)} has {len(fields)} fields; {_CRON_ALLOWED}")
    for n, (field, (name, allowed)) in enumerate(zip(fields, _FIELDS, strict=True)):
        others = ["*"] * len(_FIELDS)
        others[n] = field
        try:
            # CronSim makes capitals of other letters, too, such as the long s.
            if not field.isascii():
                raise CronSimError
            CronSim(" ".join(others), _ANY_TIME)
        except CronSimError:
            raise ValueError(
                f"cron has the {name} {_shown(field)}; allowed are {allowed},"
                " * for all, and lists, ranges and steps, such as 1,5 or 1-5 or */2"
            ) from None
    try:
        next(CronSim(cron, _ANY_TIME))
    except (CronSimError, StopIteration):
        raise ValueError(
            f"cron {_shown(cron)} never comes; a day that exists in one of its months is needed"
        ) from None


def _next_local_time(cron: str, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment later than `after` at which a cron expression comes.

    CronSim gets local times without a zone. With a zone, its next time can be before the one that it was given: in
    the second pass of a repeated hour it returns a time of the first.
    """
    for local in CronSim(cron, _local(after, zone)):
        # Later local times are never earlier moments, so the first one that is late enough is the first of all.
        end = _moment(local, zone)
        if end > after:
            return end
    raise OverflowError(f"cron {cron!r} does not come within 50 years")


def _next_hour(after: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment later than `after` at which a local hour is full, or would have been."""
    since = after.replace(microsecond=0)
    local = _local(since, zone)
    full = since + _HOUR - timedelta(minutes=local.minute, seconds=local.second)
    if _offset(full, zone) == _offset(since, zone):
        return full
    change = _first_change(since, full, zone)
    local = _local(change, zone)
    # The full hours that the clock jumps over forward are all at this moment. Backward it jumps over none.
    jumped_from = min(change.replace(tzinfo=None) + _offset(since, zone), local)
    if local.replace(minute=0, second=0) >= jumped_from:
        return change
    return _next_hour(change, zone)


def _moment(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment of a local time: the first of two; if it is missing, that of the change."""
    moment = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _local(moment, zone) == local:
        return moment
    # With fold=1 a missing time is a moment before the change, with fold=0 one after it (PEP 495).
    return _first_change(local.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def _first_change(before: datetime, until: datetime, zone: ZoneInfo) -> datetime:
    """Return the first whole second later than `before`, and up to `until`, with another offset."""
    old = _offset(before, zone)
    seconds = range(1, (until - before) // _SECOND + 1)
    found = bisect_left(seconds, True, key=lambda n: _offset(before + n * _SECOND, zone) != old)
    return before + seconds[found] * _SECOND


def _local(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _shown(text: str) -> str:
    return ascii(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
