"""The laws of `covers`, `sees` and `reflects`, on which every promise about freshness rests."""

from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.snapshot import CommitPosition, Snapshot, SnapshotPosition
from tests.system import sql

XIDS = range(3, 30)
"""Few, so that a test can call `sees` for each of them."""

Row = tuple[Snapshot, int]


@st.composite
def snapshots(draw: st.DrawFn, largest: int = XIDS.stop, *, real: bool = False) -> Snapshot:
    """A well-formed snapshot. A `real` one ends with an ended transaction, as all snapshots of PostgreSQL do."""
    xmax = draw(st.integers(XIDS.start, largest))
    running = draw(st.frozensets(st.integers(max(XIDS.start, xmax - 30), xmax), max_size=8))
    xip = frozenset(xid for xid in running if xid < (xmax - 1 if real else xmax))
    return Snapshot(min(xip, default=xmax), xmax, xip)


def visible_xids(snapshot: Snapshot) -> set[int]:
    return {xid for xid in XIDS if snapshot.sees(xid)}


@given(snapshots(largest=2**62))
def test_parse_is_the_inverse_of_str(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


@given(snapshots())
def test_covers_is_reflexive(snapshot: Snapshot) -> None:
    assert snapshot.covers(snapshot)


@given(snapshots(), snapshots(), snapshots())
def test_covers_is_transitive(a: Snapshot, b: Snapshot, c: Snapshot) -> None:
    if a.covers(b) and b.covers(c):
        assert a.covers(c)


@given(snapshots(), snapshots())
def test_a_snapshot_sees_all_that_a_covered_one_sees(a: Snapshot, b: Snapshot) -> None:
    if a.covers(b):
        assert visible_xids(a) >= visible_xids(b)


@settings(max_examples=500)
@given(snapshots(real=True), snapshots(real=True))
def test_a_real_snapshot_covers_exactly_those_that_see_no_more(a: Snapshot, b: Snapshot) -> None:
    assert a.covers(b) == (visible_xids(a) >= visible_xids(b))


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "take"]), st.integers(0, 100)), max_size=60))
def test_later_snapshots_cover_earlier_ones(history: list[tuple[str, int]]) -> None:
    running: list[int] = []
    next_xid = XIDS.start
    completed = XIDS.start - 1
    taken: list[tuple[Snapshot, set[int]]] = []
    ended: set[int] = set()
    for event, chance in history:
        if event == "begin":
            running.append(next_xid)
            next_xid += 1
        elif event == "end" and running:
            xid = running.pop(chance % len(running))
            ended.add(xid)
            completed = max(completed, xid)
        elif event == "take":
            xip = frozenset(xid for xid in running if xid <= completed)
            taken.append((Snapshot(min(xip, default=completed + 1), completed + 1, xip), set(ended)))
    for index, (later, ended_then) in enumerate(taken):
        assert {xid for xid in range(XIDS.start, next_xid) if later.sees(xid)} == ended_then
        for earlier, ended_before in taken[: index + 1]:
            assert later.covers(earlier)
            assert earlier.covers(later) == (ended_before == ended_then)


@given(snapshots(), snapshots(), st.sampled_from(XIDS), st.booleans())
def test_a_position_reflects_only_positions_of_its_epoch(
    a: Snapshot, b: Snapshot, xid: int, same_epoch: bool
) -> None:
    view = SnapshotPosition("this epoch", a)
    epoch = "this epoch" if same_epoch else "another"
    assert view.reflects(SnapshotPosition(epoch, b)) == (same_epoch and a.covers(b))
    assert view.reflects(CommitPosition(epoch, xid)) == (same_epoch and a.sees(xid))


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.tuples(snapshots(), st.sampled_from(XIDS)), min_size=50, max_size=400))
def test_snapshots_agree_with_postgres(template: Settings, rows: list[Row]) -> None:
    rows_of_postgres = sql(
        template.model_copy(update={"db_name": "postgres"}),
        "SELECT snapshot::text, xmin, xmax, xip, pg_visible_in_snapshot(xid::text::xid8, snapshot) AS visible"
        " FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS given (text, xid, place),"
        " LATERAL (SELECT text::pg_snapshot AS snapshot) AS parsed,"
        " LATERAL (SELECT pg_snapshot_xmin(snapshot)::text AS xmin, pg_snapshot_xmax(snapshot)::text AS xmax,"
        "          ARRAY(SELECT pg_snapshot_xip(snapshot)::text) AS xip) AS parts"
        " ORDER BY place",
        [str(snapshot) for snapshot, _ in rows],
        [xid for _, xid in rows],
    )
    assert len(rows_of_postgres) == len(rows)
    for found, (snapshot, xid) in zip(rows_of_postgres, rows, strict=True):
        assert found["snapshot"] == str(snapshot)
        assert (int(found["xmin"]), int(found["xmax"])) == (snapshot.xmin, snapshot.xmax)
        assert {int(running) for running in found["xip"]} == snapshot.xip
        assert found["visible"] == snapshot.sees(xid)
