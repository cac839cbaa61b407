"""The ends of seasons: what is refused, known days on which clocks change, and laws for all time zones."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leaderboard.schedules import Schedule

EVERY = ("hour", "day", "week", "month", "year")
MINUTE = timedelta(minutes=1)
# Clocks change at midnight, by half an hour, by two hours, never, or once by a whole day.
ZONES = (
    "UTC",
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Havana",
    "America/New_York",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Pyongyang",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Pacific/Apia",
    "Pacific/Chatham",
)
CRONS = ("30 2 * * *", "0 0 * * *", "15 1,2 * * SUN", "*/20 1-3 * * *", "0 */2 * * *", "0 4 1 * MON", "0 0 L * *")

zones = st.sampled_from(ZONES)
schedules = st.builds(
    lambda every, cron, zone: Schedule(every=every, cron=None if every else cron, timezone=zone),
    st.sampled_from([*EVERY, None]),
    st.sampled_from(CRONS),
    zones,
)
times = st.datetimes(datetime(2006, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))


def near_a_change(draw: st.DrawFn, zone: str) -> datetime:
    """Draws a time within hours or days of a change of the clocks, or any time if the zone has none."""
    moment = draw(times).replace(second=0, microsecond=0)
    before = moment.astimezone(ZoneInfo(zone)).utcoffset()
    for step, most in ((timedelta(days=1), 400), (MINUTE, 24 * 60)):
        for _ in range(most):
            if (moment + step).astimezone(ZoneInfo(zone)).utcoffset() != before:
                break
            moment += step
    far = draw(st.sampled_from([timedelta(hours=2), timedelta(days=3)]))
    return moment + draw(st.timedeltas(-far, far))


@st.composite
def schedules_and_times(draw: st.DrawFn) -> tuple[Schedule, datetime]:
    """Draws a schedule, and a time that is often near a change of the clocks."""
    schedule = draw(schedules)
    return schedule, draw(times) if draw(st.booleans()) else near_a_change(draw, schedule.timezone)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ends(schedule: Schedule, after: str, count: int) -> list[str]:
    """Returns the next ends as "day hour:minute" in UTC."""
    found = islice(schedule.ends_between(utc(after), utc("9000-01-01")), count)
    return [f"{end:%d %H:%M}" for end in found]


# Schedules


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ({}, ["needs every or cron", "hour, day, week, month, year", "five fields"]),
        ({"every": "day", "cron": "0 0 * * *"}, ["both every and cron"]),
        ({"every": "fortnight"}, ["'fortnight'", "hour, day, week, month, year"]),
        ({"every": ""}, ["''", "hour, day, week, month, year"]),
        ({"every": "day", "timezone": "Mars/Olympus"}, ["'Mars/Olympus'", "IANA", "Europe/Berlin"]),
        ({"every": "day", "timezone": ""}, ["''", "IANA"]),
        ({"every": "day", "timezone": "europe/berlin"}, ["IANA"]),
        ({"every": "day", "timezone": "Europe"}, ["IANA"]),
        ({"every": "day", "timezone": "../UTC"}, ["IANA"]),
        ({"every": "day", "timezone": "right/UTC"}, ["IANA"]),
        ({"every": "day", "timezone": "localtime"}, ["IANA"]),
        ({"every": "day", "timezone": "x\0" * 1000}, ["IANA"]),
        ({"cron": ""}, ["0 fields", "five fields"]),
        ({"cron": "0 0 * *"}, ["4 fields", "five fields"]),
        ({"cron": "0 0 0 * * *"}, ["6 fields", "five fields"]),
        ({"cron": "@daily"}, ["1 fields", "five fields"]),
        ({"cron": "60 0 * * *"}, ["the minute '60'", "0-59"]),
        ({"cron": "0 24 * * *"}, ["the hour '24'", "0-23"]),
        ({"cron": "0 0 0 * *"}, ["the day of the month '0'", "1-31"]),
        ({"cron": "0 0 * 13 *"}, ["the month '13'", "1-12 and JAN-DEC"]),
        ({"cron": "0 0 * * MONDAY"}, ["the day of the week 'MONDAY'", "0-7 and SUN-SAT"]),
        ({"cron": "5-1 0 * * *"}, ["the minute '5-1'"]),
        ({"cron": "*/0 0 * * *"}, ["the minute '*/0'"]),
        ({"cron": "-1 0 * * *"}, ["the minute '-1'"]),
        ({"cron": "0 \u0663 * * *"}, ["the hour '\\u0663'"]),
        ({"cron": "0 0 * * \u017fun"}, ["the day of the week '\\u017fun'"]),
        ({"cron": "0 0 30 2 *"}, ["never comes"]),
        ({"cron": "0 0 31 4,6,9,11 *"}, ["never comes"]),
        ({"cron": "0 0 */20 * 1L"}, ["never comes"]),
        ({"cron": "1" * 201}, ["201 characters"]),
        ({"cron": "9" * 190 + " * * * *"}, ["the minute '999"]),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_schedule_that_cannot_be_is_refused_with_a_reason(arguments: dict[str, Any], reasons: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        Schedule(**arguments)
    for reason in reasons:
        assert reason in str(error.value)
    assert str(error.value).isascii()
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"every": 1}, "every must be a string"),
        ({"every": "day", "timezone": 1}, "timezone must be a string"),
        ({"every": "day", "at": "04:00"}, "unknown field 'at'; there are every, cron, timezone"),
    ],
    ids=str,
)
def test_a_json_object_that_is_no_schedule_is_refused(members: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Schedule.from_json(members)


def test_a_schedule_is_a_json_object() -> None:
    assert Schedule.from_json({"every": "week"}).to_json() == {"every": "week", "timezone": "UTC"}
    assert Schedule.from_json({"every": "day", "cron": None, "timezone": None}) == Schedule(every="day")
    cron = {"cron": "  0 4 *  * MON ", "timezone": "Europe/Berlin"}
    assert Schedule.from_json(cron).to_json() == {"cron": "0 4 * * MON", "timezone": "Europe/Berlin"}


@given(schedules)
def test_a_schedule_is_the_same_after_json(schedule: Schedule) -> None:
    assert Schedule.from_json(schedule.to_json()) == schedule


# Known days


@pytest.mark.parametrize(
    ("every", "zone", "after", "end"),
    [
        ("hour", "UTC", "2026-05-06T07:08:09", "2026-05-06T08:00"),
        ("day", "UTC", "2026-05-06T07:08:09", "2026-05-07T00:00"),
        ("week", "UTC", "2026-05-06T07:08:09", "2026-05-11T00:00"),
        ("month", "UTC", "2026-05-06T07:08:09", "2026-06-01T00:00"),
        ("year", "UTC", "2026-05-06T07:08:09", "2027-01-01T00:00"),
        ("week", "Europe/Berlin", "2026-05-06T07:08:09", "2026-05-10T22:00"),
        ("month", "Europe/Berlin", "2026-05-06T07:08:09", "2026-05-31T22:00"),
        ("year", "Europe/Berlin", "2026-05-06T07:08:09", "2026-12-31T23:00"),
        ("hour", "Asia/Kathmandu", "2026-05-06T07:08:09", "2026-05-06T07:15"),
        # An end itself, and the last microsecond before it.
        ("day", "UTC", "2026-05-06T00:00", "2026-05-07T00:00"),
        ("day", "UTC", "2026-05-05T23:59:59.999999", "2026-05-06T00:00"),
        ("hour", "UTC", "2026-05-06T07:00", "2026-05-06T08:00"),
        ("hour", "UTC", "2026-05-06T07:59:59.999999", "2026-05-06T08:00"),
    ],
)
def test_the_next_end_of_each_kind(every: str, zone: str, after: str, end: str) -> None:
    found = Schedule(every=every, timezone=zone).next_end(utc(after))
    assert found == utc(end)
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("arguments", "zone", "after", "expected"),
    [
        # Midnight is missing: the day begins at 01:00.
        ({"every": "day"}, "America/Sao_Paulo", "2018-11-03T12:00", ["04 03:00", "05 02:00", "06 02:00"]),
        ({"every": "day"}, "Asia/Beirut", "2022-03-26T12:00", ["26 22:00", "27 21:00", "28 21:00"]),
        ({"every": "day"}, "Africa/Cairo", "2024-04-25T12:00", ["25 22:00", "26 21:00", "27 21:00"]),
        # Midnight is there twice: the first counts.
        ({"every": "day"}, "America/Havana", "2024-11-02T12:00", ["03 04:00", "04 05:00", "05 05:00"]),
        ({"every": "day"}, "America/Havana", "2024-11-03T04:30", ["04 05:00", "05 05:00"]),
        # 23:00 is there twice, and midnight once.
        ({"every": "day"}, "America/Sao_Paulo", "2019-02-15T12:00", ["16 02:00", "17 03:00", "18 03:00"]),
        # The day 30 was left out.
        ({"every": "day"}, "Pacific/Apia", "2011-12-28T20:00", ["29 10:00", "30 10:00", "31 10:00"]),
        # Days of 23 and 25 hours.
        ({"every": "day"}, "Europe/Berlin", "2025-03-29T12:00", ["29 23:00", "30 22:00"]),
        ({"every": "day"}, "Europe/Berlin", "2025-10-25T12:00", ["25 22:00", "26 23:00"]),
        # Hours: the one that is there twice is two, the missing one is none.
        ({"every": "hour"}, "Europe/Berlin", "2025-10-25T23:30", ["26 00:00", "26 01:00", "26 02:00", "26 03:00"]),
        ({"every": "hour"}, "Europe/Berlin", "2025-03-30T00:30", ["30 01:00", "30 02:00"]),
        ({"every": "hour"}, "Antarctica/Troll", "2025-10-25T23:30", ["26 00:00", "26 01:00", "26 02:00"]),
        # By half an hour. At 02:00 the clock goes to 02:30; at 02:00 it goes back to 01:30.
        ({"every": "hour"}, "Australia/Lord_Howe", "2025-10-04T14:00", ["04 14:30", "04 15:30", "04 16:00"]),
        ({"every": "hour"}, "Australia/Lord_Howe", "2025-04-05T13:30", ["05 14:00", "05 15:30", "05 16:30"]),
        ({"every": "day"}, "Australia/Lord_Howe", "2025-04-05T12:00", ["05 13:00", "06 13:30"]),
        # Cron: a missing time is the moment of the change, the first of two counts.
        ({"cron": "30 2 * * *"}, "Europe/Berlin", "2025-03-29T12:00", ["30 01:00", "31 00:30"]),
        ({"cron": "0 3 * * *"}, "Europe/Berlin", "2025-03-29T12:00", ["30 01:00", "31 01:00"]),
        ({"cron": "0 2,3 * * *"}, "Europe/Berlin", "2025-03-30T00:30", ["30 01:00", "31 00:00", "31 01:00"]),
        ({"cron": "*/20 * * * *"}, "Europe/Berlin", "2025-03-30T00:30", ["30 00:40", "30 01:00", "30 01:20"]),
        ({"cron": "20 * * * *"}, "Europe/Berlin", "2025-03-29T23:30", ["30 00:20", "30 01:00", "30 01:20"]),
        ({"cron": "30 2 * * *"}, "Europe/Berlin", "2025-10-25T12:00", ["26 00:30", "27 01:30"]),
        ({"cron": "30 2 * * *"}, "Europe/Berlin", "2025-10-26T01:10", ["27 01:30", "28 01:30"]),
        ({"cron": "0 */2 * * *"}, "Europe/Berlin", "2025-10-25T21:30", ["25 22:00", "26 00:00", "26 03:00"]),
        ({"cron": "0 * * * *"}, "Europe/Berlin", "2025-10-25T22:30", ["25 23:00", "26 00:00", "26 02:00"]),
        ({"cron": "15 2 * * *"}, "Australia/Lord_Howe", "2025-10-04T12:00", ["04 15:30", "05 15:15"]),
        ({"cron": "45 1 * * *"}, "Australia/Lord_Howe", "2025-04-05T12:00", ["05 14:45", "06 15:15"]),
        # The day of the month or the day of the week, if neither is *; the last Friday.
        ({"cron": "0 0 1 * MON"}, "UTC", "2026-05-27T00:00", ["01 00:00", "08 00:00", "15 00:00"]),
        ({"cron": "0 0 * * 5L"}, "UTC", "2026-05-01T00:00", ["29 00:00", "26 00:00"]),
    ],
)
def test_the_ends_around_a_change_of_the_clocks(
    arguments: dict[str, str], zone: str, after: str, expected: list[str]
) -> None:
    assert ends(Schedule(**arguments, timezone=zone), after, len(expected)) == expected


def test_a_leap_day_comes_after_years() -> None:
    assert Schedule(cron="0 0 29 2 *").next_end(utc("2096-03-01")) == utc("2104-02-29")
    assert Schedule(cron="0 0 * 2 MON#5").next_end(utc("2072-03-01")) == utc("2112-02-29")


def test_any_time_zone_will_do_for_after_but_none_will_not() -> None:
    schedule = Schedule(every="day")
    after = datetime(2026, 5, 6, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    assert schedule.next_end(after) == utc("2026-05-08")
    with pytest.raises(ValueError, match="time zone"):
        schedule.next_end(datetime(2026, 5, 6))


def test_the_missed_ends_are_those_since_and_up_to_now() -> None:
    schedule = Schedule(every="day")
    day = [utc(f"2026-05-{n:02}") for n in range(1, 6)]
    assert list(schedule.ends_between(day[0], day[3])) == day[1:4]
    assert list(schedule.ends_between(day[0], day[3] - MINUTE)) == day[1:3]
    assert list(schedule.ends_between(day[0], day[0])) == []
    assert list(schedule.ends_between(day[3], day[0])) == []


# Laws


@given(schedules_and_times(), st.floats(0, 1, exclude_max=True))
@example((Schedule(cron="30 2 * * *", timezone="Europe/Berlin"), utc("2025-10-26T01:10")), 0.5)
def test_the_ends_do_not_depend_on_when_they_are_asked_for(drawn: tuple[Schedule, datetime], part: float) -> None:
    schedule, after = drawn
    end = schedule.next_end(after)
    assert end > after
    assert end.tzinfo is UTC
    assert schedule.next_end(min(after + part * (end - after), end - timedelta(microseconds=1))) == end
    assert schedule.next_end(end - timedelta(microseconds=1)) == end
    assert schedule.next_end(end) > end


@given(schedules_and_times())
def test_the_missed_ends_are_all_the_next_ends(drawn: tuple[Schedule, datetime]) -> None:
    schedule, after = drawn
    expected = [schedule.next_end(after)]
    for _ in range(5):
        expected.append(schedule.next_end(expected[-1]))
    assert list(schedule.ends_between(after, expected[-1])) == expected
    assert list(schedule.ends_between(after, expected[-1] - timedelta(microseconds=1))) == expected[:-1]


def hour(local: datetime) -> Any:
    return local.replace(minute=0)


PERIODS: dict[str, Callable[[datetime], Any]] = {
    "day": lambda local: local.date(),
    "week": lambda local: local.isocalendar()[:2],
    "month": lambda local: (local.year, local.month),
    "year": lambda local: local.year,
}


def walls(zone: str, start: datetime, minutes: int) -> list[tuple[datetime, datetime]]:
    """Returns moments a minute apart, and the local time of each."""
    moments = [start + n * MINUTE for n in range(minutes)]
    return [(moment, moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)) for moment in moments]


@st.composite
def zones_and_changes(draw: st.DrawFn) -> tuple[str, datetime]:
    zone = draw(zones)
    return zone, near_a_change(draw, zone).replace(second=0, microsecond=0)


@given(zones_and_changes(), st.sampled_from(list(PERIODS)))
@example(("Africa/Cairo", utc("2024-04-25T12:00")), "day")
@example(("America/Havana", utc("2024-11-02T12:00")), "day")
@example(("Pacific/Apia", utc("2011-12-29T12:00")), "day")
def test_a_period_ends_when_the_local_date_is_in_the_next(drawn: tuple[str, datetime], every: str) -> None:
    zone, start = drawn
    period = PERIODS[every]
    moments = walls(zone, start - timedelta(hours=26), 75 * 60)
    expected, latest = [], period(moments[0][1])
    for moment, local in moments:
        # Clocks that are put back to the day before do not begin that day again.
        if period(local) > latest:
            latest = period(local)
            expected.append(moment)
    schedule = Schedule(every=every, timezone=zone)
    assert list(schedule.ends_between(start, moments[-1][0])) == [end for end in expected if end > start]


@given(zones_and_changes())
@example(("Australia/Lord_Howe", utc("2025-10-04T12:00")))
@example(("Australia/Lord_Howe", utc("2025-04-05T12:00")))
@example(("Antarctica/Troll", utc("2025-10-25T20:00")))
def test_an_hour_ends_when_the_local_time_is_full_or_jumps_over_that(drawn: tuple[str, datetime]) -> None:
    zone, start = drawn
    moments = walls(zone, start, 30 * 60)
    expected = [
        moment
        for (_, before), (moment, local) in pairwise(moments)
        if local.minute == 0 or (local > before and hour(local) > before)
    ]
    assert list(Schedule(every="hour", timezone=zone).ends_between(start, moments[-1][0])) == expected


@given(zones, st.integers(0, 23), st.integers(0, 59), st.integers(2006, 2036))
@example("Europe/Berlin", 2, 30, 2025)
@example("Australia/Lord_Howe", 2, 15, 2025)
@example("Pacific/Apia", 12, 0, 2011)
def test_a_daily_cron_expression_comes_once_a_day(zone: str, at_hour: int, minute: int, year: int) -> None:
    schedule = Schedule(cron=f"{minute} {at_hour} * * *", timezone=zone)
    start = datetime(year, 1, 5, tzinfo=ZoneInfo(zone))
    until = datetime(year + 1, 1, 5, tzinfo=ZoneInfo(zone))
    found = list(schedule.ends_between(start - timedelta(microseconds=1), until - timedelta(microseconds=1)))
    days = (until.date() - start.date()).days
    # Where a whole day was left out, its end and that of the next day may be one.
    assert days - 1 <= len(found) <= days
    assert len(found) == days or (zone, year) == ("Pacific/Apia", 2011)
    for end in found:
        local = end.astimezone(ZoneInfo(zone))
        if (local.hour, local.minute) != (at_hour, minute):
            wanted = (end - MINUTE).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
            assert wanted < local.replace(tzinfo=None) - MINUTE, "only a missing time is moved"
        assert local.fold == 0
