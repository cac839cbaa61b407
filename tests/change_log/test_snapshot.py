"""The laws of snapshots: every promise about freshness is a question to `covers`, `sees` and `reflects`."""

from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.snapshot import CommitPosition, Snapshot, SnapshotPosition
from tests.system import sql

XIDS = range(3, 30)
"""Small, so that everything that a snapshot says can be asked of it one by one."""

Row = tuple[Snapshot, int]


@st.composite
def snapshots(draw: st.DrawFn, largest: int = XIDS.stop, *, real: bool = False) -> Snapshot:
    """Any well-formed one. A `real` one ends with a transaction that has ended, as all of PostgreSQL's do."""
    xmax = draw(st.integers(XIDS.start, largest))
    running = draw(st.frozensets(st.integers(max(XIDS.start, xmax - 30), xmax), max_size=8))
    xip = frozenset(xid for xid in running if xid < (xmax - 1 if real else xmax))
    return Snapshot(min(xip, default=xmax), xmax, xip)


def seen(snapshot: Snapshot) -> set[int]:
    return {xid for xid in XIDS if snapshot.sees(xid)}


@given(snapshots(largest=2**62))
def test_parse_undoes_str(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


@given(snapshots())
def test_covers_is_reflexive(snapshot: Snapshot) -> None:
    assert snapshot.covers(snapshot)


@given(snapshots(), snapshots(), snapshots())
def test_covers_is_transitive(a: Snapshot, b: Snapshot, c: Snapshot) -> None:
    if a.covers(b) and b.covers(c):
        assert a.covers(c)


@given(snapshots(), snapshots())
def test_what_covers_sees_as_much(a: Snapshot, b: Snapshot) -> None:
    if a.covers(b):
        assert seen(a) >= seen(b)


@settings(max_examples=500)
@given(snapshots(real=True), snapshots(real=True))
def test_of_real_snapshots_covers_says_exactly_who_sees_as_much(a: Snapshot, b: Snapshot) -> None:
    assert a.covers(b) == (seen(a) >= seen(b))


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "look"]), st.integers(0, 100)), max_size=60))
def test_later_snapshots_cover_earlier_ones(history: list[tuple[str, int]]) -> None:
    running: list[int] = []
    next_xid = XIDS.start
    completed = XIDS.start - 1
    looks: list[tuple[Snapshot, set[int]]] = []
    ended: set[int] = set()
    for event, chance in history:
        if event == "begin":
            running.append(next_xid)
            next_xid += 1
        elif event == "end" and running:
            xid = running.pop(chance % len(running))
            ended.add(xid)
            completed = max(completed, xid)
        elif event == "look":
            xip = frozenset(xid for xid in running if xid <= completed)
            looks.append((Snapshot(min(xip, default=completed + 1), completed + 1, xip), set(ended)))
    for index, (later, ended_then) in enumerate(looks):
        assert {xid for xid in range(XIDS.start, next_xid) if later.sees(xid)} == ended_then
        for earlier, ended_before in looks[: index + 1]:
            assert later.covers(earlier)
            assert earlier.covers(later) == (ended_before == ended_then)


@given(snapshots(), snapshots(), st.sampled_from(XIDS), st.booleans())
def test_a_moment_reflects_only_its_own_epoch(a: Snapshot, b: Snapshot, xid: int, same_epoch: bool) -> None:
    view = SnapshotPosition("this life", a)
    epoch = "this life" if same_epoch else "another"
    assert view.reflects(SnapshotPosition(epoch, b)) == (same_epoch and a.covers(b))
    assert view.reflects(CommitPosition(epoch, xid)) == (same_epoch and a.sees(xid))


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.tuples(snapshots(), st.sampled_from(XIDS)), min_size=50, max_size=400))
def test_postgres_agrees(template: Settings, rows: list[Row]) -> None:
    answers = sql(
        template.model_copy(update={"db_name": "postgres"}),
        "SELECT snapshot::text, xmin, xmax, xip, pg_visible_in_snapshot(xid::text::xid8, snapshot) AS visible"
        " FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS asked (text, xid, place),"
        " LATERAL (SELECT text::pg_snapshot AS snapshot) AS parsed,"
        " LATERAL (SELECT pg_snapshot_xmin(snapshot)::text AS xmin, pg_snapshot_xmax(snapshot)::text AS xmax,"
        "          ARRAY(SELECT pg_snapshot_xip(snapshot)::text) AS xip) AS parts"
        " ORDER BY place",
        [str(snapshot) for snapshot, _ in rows],
        [xid for _, xid in rows],
    )
    assert len(answers) == len(rows)
    for answer, (snapshot, xid) in zip(answers, rows, strict=True):
        assert answer["snapshot"] == str(snapshot)
        assert (int(answer["xmin"]), int(answer["xmax"])) == (snapshot.xmin, snapshot.xmax)
        assert {int(running) for running in answer["xip"]} == snapshot.xip
        assert answer["visible"] == snapshot.sees(xid)
