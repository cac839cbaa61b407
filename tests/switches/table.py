"""The table: every mechanism of consistency, how to switch it off, and the tests that notice.

A switch is the smallest edit of the source that disables its mechanism and leaves all else working. It is made
in a copy of the source, never in the source itself.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "leaderboard"
DOCUMENTATION = ROOT / "docs" / "switched-off.md"


@dataclass(frozen=True)
class Edit:
    """Text of one file under `src/leaderboard`, which has it exactly once, and what is put in its place."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """Raises ValueError unless the text is there exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} times what is to be replaced: {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Switch:
    """One mechanism: what goes wrong without it, how it is switched off, and which tests must then fail.

    A test of several parameters fails when one of them does. `by` is what its failure must be: an assertion, or
    exceptions that mean the same in these tests; anything else would be a crash of the edit. `works` has to stay
    green all the while, or the edit has broken more than it says.
    """

    mechanism: str
    without: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    by: str = "AssertionError"
    works: str = "tests/cache/test_sync.py::test_the_service_works"

    def apply(self, source: Path) -> None:
        """Edit the copy of `src/leaderboard` in that folder."""
        for edit in self.edits:
            path = source / edit.file
            path.write_text(edit.applied(path.read_text("utf-8")), "utf-8")


def rendered(switches: tuple[Switch, ...]) -> str:
    """The table as it stands in the documentation."""
    rows = [[switch.mechanism, switch.without, _edits(switch), _tests(switch)] for switch in switches]
    head = ["mechanism", "what goes wrong without it", "switch", "failing test"]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * 4, *rows))


def _edits(switch: Switch) -> str:
    return "<br>".join(
        f"{edit.file}: {_code(edit.old)} → {_code(edit.new)}"
        if edit.new.strip()
        else f"{edit.file}: no {_code(edit.old)}"
        for edit in switch.edits
    )


def _tests(switch: Switch) -> str:
    return "<br>".join(f"{test.removeprefix('tests/').replace('::', ' ', 1)}" for test in switch.tests)


def _code(text: str) -> str:
    """Source code in a cell, on one line."""
    return "`` " + " ".join(text.split()).replace("|", "\\|") + " ``"


_SCRIPTS = "tests/cache/test_cache_scripts.py::"
_CONNECTIONS = "tests/database/test_connections.py::"
_LOG = "tests/change_log/test_change_log.py::"
_REDIS = "tests/deploy/test_redis_setups.py::"
_SYNC = "tests/cache/test_sync.py::"
_WRITES = "tests/writes/test_writes.py::"
_RANKS = "tests/rank_index/test_rank_index.py::"
_ONCE = "tests/writes/test_idempotency.py::"
_OVERLOAD = "tests/http/test_overload.py::"
_KEYS = "ORDER BY k.key"
_SET_SCORES = "                    true) AS durable,\n         set_config('lock_timeout', $3"
_CREATE_USERS = "                    true) AS durable,\n         set_config('lock_timeout', $4"
_IMPORT = "tests/importing/test_import.py::"
_BATCHING = "tests/writes/test_batching.py::"
_SNAPSHOT = "tests/change_log/test_snapshot.py::"
_COMES_AND_GOES = "tests/consistency/test_stores_come_and_go.py::"

_MIGRATION = "truth/migrations/0003_change_log.sql"
_RANK_MIGRATION = "truth/migrations/0005_rank_index.sql"
_DURABLE = "CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END"

SWITCHES: tuple[Switch, ...] = (
    # The change log
    Switch(
        "FULL JOIN of old and new rows",
        "a user whose key is changed in SQL stays on the board under the old one",
        (Edit(_MIGRATION, "FROM old_users AS o FULL JOIN new_users", "FROM old_users AS o JOIN new_users"),),
        (f"{_LOG}test_every_kind_of_change_is_logged[another key]",),
    ),
    Switch(
        "triggers enabled ALWAYS",
        "what a session changes that restores or replicates is not seen",
        (
            Edit(_MIGRATION, "ALTER TABLE users ENABLE ALWAYS TRIGGER log_insert;", ""),
            Edit(_MIGRATION, "ALTER TABLE users ENABLE ALWAYS TRIGGER log_update;", ""),
            Edit(_MIGRATION, "ALTER TABLE users ENABLE ALWAYS TRIGGER log_delete;", ""),
            Edit(_MIGRATION, "ALTER TABLE users ENABLE ALWAYS TRIGGER log_truncate;", ""),
        ),
        (
            f"{_LOG}test_every_kind_of_change_is_logged[triggers switched off]",
            f"{_LOG}test_every_kind_of_change_is_logged[truncate replica]",
        ),
    ),
    Switch(
        "triggers with the rights of their owner",
        "a role that may change users and not the log cannot change users",
        (Edit(_MIGRATION, "LANGUAGE plpgsql SECURITY DEFINER SET", "LANGUAGE plpgsql SET"),),
        (f"{_LOG}test_a_role_that_may_only_change_users_is_logged",),
        by="InsufficientPrivilegeError",
    ),
    Switch(
        "the triggers' own search path",
        "whoever may insert a user can have code run as the owner of the schema",
        (Edit(_MIGRATION, "SECURITY DEFINER SET search_path = pg_catalog, pg_temp", "SECURITY DEFINER"),),
        (f"{_LOG}test_a_role_cannot_have_its_own_code_run_by_the_trigger",),
    ),
    Switch(
        "qualified names in the triggers",
        "a temporary table of the same name swallows the log",
        (
            Edit(_MIGRATION, "SET search_path = pg_catalog, pg_temp", "SET search_path = pg_catalog, public"),
            Edit(
                _MIGRATION,
                "INSERT INTO public.user_changes (user_id, new_score)",
                "INSERT INTO user_changes (user_id, new_score)",
            ),
        ),
        (f"{_LOG}test_a_role_that_may_only_change_users_is_logged",),
    ),
    Switch(
        "a barrier for TRUNCATE",
        "the cache shows the users of a table that is empty",
        (Edit(_MIGRATION, "many := true;", "RETURN NULL;"),),
        (
            f"{_LOG}test_every_kind_of_change_is_logged[truncate]",
            f"{_LOG}test_a_barrier_is_not_usable_for_whom_it_is_new",
            f"{_SYNC}test_a_barrier_makes_the_cache_be_rebuilt",
        ),
    ),
    Switch(
        "a barrier for a statement over many rows",
        "one statement fills the log, and every process reads all of it",
        (Edit(_MIGRATION, "CONSTANT integer := 20000;", "CONSTANT integer := 2000000000;"),),
        (f"{_LOG}test_up_to_20_000_rows_are_listed_and_more_are_a_barrier",),
    ),
    Switch(
        "a barrier is not caught up over",
        "the cache shows the users of a table that is empty",
        (
            Edit(
                "truth/queries/log.sql",
                "count(*) < $2 AND count(*) = count(user_id) AS usable",
                "count(*) < $2 AS usable",
            ),
        ),
        (
            f"{_LOG}test_a_barrier_is_not_usable_for_whom_it_is_new",
            f"{_SYNC}test_a_barrier_makes_the_cache_be_rebuilt",
        ),
    ),
    Switch(
        "the window: what began after the snapshot",
        "no change is ever seen",
        (
            Edit(
                "truth/queries/log.sql",
                "WHERE xid >= (SELECT pg_snapshot_xmax(p) FROM view) LIMIT $2",
                "WHERE xid < (SELECT '0'::xid8 FROM view) LIMIT $2",
            ),
        ),
        (
            f"{_LOG}test_what_is_returned_is_the_present_of_each_changed_user_once",
            f"{_LOG}test_a_view_that_catches_up_is_the_table_of_its_snapshot",
        ),
        works=f"{_LOG}test_copy_is_logged",
    ),
    Switch(
        "the window: what was running at the snapshot",
        "a change is missing for good when its transaction was open while the cache moved",
        (
            Edit(
                "truth/queries/log.sql",
                "xid = ANY (ARRAY(SELECT pg_snapshot_xip(p) FROM view))",
                "xid = ANY (ARRAY(SELECT '0'::xid8 FROM view))",
            ),
        ),
        (
            f"{_LOG}test_a_transaction_that_is_open_for_long_is_seen_when_it_commits",
            f"{_LOG}test_a_view_that_catches_up_is_the_table_of_its_snapshot",
        ),
    ),
    Switch(
        "who stood above the floor is caught up on",
        "a user whose score fell below the cache stays in it with the old score",
        (Edit("truth/queries/log.sql", "old_score >= $3 OR new_score >= $3", "new_score >= $3"),),
        (
            f"{_LOG}test_a_floor_leaves_out_who_never_stood_above_it_and_nobody_else",
            f"{_LOG}test_a_view_that_catches_up_is_the_table_of_its_snapshot",
        ),
    ),
    Switch(
        "a limit to the log that is read",
        "of a log longer than the limit a part is taken for the whole",
        (
            Edit(
                "truth/queries/log.sql",
                "count(*) < $2 AND count(*) = count(user_id) AS usable",
                "count(*) = count(user_id) AS usable",
            ),
        ),
        (f"{_LOG}test_more_log_than_the_limit_is_not_usable",),
    ),
    Switch(
        "what cannot be caught up on is rebuilt",
        "after a barrier, a pruned log or too many changes the cache shows what was before",
        (Edit("sync.py", "elif not changes.usable:", "elif False:"),),
        (f"{_SYNC}test_a_barrier_makes_the_cache_be_rebuilt",),
    ),
    # Pruning, and a log from elsewhere
    Switch(
        "pruning: a view that is too old is told",
        "a cache that stood still for long misses what was pruned meanwhile",
        (
            Edit(
                _RANK_MIGRATION,
                "RETURN pg_snapshot_xmax(snapshot) >= pg_snapshot_xmax(other) AND NOT EXISTS",
                "RETURN NOT EXISTS",
            ),
        ),
        (f"{_LOG}test_the_log_is_kept_short_and_for_long_enough",),
    ),
    Switch(
        "pruning: a view that saw a transaction running is told",
        "the cache misses a transaction that it had seen running and whose log was pruned since",
        (
            Edit(
                _RANK_MIGRATION,
                "WHERE pg_visible_in_snapshot(running, other)",
                "WHERE false AND pg_visible_in_snapshot(running, other)",
            ),
        ),
        (f"{_LOG}test_a_view_does_not_reach_over_what_was_pruned_of_a_transaction_it_saw_running",),
    ),
    Switch(
        "pruning: only what the pruned snapshot sees",
        "the log of a transaction still open is deleted as soon as it commits",
        (
            Edit(
                "truth/queries/log.sql",
                "AND pg_visible_in_snapshot(xid, (SELECT until FROM state))",
                "",
            ),
        ),
        (f"{_LOG}test_pruning_keeps_the_rows_of_transactions_that_were_running",),
    ),
    Switch(
        "pruning: not by rules that do not hold for a log that came with a dump",
        "rows are deleted by transaction ids of another server",
        (Edit("truth/queries/log.sql", "      AND written_here(s.xmin, s.written_by)\n", ""),),
        (f"{_LOG}test_a_log_that_came_with_a_dump_is_not_believed_and_is_emptied",),
    ),
    Switch(
        "pruning: one at a time, and nobody waits for it",
        "the processes queue up to prune",
        (
            Edit(
                "truth/queries/log.sql",
                "FOR UPDATE OF s SKIP LOCKED",
                "FOR UPDATE OF s",
            ),
        ),
        (f"{_LOG}test_of_two_who_prune_at_once_one_does_and_the_other_does_not_wait",),
        by="TimeoutError",
    ),
    Switch(
        "a log that came with a dump is not believed",
        "transaction ids of another server are taken for this one's",
        (
            Edit(
                _RANK_MIGRATION,
                "RETURN row_xmin::text::numeric = written_by::text::numeric % 4294967296;",
                "RETURN true;",
            ),
        ),
        (f"{_LOG}test_a_log_that_came_with_a_dump_is_not_believed_and_is_emptied",),
    ),
    Switch(
        "a log that came with a dump is emptied",
        "the cache of a restored database is rebuilt again and again, and never caught up",
        (Edit("sync.py", "if await self._truth.reset_log():", "if False:"),),
        (f"{_LOG}test_a_service_on_a_restored_dump_heals_the_log_by_itself",),
    ),
    # Which database, and which life of it
    Switch(
        "epoch: the cluster",
        "while PostgreSQL is away, the board of another server's database is shown",
        (Edit(_MIGRATION, "(SELECT system_identifier FROM pg_control_system())", "0"),),
        (f"{_LOG}test_databases_of_two_servers_are_told_apart_even_if_their_numbers_agree",),
    ),
    Switch(
        "epoch: the database",
        "the board of another database of the same server is shown",
        (Edit(_MIGRATION, "(SELECT oid FROM pg_database WHERE datname = current_database())", "0"),),
        (f"{_LOG}test_databases_of_one_server_have_different_epochs",),
    ),
    Switch(
        "epoch: the start of the server",
        "after a crash of the server, transaction ids that are used again are taken for the old ones",
        (Edit(_MIGRATION, "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint", "0"),),
        (f"{_LOG}test_an_epoch_ends_with_each_restart_and_each_crash_and_not_before",),
    ),
    Switch(
        "epoch: the recovery from a crash of one backend",
        "transaction ids that are used again are taken for the old ones",
        (
            Edit(
                _MIGRATION,
                "(SELECT coalesce((extract(epoch FROM stats_reset) * 1000000)::bigint, 0) FROM pg_stat_archiver)",
                "0",
            ),
        ),
        (f"{_LOG}test_an_epoch_ends_with_each_restart_and_each_crash_and_not_before",),
    ),
    Switch(
        "epoch: checked in catching up",
        "a cache of another life is believed, and only what changed since is set right",
        (Edit("sync.py", "if changes.position.epoch != state.position.epoch:", "if False:"),),
        (f"{_SYNC}test_a_cache_of_another_life_is_rebuilt_and_not_caught_up",),
    ),
    Switch(
        "epoch: checked in reads",
        "a cache of another life is shown until somebody catches up",
        (Edit("service.py", "if reading is None or reading.epoch != self._sync.epoch:", "if reading is None:"),),
        (f"{_SYNC}test_a_cache_of_another_life_is_not_read",),
    ),
    Switch(
        "epoch: checked where answers are waited for",
        "a write is acknowledged because a snapshot of another life has a larger number",
        (Edit("snapshot.py", "if self.epoch != point.epoch:", "if False:"),),
        (f"{_SNAPSHOT}test_a_moment_reflects_only_its_own_epoch",),
    ),
    Switch(
        "without PostgreSQL only its own database's cache",
        "the board of another database is shown, with an age",
        (
            Edit(
                "service.py",
                "if reading is None or self._sync.epoch is None"
                " or not same_database(reading.epoch, self._sync.epoch):",
                "if reading is None:",
            ),
        ),
        (f"{_SYNC}test_without_postgres_only_a_cache_of_its_own_database_is_read",),
    ),
    Switch(
        "the format of the keys",
        "a program with another layout of the keys misreads them",
        (Edit("cache/store.py", 'return epoch if written_by == _FORMAT else ""', "return epoch"),),
        (f"{_SCRIPTS}test_a_cache_written_in_another_format_is_not_read",),
    ),
    Switch(
        "a standby is not the truth",
        "a standby's snapshot calls open transactions visible, and their changes are missing for good",
        (Edit(_MIGRATION, "RETURN CASE WHEN NOT pg_is_in_recovery() THEN", "RETURN CASE WHEN true THEN"),),
        (f"{_LOG}test_a_standby_does_not_serve_as_truth_until_it_is_promoted",),
    ),
    # Snapshots
    Switch(
        "to see: not what was still running",
        "a write is acknowledged that the cache does not show",
        (Edit("snapshot.py", "return xid < self.xmax and xid not in self.xip", "return xid < self.xmax"),),
        (f"{_SNAPSHOT}test_postgres_agrees", f"{_SNAPSHOT}test_later_snapshots_cover_earlier_ones"),
    ),
    Switch(
        "to cover: as far",
        "an answer from PostgreSQL is followed by an older one from the cache",
        (Edit("snapshot.py", "self.xmax >= other.xmax and not any", "not any"),),
        (
            f"{_SNAPSHOT}test_what_covers_sees_as_much",
            f"{_SNAPSHOT}test_of_real_snapshots_covers_says_exactly_who_sees_as_much",
        ),
    ),
    Switch(
        "to cover: nothing still running that the other sees",
        "an answer from PostgreSQL is followed by an older one from the cache",
        (
            Edit(
                "snapshot.py",
                "self.xmax >= other.xmax and not any(other.sees(xid) for xid in self.xip)",
                "self.xmax >= other.xmax",
            ),
        ),
        (
            f"{_SNAPSHOT}test_what_covers_sees_as_much",
            f"{_SNAPSHOT}test_of_real_snapshots_covers_says_exactly_who_sees_as_much",
        ),
    ),
    # Moving the cache
    Switch(
        "the token, compared",
        "who catches up late sets users back to what they were",
        (Edit("cache/scripts/apply.lua", "if state[1] ~= ARGV[2] then", "if false then"),),
        (
            f"{_SYNC}test_a_catching_up_that_was_overtaken_turns_nothing_back",
            f"{_SCRIPTS}test_of_two_who_move_one_state_the_second_does_nothing",
        ),
    ),
    Switch(
        "the token, renewed by each apply",
        "the same",
        (
            Edit(
                "cache/scripts/apply.lua",
                "redis.call('HSET', KEYS[3], 'token', ARGV[3], ",
                "redis.call('HSET', KEYS[3], ",
            ),
        ),
        (
            f"{_SYNC}test_a_catching_up_that_was_overtaken_turns_nothing_back",
            f"{_SCRIPTS}test_the_same_snapshot_has_a_new_token_each_time",
        ),
    ),
    Switch(
        "the token, renewed by putting out of use",
        "a catching up from before a commit puts a cache in use that lacks it",
        (Edit("cache/scripts/invalidate.lua", "'token', ARGV[1], 'usable', 0)", "'usable', 0)"),),
        (f"{_SCRIPTS}test_an_invalidation_kills_what_is_under_way_and_only_a_later_look_brings_it_back",),
    ),
    Switch(
        "checks before the first write",
        "a script that fails half-way leaves half a change",
        (
            Edit(
                "cache/scripts/apply.lua",
                "assert(#ARGV[i] == 10 and tonumber(ARGV[i + 1]), 'a member or a score is malformed')",
                "",
            ),
        ),
        (f"{_SCRIPTS}test_a_malformed_change_writes_nothing",),
    ),
    Switch(
        "the connection that looked is the one that applies",
        "after a failover, changes since a newer state are applied to an older one",
        (Edit("cache/store.py", "incarnation=state.incarnation,\n            longer", "longer"),),
        (f"{_SCRIPTS}test_what_was_polled_on_one_connection_is_not_applied_on_another",),
    ),
    Switch(
        "the floor: who falls below it leaves",
        "a user stays in the cache who is not among the best",
        (
            Edit(
                "cache/store.py",
                "staying = [user for user in changed if floor is None or floor.admits(user)]",
                "staying = list(changed)",
            ),
        ),
        (f"{_SCRIPTS}test_moving_sets_users_to_what_they_are_now",),
    ),
    Switch(
        "the floor: raised when the cache is trimmed",
        "a cache that lacks some claims to hold everyone",
        (
            Edit(
                "cache/scripts/apply.lua",
                "floor = string.format('%d,%d', -tonumber(last[2]), tonumber(last[1]))",
                "",
            ),
        ),
        (f"{_SCRIPTS}test_too_many_are_trimmed_and_raise_the_floor",),
    ),
    Switch(
        "the floor: the last of a rebuild",
        "the same",
        (Edit("sync.py", "floor = Floor(users[-1].total_score, users[-1].user_id)", "floor = None"),),
        (f"{_SYNC}test_a_cache_is_complete_down_to_its_floor_and_says_so",),
    ),
    Switch(
        "the floor: nobody below it is said to be missing",
        "users below the cache are answered with 404",
        (
            Edit(
                "cache/store.py",
                "if isinstance(question, TopQuery) or not self._copy.everyone:",
                "if isinstance(question, TopQuery):",
            ),
        ),
        (f"{_SCRIPTS}test_with_a_floor_it_reaches_exactly_to_its_last_rank",),
    ),
    Switch(
        "the floor: a top does not reach below it",
        "the top n has fewer than n",
        (Edit("cache/copy.py", "if not (self.everyone or n <= len(self._board)):", "if False:"),),
        (
            f"{_SCRIPTS}test_with_a_floor_it_reaches_exactly_to_its_last_rank",
            f"{_SYNC}test_a_cache_is_complete_down_to_its_floor_and_says_so",
        ),
    ),
    Switch(
        "the floor: a context does not reach below it",
        "users near the end of the cache have nobody below them",
        (
            Edit(
                "cache/copy.py",
                "if not (self.everyone or index + NEIGHBOURS < len(self._board)):",
                "if False:",
            ),
        ),
        (f"{_SCRIPTS}test_with_a_floor_it_reaches_exactly_to_its_last_rank",),
    ),
    Switch(
        "too few left: rebuilt",
        "the cache shrinks for good as scores fall",
        (Edit("sync.py", 'self._rebuild_soon("too few were left")', "pass"),),
        (f"{_SYNC}test_a_cache_from_which_too_many_fell_is_filled_again",),
    ),
    # Copies of the cache
    Switch(
        "copies: a move leads to the state that was read",
        "a copy makes moves that were not made",
        (Edit("cache/scripts/read.lua", " or move:sub(17, 32) ~= at then", " then"),),
        (f"{_SCRIPTS}test_a_move_that_is_missing_is_noticed",),
    ),
    Switch(
        "copies: all moves since, or loaded anew",
        "a copy lacks what was done before the moves it knows",
        (Edit("cache/scripts/read.lua", "while at ~= ARGV[2] do", "while at ~= ARGV[2] and #moves < 1 do"),),
        (f"{_SCRIPTS}test_a_copy_follows_what_is_done_to_the_cache",),
    ),
    Switch(
        "copies: as many as the state says",
        "a copy that lost somebody goes on without",
        (Edit("cache/store.py", "if len(self._copy) == count:", "if True:"),),
        (f"{_SCRIPTS}test_a_copy_that_has_not_as_many_as_there_are_is_not_read",),
    ),
    Switch(
        "copies: compared by the audit",
        "a copy that is wrong stays so",
        (Edit("cache/store.py", "self._copy.users() == export.users", "True"),),
        (f"{_SCRIPTS}test_a_copy_that_is_not_what_it_is_of_is_found_and_thrown_away",),
    ),
    Switch(
        "copies: no tops of before a move",
        "the best are those of some time ago",
        (Edit("cache/copy.py", "self._tops.clear()", "pass"),),
        ("tests/cache/test_replica.py::test_a_top_is_made_once_and_anew_after_a_move",),
    ),
    Switch(
        "copies: moves are kept for a while only",
        "the moves fill Redis",
        (Edit("cache/scripts/apply.lua", "redis.call('LTRIM', KEYS[5], -200, -1)", ""),),
        (f"{_SCRIPTS}test_moves_are_kept_for_a_while_only",),
    ),
    # What is not as the state says
    Switch(
        "counts, when reading",
        "a cache that lost members is shown",
        (
            Edit(
                "cache/scripts/read.lua",
                "if redis.call('ZCARD', KEYS[1]) ~= count or redis.call('HLEN', KEYS[2]) ~= count then",
                "if false then",
            ),
        ),
        (f"{_SCRIPTS}test_a_torn_pair_is_noticed_by_whoever_looks",),
    ),
    Switch(
        "counts, when applying",
        "a cache that lost members is taken for whole from then on, with a count that fits",
        (
            Edit(
                "cache/scripts/apply.lua",
                "if redis.call('ZCARD', KEYS[1]) ~= stored or redis.call('HLEN', KEYS[2]) ~= stored then",
                "if false then",
            ),
        ),
        (f"{_SCRIPTS}test_a_torn_pair_is_noticed_by_whoever_looks",),
    ),
    Switch(
        "counts, before swapping in",
        "a rebuild that lost a part on the way is taken for whole",
        (
            Edit(
                "cache/scripts/swap.lua",
                "or redis.call('ZCARD', KEYS[4]) ~= count\n    or redis.call('HLEN', KEYS[5]) ~= count then",
                "then",
            ),
        ),
        (
            f"{_SCRIPTS}test_a_rebuild_that_lost_a_part_is_not_swapped_in[a score]",
            f"{_SCRIPTS}test_a_rebuild_that_lost_a_part_is_not_swapped_in[a name]",
        ),
    ),
    Switch(
        "members without metadata, when reading",
        "users are shown without their names when one was lost and another is left over",
        (
            Edit("cache/store.py", "if member not in metadata:", "if False:"),
            Edit("cache/store.py", "for member in metadata:", "for member in ():"),
            Edit(
                "cache/store.py",
                "metadata.pop(member)",
                'metadata.pop(member, b\'{"username":"","imageUrl":null}\')',
            ),
        ),
        (f"{_SCRIPTS}test_equal_counts_of_different_members_are_dropped_when_read",),
    ),
    Switch(
        "a state that lacks a field, when reading",
        "a cache that may lack users is shown",
        (
            Edit(
                "cache/scripts/read.lua",
                "and count and state[6] and tonumber(state[7] or '')) then",
                "and count) then",
            ),
        ),
        (f"{_SCRIPTS}test_a_state_that_lacks_a_field_is_not_read[floor]",),
    ),
    Switch(
        "a state that lacks a field, when applying",
        "the script fails half-way, and leaves half a change",
        (Edit("cache/scripts/apply.lua", "if not stored or not state[3] then", "if not stored then"),),
        (f"{_SCRIPTS}test_a_state_that_has_lost_a_field_is_not_moved[floor]",),
        by="CacheRefused",
    ),
    Switch(
        "a state that makes no sense is dropped",
        "nobody can catch up from it, and the cache is out of use for good",
        (
            Edit(
                "cache/store.py",
                "except ValueError as error:\n            await self._damaged(error)\n        return None",
                "except ZeroDivisionError as error:\n            await self._damaged(error)\n        return None",
            ),
        ),
        (f"{_SCRIPTS}test_a_state_that_makes_no_sense_is_dropped[snapshot]",),
        by="UnicodeDecodeError",
    ),
    Switch(
        "a cache that cannot be read is dropped",
        "every read fails for good, and nothing notices",
        (Edit("cache/store.py", "raise await self._damaged(error, reply[0]) from error", "raise"),),
        (f"{_SCRIPTS}test_equal_counts_of_different_members_are_dropped_when_read",),
        by="ValueError",
    ),
    Switch(
        "a lease that does not expire counts as free",
        "the cache is caught up by no process any more",
        (Edit("cache/scripts/poll.lua", "if left == -1 or left > tonumber(ARGV[2]) then", "if false then"),),
        (f"{_SCRIPTS}test_a_lease_or_a_claim_that_lasts_too_long_counts_as_free",),
    ),
    Switch(
        "a claim that does not expire counts as free",
        "the cache is rebuilt by no process any more",
        (Edit("cache/scripts/claim.lua", "if left == -1 or left > tonumber(ARGV[3]) then", "if false then"),),
        (f"{_SCRIPTS}test_a_lease_or_a_claim_that_lasts_too_long_counts_as_free",),
    ),
    Switch(
        "no catching up from a snapshot of the future",
        "what commits until then is never shown",
        (
            Edit(
                "truth/queries/log.sql",
                "AND pg_snapshot_xmax(v.p) <= pg_snapshot_xmax(pg_current_snapshot())",
                "",
            ),
        ),
        (f"{_LOG}test_a_snapshot_of_the_future_is_none_to_catch_up_from",),
    ),
    # Connections to PostgreSQL
    Switch(
        "connections: to a primary only",
        "after a failover a process goes on with a standby, and its writes are refused",
        (
            Edit("truth/connections.py", "if who == _STANDBY:", "if False:"),
            Edit("truth/connections.py", "self.behind_pooler = who == _POOLER", "self.behind_pooler = False"),
        ),
        (f"{_LOG}test_a_standby_does_not_serve_as_truth_until_it_is_promoted",),
    ),
    Switch(
        "connections: none that was made before a server took no writes",
        "one after the other is tried, and each refuses a batch",
        (Edit("truth/connections.py", "            self._trusted_since = now\n", "            pass\n"),),
        (f"{_CONNECTIONS}test_a_server_that_takes_no_writes_costs_every_connection_made_before",),
    ),
    Switch(
        "connections: a read-only primary is connected to again after a second only",
        "every refused write costs a connection",
        (Edit("truth/connections.py", "if now - pooled.made > _SILENT_S:", "if True:"),),
        (f"{_CONNECTIONS}test_a_read_only_primary_is_not_connected_to_again_and_again",),
    ),
    Switch(
        "connections: asked whether they are there",
        "a write is sent into a connection that is gone, and its outcome unknown",
        (Edit("truth/connections.py", "if silent_s <= _SILENT_S:", "if True:"),),
        (f"{_CONNECTIONS}test_a_connection_that_was_silent_is_asked_before_it_is_used",),
        by="DatabaseUnavailable",
    ),
    Switch(
        "connections: none that was silent during a deadline",
        "each of them costs a deadline, one after the other",
        (Edit("truth/connections.py", "if deadline.expired():", "if False:"),),
        (f"{_CONNECTIONS}test_after_a_deadline_no_connection_is_used_that_was_silent_meanwhile",),
        by="DatabaseUnavailable",
    ),
    Switch(
        "a key of another type is dropped",
        "the same",
        (Edit("cache/store.py", 'return "WRONGTYPE" in str(error)', "return False"),),
        (f"{_COMES_AND_GOES}test_a_lost_key_is_noticed_at_once_and_healed",),
    ),
    Switch(
        "an audit compares",
        "what no count tells is never found",
        (
            Edit(
                "sync.py",
                "if of_cache.get(user_id) != of_truth.get(user_id)",
                "if False",
            ),
        ),
        (f"{_SYNC}test_an_audit_finds_what_nobody_else_would_and_the_cache_is_rebuilt",),
    ),
    Switch(
        "an audit that finds something rebuilds",
        "it is shown for good",
        (Edit("sync.py", 'await self.discard("an audit found differences")', "pass"),),
        (f"{_SYNC}test_an_audit_finds_what_nobody_else_would_and_the_cache_is_rebuilt",),
    ),
    Switch(
        "an audit looks at one snapshot",
        "it reports what changed while it looked",
        (
            Edit(
                "truth/store.py",
                'self.connections.pooled("REPEATABLE READ, READ ONLY")',
                'self.connections.pooled("READ COMMITTED")',
            ),
        ),
        (f"{_SYNC}test_an_audit_compares_at_one_moment",),
    ),
    # Fresh, or not read
    Switch(
        "a state that is too old is not read",
        "a process that is cut off from PostgreSQL or Redis shows how it was, for good",
        (
            Edit(
                "cache/scripts/read.lua",
                "if state[4] ~= '1' or age < 0 or age > max_age then",
                "if state[4] ~= '1' then",
            ),
        ),
        (f"{_SCRIPTS}test_age_is_counted_from_before_the_snapshot_and_bounds_what_is_read",),
    ),
    Switch(
        "a state that is out of use is not read",
        "acknowledged writes are not shown",
        (
            Edit(
                "cache/scripts/read.lua",
                "if state[4] ~= '1' or age < 0 or age > max_age then",
                "if age < 0 or age > max_age then",
            ),
        ),
        (
            f"{_SYNC}test_a_writer_that_waits_too_long_puts_the_cache_out_of_use",
            f"{_SCRIPTS}test_an_invalidation_kills_what_is_under_way_and_only_a_later_look_brings_it_back",
        ),
    ),
    Switch(
        "a state one has made oneself is gone on from only for a moment",
        "a board that has just been caught up is taken for one too old to be read",
        (Edit("sync.py", " and time.monotonic() - self._made_at < OWN_S", ""),),
        (f"{_SYNC}test_a_state_that_was_made_a_while_ago_is_asked_for",),
    ),
    Switch(
        "a rebuild is looked at, not what was made before",
        "it stays out of use until somebody looks",
        (Edit("sync.py", "self._made = None\n            await self._look()", "await self._look()"),),
        (f"{_SYNC}test_a_rebuild_is_put_in_use_by_who_was_alone_before",),
    ),
    Switch(
        "age counts from before the snapshot",
        "an old snapshot that was applied late passes for fresh",
        (
            Edit(
                "cache/scripts/apply.lua",
                "'asof', ARGV[6],",
                "'asof', redis.call('TIME')[1] * 1000000 + redis.call('TIME')[2],",
            ),
        ),
        (f"{_SCRIPTS}test_of_two_who_move_one_state_the_second_does_nothing",),
    ),
    Switch(
        "what is found on connecting is doubted",
        "a server that was restored or promoted, and is behind, is believed",
        (Edit("cache/store.py", "if max_age_s is not None and token == self._doubted:", "if False:"),),
        (
            f"{_SCRIPTS}test_a_reader_that_has_just_connected_doubts_what_is_there",
            f"{_SCRIPTS}test_a_reader_that_has_lost_its_connection_doubts_until_somebody_has_caught_up",
        ),
    ),
    Switch(
        "a demoted primary refuses to be read",
        "who is still connected to it reads what is behind",
        (Edit("cache/scripts/read.lua", "#!lua flags=allow-oom\n", "#!lua flags=allow-oom,no-writes\n"),),
        (f"{_SCRIPTS}test_a_demoted_primary_refuses_who_is_still_connected",),
    ),
    # Rebuilding
    Switch(
        "one claim at a time",
        "two rebuild at once, and the slower one may bring the older board",
        (
            Edit(
                "cache/scripts/claim.lua",
                "redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])",
                "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])",
            ),
        ),
        (f"{_SCRIPTS}test_one_at_a_time_rebuilds",),
    ),
    Switch(
        "the claim, checked when loading",
        "a slow rebuild takes another's claim for its own and extends it",
        (Edit("cache/scripts/load.lua", "if redis.call('GET', KEYS[3]) ~= ARGV[1] then", "if false then"),),
        (f"{_SCRIPTS}test_without_its_claim_a_rebuild_does_nothing",),
    ),
    Switch(
        "the claim, checked when swapping in",
        "a slow rebuild rewinds a newer board",
        (
            Edit(
                "cache/scripts/swap.lua",
                "if redis.call('GET', KEYS[6]) ~= ARGV[1]\n    or redis.call('ZCARD', KEYS[4]) ~= count",
                "if redis.call('ZCARD', KEYS[4]) ~= count",
            ),
        ),
        (f"{_SCRIPTS}test_without_its_claim_a_rebuild_does_nothing",),
    ),
    Switch(
        "the claim, extended while loading",
        "a board that takes longer to load than a claim lasts is never rebuilt",
        (Edit("cache/scripts/load.lua", "redis.call('PEXPIRE', KEYS[3], ARGV[2])", ""),),
        (f"{_SCRIPTS}test_a_claim_lasts_as_long_as_loading_goes_on",),
    ),
    Switch(
        "what an abandoned rebuild loaded goes away",
        "it stays in Redis's memory for good",
        (
            Edit("cache/scripts/load.lua", "redis.call('PEXPIRE', KEYS[1], ARGV[2])", ""),
            Edit("cache/scripts/load.lua", "redis.call('PEXPIRE', KEYS[2], ARGV[2])", ""),
        ),
        (
            f"{_SCRIPTS}test_what_is_being_loaded_goes_away_by_itself_and_what_is_swapped_in_stays",
            f"{_SCRIPTS}test_without_its_claim_a_rebuild_does_nothing",
        ),
    ),
    Switch(
        "PERSIST after RENAME",
        "the cache vanishes when the time runs out that its parts had while they were loaded",
        (
            Edit("cache/scripts/swap.lua", "redis.call('PERSIST', KEYS[1])", ""),
            Edit("cache/scripts/swap.lua", "redis.call('PERSIST', KEYS[2])", ""),
        ),
        (f"{_SCRIPTS}test_what_is_being_loaded_goes_away_by_itself_and_what_is_swapped_in_stays",),
    ),
    Switch(
        "a rebuild is installed out of use",
        "a write that was acknowledged while there was no cache is missing from the one that appears",
        (Edit("cache/scripts/swap.lua", "'total', ARGV[8], 'usable', 0)", "'total', ARGV[8], 'usable', 1)"),),
        (
            f"{_SYNC}test_a_rebuild_begun_before_a_write_does_not_hide_it",
            f"{_SCRIPTS}test_what_is_swapped_in_is_out_of_use_until_caught_up",
        ),
    ),
    # Who may be answered
    Switch(
        "a score is covered before it is acknowledged",
        "the next read does not show it",
        (
            Edit(
                "service.py",
                "self._write_scores, bounds, most=_WRITES_AT_ONCE, release=self._covered",
                "self._write_scores, bounds, most=_WRITES_AT_ONCE",
            ),
        ),
        (f"{_SYNC}test_a_score_that_is_acknowledged_is_shown_by_the_cache",),
    ),
    Switch(
        "a new user is covered before it is acknowledged",
        "the next read does not show it",
        (
            Edit(
                "service.py",
                "self._write_users, bounds, most=_WRITES_AT_ONCE, release=self._covered",
                "self._write_users, bounds, most=_WRITES_AT_ONCE",
            ),
        ),
        (f"{_SYNC}test_a_user_who_is_acknowledged_is_shown_by_the_cache",),
    ),
    Switch(
        "a read answered by PostgreSQL is covered",
        "a later read shows an older board",
        (
            Edit(
                "service.py",
                "lanes=rank_lanes,\n            share=True,\n            release=self._covered,",
                "lanes=rank_lanes,\n            share=True,",
            ),
            Edit(
                "service.py",
                "lanes=truth_lanes - rank_lanes - 1,\n            share=True,\n            release=self._covered,",
                "lanes=truth_lanes - rank_lanes - 1,\n            share=True,",
            ),
        ),
        (
            f"{_SYNC}test_what_postgres_has_shown_the_cache_shows",
            f"{_SYNC}test_who_was_not_found_in_postgres_is_not_in_the_cache",
        ),
    ),
    Switch(
        "a 404 for a score is covered",
        "a later read shows the user who does not exist",
        (
            Edit(
                "service.py",
                "if isinstance(told, _Told)}",
                "if isinstance(told, _Told) and told.value is not Refusal.UNKNOWN}",
            ),
        ),
        (f"{_SYNC}test_whose_score_cannot_be_set_is_not_in_the_cache",),
    ),
    Switch(
        "a 409 is covered",
        "a later read does not show the user who has the name",
        (
            Edit(
                "service.py",
                "if isinstance(told, _Told)}",
                "if isinstance(told, _Told) and told.value is not Refusal.TAKEN}",
            ),
        ),
        (f"{_SYNC}test_whose_name_is_taken_is_in_the_cache",),
    ),
    Switch(
        "a 409 is covered from after the refusal",
        "the same, when that user was committed while the refused one waited",
        (Edit("truth/store.py", "point = await self.now()\n", "pass\n"),),
        (f"{_WRITES}test_a_name_refused_for_a_user_not_yet_committed_waits_for_that_user",),
    ),
    Switch(
        "no cache: only who came before it was looked for is released",
        "a write is acknowledged that a cache which has appeared meanwhile does not show",
        (
            Edit(
                "sync.py",
                'self._rebuild_soon("there was none")',
                'self._release(list(self._waiting))\n            self._rebuild_soon("there was none")',
            ),
        ),
        (f"{_SYNC}test_who_commits_after_redis_was_found_empty_is_not_released_for_that",),
    ),
    Switch(
        "out of use: only who came before is released",
        "a write is acknowledged that a cache which is in use again does not show",
        (
            Edit("sync.py", "waiting = list(self._waiting)\n        while True:", "while True:"),
            Edit(
                "sync.py",
                "self._release(waiting)\n\n    def _answerable",
                "self._release(list(self._waiting))\n\n    def _answerable",
            ),
        ),
        (f"{_SYNC}test_who_commits_after_the_cache_was_put_out_of_use_is_not_released_for_that",),
    ),
    Switch(
        "giving up: a writer does not wait for good",
        "a catching up that hangs holds up every write",
        (
            Edit(
                "sync.py",
                "while self._overdue:",
                "while False:",
            ),
        ),
        (f"{_SYNC}test_a_writer_that_waits_too_long_puts_the_cache_out_of_use",),
    ),
    Switch(
        "giving up: the cache is put out of use",
        "a write is acknowledged that the cache does not show",
        (Edit("sync.py", "if not await self._cache.invalidate():", "if False:"),),
        (
            f"{_SYNC}test_a_writer_that_waits_too_long_puts_the_cache_out_of_use",
            f"{_SYNC}test_putting_it_out_of_use_does_not_depend_on_the_connection_that_hung",
        ),
    ),
    Switch(
        "giving up: tried again while Redis hangs",
        "a write is acknowledged that is not shown when Redis goes on",
        (
            Edit(
                "sync.py",
                "# It may go on at any moment, with what it has.\n                continue",
                "break",
            ),
        ),
        (f"{_SYNC}test_putting_it_out_of_use_is_tried_again_while_redis_hangs",),
    ),
    Switch(
        "giving up: for as long as what Redis holds can be read",
        "the same",
        (
            Edit(
                "cache/store.py",
                "self._last_resort = Link(servers, timeout_s, patience_s=FRESH_S)",
                "self._last_resort = Link(servers, timeout_s)",
            ),
        ),
        (f"{_SCRIPTS}test_a_server_that_hangs_is_not_given_up_as_long_as_it_may_go_on_with_what_is_read",),
    ),
    Switch(
        "giving up: the time that this process stood still does not count",
        "a process that stood still again and again takes Redis for gone, and leaves in use what others read",
        (Edit("cache/link.py", "stood_still = _now() - sent > 2 * timeout_s", "stood_still = False"),),
        (f"{_SCRIPTS}test_a_process_that_stood_still_does_not_take_the_server_for_given_up",),
    ),
    Switch(
        "giving up: by a connection of its own",
        "a process whose other call has hung cannot put the cache out of use, and acknowledges all the same",
        (
            Edit(
                "cache/store.py",
                "await self._last_resort.run(\n",
                "await self._sync.run(\n",
            ),
        ),
        (f"{_SYNC}test_putting_it_out_of_use_does_not_depend_on_the_connection_that_hung",),
    ),
    Switch(
        "giving up: again on a new connection",
        "when its idle connection was closed, a process takes Redis for gone, and leaves in use what others read",
        (Edit("cache/store.py", "for closed_when_idle in (True, False):", "for closed_when_idle in (False,):"),),
        (f"{_SYNC}test_putting_it_out_of_use_does_not_depend_on_a_connection_that_was_closed",),
    ),
    # Redis that fails over
    Switch(
        "failover of Redis: nobody is answered because there is no cache here",
        "a write is acknowledged that others, who have found the new primary, do not show",
        (Edit("sync.py", "if not self._cache.may_switch:", "if True:"),),
        (f"{_REDIS}test_a_writer_waits_where_others_may_have_another_primary",),
    ),
    Switch(
        "failover of Redis: the cache is removed from the primary before",
        "for ten seconds a process goes on reading from it what was true before",
        (Edit("cache/servers.py", "await self._leave(before)", "pass"),),
        (f"{_REDIS}test_who_finds_the_new_primary_removes_the_cache_from_the_one_before",),
    ),
    Switch(
        "failover of Redis: a connection to the primary before is closed",
        "a process that had nothing to ask meanwhile goes on reading from it",
        (
            Edit(
                "cache/link.py",
                "if self._made_at_switch != self._servers.switches:\n            await self._drop()",
                "pass",
            ),
        ),
        (f"{_REDIS}test_an_idle_process_reads_from_the_new_primary",),
    ),
    # The order of the board
    Switch(
        "ids padded with zeros",
        "users with the same score stand in the order of their ids' digits",
        (Edit("cache/keys.py", '{user_id:010d}"', '{user_id:<10d}"'),),
        (f"{_SCRIPTS}test_of_those_tied_at_the_end_the_highest_id_is_trimmed",),
    ),
    Switch(
        "ids are positive",
        "users with the same score and a negative id stand in the reverse order of their ids",
        (Edit("truth/migrations/0002_positive_ids.sql", "CHECK (user_id > 0)", "CHECK (user_id IS NOT NULL)"),),
        ("tests/reads/test_order.py::test_an_id_is_positive",),
    ),
    Switch(
        "scores negated",
        "users with the same score stand in the reverse order of their ids",
        (
            Edit(
                "cache/store.py",
                "keys.member(user.user_id), -user.total_score, described",
                "keys.member(user.user_id), user.total_score, described",
            ),
            Edit("cache/keys.py", "score = -int(stored)", "score = int(stored)"),
            Edit(
                "cache/scripts/apply.lua",
                "redis.call('ZRANGE', KEYS[1], keep, -1)",
                "redis.call('ZREVRANGE', KEYS[1], keep, -1)",
            ),
            Edit(
                "cache/scripts/apply.lua",
                "redis.call('ZREMRANGEBYRANK', KEYS[1], keep, -1)",
                "redis.call('ZREMRANGEBYRANK', KEYS[1], 0, count - keep - 1)",
            ),
            Edit(
                "cache/scripts/apply.lua",
                "redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')",
                "redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')",
            ),
            Edit("cache/scripts/apply.lua", "-tonumber(last[2])", "tonumber(last[2])"),
        ),
        (f"{_SCRIPTS}test_of_those_tied_at_the_end_the_highest_id_is_trimmed",),
    ),
    # Batches
    Switch(
        "a question joins only a batch not yet started",
        "a read is answered with what was read before it was asked",
        (
            Edit("batching.py", "if self._share:\n                        del self._shared[entry.item]", "pass"),
            Edit(
                "batching.py",
                "if self._release is None:\n            _settle(batch, results)\n",
                "for entry in batch:\n            self._shared.pop(entry.item, None)\n"
                "        if self._release is None:\n            _settle(batch, results)\n",
            ),
        ),
        (f"{_BATCHING}test_a_question_does_not_share_the_answer_of_a_batch_that_has_started",),
    ),
    Switch(
        "a cancelled request does not cancel its batch",
        "whoever hangs up takes others' writes along",
        (
            Edit(
                "batching.py",
                "            if entry.begun:\n",
                "            for task in self._running:\n                task.cancel()\n"
                "            if entry.begun:\n",
            ),
        ),
        (f"{_WRITES}test_a_cancelled_request_does_not_cancel_its_batch",),
        by="TimeoutError",
    ),
    Switch(
        "a cancelled request does not end its queue",
        "nobody after it is answered",
        (Edit("batching.py", "if future.done():\n                continue", "pass"),),
        (f"{_BATCHING}test_a_cancelled_waiter_cancels_neither_its_batch_nor_other_sharers",),
        by="InvalidStateError, TimeoutError",
    ),
    Switch(
        "only the guilty item of a batch fails",
        "one bad write has a thousand others refused",
        (
            Edit(
                "batching.py", "if len(items) == 1:\n            return [error]\n", "return [error] * len(items)\n"
            ),
        ),
        (
            f"{_BATCHING}test_bisect_finds_the_guilty_and_does_all_others_once",
            f"{_WRITES}test_only_the_guilty_of_a_batch_is_refused",
        ),
    ),
    Switch(
        "several scores of one user are chained",
        "two writes say that they replaced the same score",
        (Edit("truth/store.py", "previous[item.user_id] = item.total_score\n", "pass\n"),),
        (
            f"{_WRITES}test_scores_of_one_user_are_chained",
            f"{_WRITES}test_many_who_set_one_users_score_at_once_each_replace_another",
        ),
        by="AssertionError, ValueError",
    ),
    # Locks
    Switch(
        "SKIP LOCKED",
        "a row that somebody holds holds up every write",
        (Edit("truth/queries/write.sql", "FOR NO KEY UPDATE OF u SKIP LOCKED", "FOR NO KEY UPDATE OF u"),),
        (f"{_WRITES}test_a_held_row_delays_its_own_user_only",),
        by="OutcomeUnknown",
    ),
    Switch(
        "NO KEY",
        "who only refers to a user has its score refused",
        (Edit("truth/queries/write.sql", "FOR NO KEY UPDATE OF u SKIP LOCKED", "FOR UPDATE OF u SKIP LOCKED"),),
        (f"{_WRITES}test_who_only_refers_to_a_user_holds_nobody_up",),
    ),
    Switch(
        "a name is waited for only shortly",
        "a name that is not yet committed holds up all other new users",
        (
            Edit(
                "truth/queries/write.sql",
                "set_config('lock_timeout', $4, true)",
                "set_config('lock_timeout', left($4, 0) || '5s', true)",
            ),
        ),
        (f"{_WRITES}test_a_name_not_yet_committed_delays_nobody_else",),
        by="TimeoutError",
    ),
    Switch(
        "new users sorted by name",
        "two batches with the same names deadlock",
        (Edit("truth/queries/write.sql", "ORDER BY w.user_name\n", ""),),
        (f"{_WRITES}test_names_are_inserted_in_their_order_whatever_the_order_of_the_batch",),
        by="LockNotAvailableError",
    ),
    Switch(
        "a deadlock is tried again",
        "a write is refused because of the order in which somebody else locks",
        (Edit("truth/store.py", "_TRIES_ON_CONFLICT = 3", "_TRIES_ON_CONFLICT = 1"),),
        (f"{_WRITES}test_after_a_deadlock_it_is_tried_again",),
        by="Overloaded",
    ),
    Switch(
        "names that are taken are sorted out beforehand",
        "every refused name costs an id",
        (
            Edit(
                "truth/queries/write.sql",
                "WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = w.user_name)",
                "",
            ),
        ),
        (f"{_WRITES}test_names_that_are_taken_burn_no_ids",),
    ),
    Switch(
        "imports sorted by name",
        "two imports of the same names deadlock",
        (Edit("truth/queries/import.sql", "ORDER BY i.user_name\n    ON CONFLICT", "ON CONFLICT"),),
        (f"{_IMPORT}test_imports_of_the_same_names_at_once[skip-10000]",),
        by="AssertionError, DeadlockDetectedError",
    ),
    Switch(
        "imports sort out beforehand the names that are taken",
        "every skipped row costs an id",
        (
            Edit(
                "truth/queries/import.sql",
                " AND NOT EXISTS (SELECT FROM users AS u WHERE u.user_name = i.user_name)",
                "",
            ),
        ),
        (f"{_IMPORT}test_skip_leaves_users_alone_and_burns_no_ids",),
    ),
    # The rank index
    Switch(
        "ranks: all of an answer is of one snapshot",
        "a user who moves is counted twice or not at all",
        (
            Edit(
                _RANK_MIGRATION,
                "STABLE\nSET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode",
                "VOLATILE\nSET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode",
            ),
        ),
        (f"{_RANKS}test_all_of_an_answer_is_of_one_instant",),
    ),
    Switch(
        "ranks: what began after the index's snapshot",
        "a rank is that of the last fold",
        (Edit(_RANK_MIGRATION, "WHERE xid >= pg_snapshot_xmax(folded) LIMIT", "WHERE false LIMIT"),),
        (f"{_RANKS}test_a_rank_has_in_it_what_is_not_folded_yet",),
    ),
    Switch(
        "ranks: what was running at the index's snapshot",
        "ranks are wrong for good once a transaction was open while the index was folded",
        (Edit(_RANK_MIGRATION, "WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(folded)))", "WHERE false"),),
        (f"{_RANKS}test_what_transactions_did_that_ran_when_it_was_folded_is_not_lost",),
    ),
    Switch(
        "ranks: a barrier is not folded",
        "ranks are those of a table that is empty",
        (
            Edit(
                _RANK_MIGRATION,
                "count(*) < most AND count(*) = count(user_id), count(*)",
                "count(*) < most, count(*)",
            ),
        ),
        (f"{_RANKS}test_after_a_change_too_large_to_be_listed_it_is_built_anew[truncate]",),
    ),
    Switch(
        "ranks: a limit to the log that is read",
        "of a log longer than the limit a part is taken for the whole",
        (
            Edit(
                _RANK_MIGRATION,
                "count(*) < most AND count(*) = count(user_id), count(*)",
                "count(*) = count(user_id), count(*)",
            ),
        ),
        (f"{_RANKS}test_more_log_than_is_worth_folding_has_it_built_anew",),
    ),
    Switch(
        "ranks: the fold's snapshot",
        "each change is counted again by every rank and every fold",
        (Edit("truth/queries/rank.sql", "snapshot = pg_current_snapshot(),\n        total", "total"),),
        (f"{_RANKS}test_each_change_is_folded_once",),
    ),
    Switch(
        "ranks: a fold and the fences it sets are isolated from what is committed meanwhile",
        "new fences have counts of a later snapshot",
        (
            Edit(
                "truth/rank_index.py",
                'self._connections.pooled("REPEATABLE READ")',
                'self._connections.pooled("READ COMMITTED")',
            ),
        ),
        (
            f"{_RANKS}test_a_fold_and_the_fences_it_sets_are_of_one_snapshot",
            f"{_RANKS}test_who_is_overtaken_while_folding_changes_nothing",
        ),
    ),
    Switch(
        "ranks: fences where users come",
        "to count from the nearest fence takes longer and longer",
        (Edit("truth/rank_index.py", "if tended.folded:\n", "if False:\n"),),
        (f"{_RANKS}test_fences_are_set_where_users_come",),
    ),
    Switch(
        "ranks: no fences where users have gone",
        "the index keeps the size of what it was once",
        (Edit("truth/queries/rank.sql", "WHERE b.n % 2 = 1 OR NOT", "WHERE true OR b.n % 2 = 1 OR NOT"),),
        (f"{_RANKS}test_fences_are_taken_out_where_users_leave",),
    ),
    Switch(
        "ranks: a page around a rank begins to walk early enough",
        "the page begins at another rank than it says",
        (Edit("truth/queries/rank.sql", "middle.rank - 1 - i.unfolded", "middle.rank - 1"),),
        (f"{_RANKS}test_a_page_around_a_rank_has_in_it_what_is_not_folded_yet",),
        by="AssertionError, DatabaseRefused",
    ),
    Switch(
        "ranks: what was written during a build is folded, however much",
        "under load every build is in vain",
        (Edit("truth/rank_index.py", "self._fold(connection, MOST_FOLDED, 0)", "self._fold(connection, 0, 0)"),),
        (f"{_RANKS}test_more_log_than_is_worth_reading_is_folded_all_the_same",),
    ),
    Switch(
        "ranks: nobody is counted where many questions wait together",
        "one statement counts everybody for each of them, and ends at its deadline",
        (
            Edit(
                "truth/queries/rank.sql",
                "CASE WHEN a.user_id IS NOT NULL AND (i.usable OR $4)\n",
                "CASE WHEN a.user_id IS NOT NULL AND (true OR i.usable OR $4)\n",
            ),
        ),
        (f"{_RANKS}test_an_index_that_cannot_be_used_has_nobody_counted_unless_asked_for",),
    ),
    Switch(
        "ranks: scores are taken for different",
        "with statistics of a board where all had one score, ranks walk through everybody",
        (Edit(_RANK_MIGRATION, "ALTER TABLE users ALTER total_score SET (n_distinct = -1);\n", ""),),
        (f"{_RANKS}test_statistics_from_when_all_had_one_score_do_not_lead_astray",),
    ),
    Switch(
        "ranks: no build beside a log that came with a dump",
        "the index is built again and again in vain",
        (Edit("truth/rank_index.py", "return self.log_valid and self.locked", "return self.locked"),),
        (f"{_RANKS}test_nothing_is_built_beside_a_log_that_is_not_believed",),
    ),
    Switch(
        "a log that came with a dump is emptied without Redis as well",
        "the log grows, and ranks are counted, for as long as Redis is away",
        (
            Edit(
                "sync.py",
                "                await self._empty_foreign_log()\n                while",
                "                while",
            ),
        ),
        (f"{_RANKS}test_all_that_heals_without_redis",),
    ),
    Switch(
        "ranks: one builds at a time",
        "every process counts everybody at once",
        (Edit("truth/queries/rank.sql", "WHERE pg_try_advisory_xact_lock($3)", "WHERE $3::bigint IS NOT NULL"),),
        (f"{_RANKS}test_one_builds_at_a_time",),
    ),
    Switch(
        "ranks: the log is kept until it is folded",
        "after every pruning the index is built anew",
        (
            Edit(
                "truth/queries/log.sql",
                "THEN s.candidate ELSE r.snapshot END AS until",
                "THEN s.candidate ELSE s.candidate END AS until",
            ),
        ),
        (f"{_RANKS}test_the_log_is_kept_until_it_is_folded",),
    ),
    Switch(
        "ranks: an index that lacks what was pruned is not believed",
        "ranks lack changes for good",
        (Edit(_RANK_MIGRATION, "\n      AND snapshot_covers(r.snapshot, s.pruned);", ";"),),
        (f"{_RANKS}test_an_index_that_lacks_what_was_pruned_is_not_believed",),
    ),
    Switch(
        "ranks: pruning does not move back to what the index sees",
        "an index that lacks changes is believed again",
        (Edit("truth/queries/log.sql", " AND snapshot_covers(r.snapshot, s.pruned)\n", "\n"),),
        (f"{_RANKS}test_an_index_that_lacks_what_was_pruned_is_not_believed",),
    ),
    Switch(
        "ranks: nothing is pruned while the index is built",
        "a build that takes longer than the log is kept is in vain",
        (
            Edit(
                "truth/queries/log.sql",
                "AND pg_try_advisory_xact_lock_shared($3)",
                "AND $3::bigint IS NOT NULL",
            ),
        ),
        (f"{_RANKS}test_nothing_is_pruned_while_it_is_being_built",),
    ),
    Switch(
        "ranks: an index that came with a dump is not believed",
        "ranks are those of another server",
        (Edit(_RANK_MIGRATION, "WHERE written_here(r.xmin, r.written_by) AND", "WHERE"),),
        (f"{_RANKS}test_an_index_that_came_with_a_dump_is_not_believed",),
    ),
    Switch(
        "ranks: nor one beside a log that came with a dump",
        "transaction ids of another server are taken for changes",
        (Edit(_RANK_MIGRATION, " AND written_here(s.xmin, s.written_by)\n", "\n"),),
        (f"{_RANKS}test_an_index_beside_a_log_that_came_with_a_dump_is_not_believed",),
    ),
    Switch(
        "ranks: a part is recounted regularly",
        "a wrong count stays",
        (Edit("rank_keeper.py", "if wrong:\n", "if False:\n"),),
        (f"{_RANKS}test_a_wrong_count_is_found_and_the_index_thrown_away",),
    ),
    Switch(
        "the cache's total moves with the log",
        "the cache says there are as many users as at its rebuild",
        (Edit("truth/queries/log.sql", "count(new_score) - count(old_score) AS more", "0 AS more"),),
        (f"{_RANKS}test_the_cache_knows_how_many_users_there_are",),
    ),
    Switch(
        "the audit compares the totals",
        "a wrong total stays",
        (Edit("sync.py", "totals=None if total == board.total else (total, board.total)", "totals=None"),),
        (f"{_RANKS}test_the_cache_knows_how_many_users_there_are",),
    ),
    # Durability
    Switch(
        "a score is committed synchronously",
        "where the role says otherwise, a crash of PostgreSQL loses what was acknowledged",
        (
            Edit(
                "truth/queries/write.sql",
                f"{_DURABLE},\n{_SET_SCORES}",
                f"current_setting('synchronous_commit'),\n{_SET_SCORES}",
            ),
        ),
        (f"{_WRITES}test_a_commit_is_synchronous_whatever_the_role_says",),
    ),
    Switch(
        "a new user is committed synchronously",
        "the same",
        (
            Edit(
                "truth/queries/write.sql",
                f"{_DURABLE},\n{_CREATE_USERS}",
                f"current_setting('synchronous_commit'),\n{_CREATE_USERS}",
            ),
        ),
        (f"{_WRITES}test_a_commit_is_synchronous_whatever_the_role_says",),
    ),
    Switch(
        "an import is committed synchronously",
        "the same",
        (Edit("truth/queries/import.sql", _DURABLE, "current_setting('synchronous_commit')"),),
        (f"{_IMPORT}test_commits_are_durable_where_the_database_says_otherwise",),
    ),
    # Sent again
    Switch(
        "an idempotency key is kept once",
        "what is sent to two processes at a time is done twice",
        (Edit("truth/queries/write.sql", f"{_KEYS}\n", f"{_KEYS} ON CONFLICT DO NOTHING\n"),),
        (f"{_ONCE}test_what_another_process_is_doing_with_the_key_is_waited_for_or_refused",),
    ),
    Switch(
        "an idempotency key: what is under way is refused",
        "of two copies one waits for what the other holds",
        (Edit("idempotency.py", "if key.key in self._under_way:", "if False:"),),
        (f"{_ONCE}test_a_copy_is_refused_while_the_first_is_under_way",),
        by="LockedOut",
    ),
    Switch(
        "an idempotency key: what was asked for is compared",
        "another request gets an answer that is not its own",
        (Edit("idempotency.py", "if not first.same:", "if False:"),),
        (f"{_ONCE}test_with_something_else_it_is_refused",),
    ),
    Switch(
        "an idempotency key belongs to its caller",
        "two callers who choose the same key get each other's answers",
        (Edit("http/handlers.py", '(scope.get(CALLER, ""), key)', '("", key)'),),
        (f"{_ONCE}test_two_callers_with_one_idempotency_key_do_not_meet",),
        by="KeyError",
    ),
    Switch(
        "idempotency keys: a bound for each caller",
        "one caller uses up the keys of all",
        (Edit("idempotency.py", "if caller in self._kept.full:", "if False:"),),
        (
            f"{_ONCE}test_a_caller_at_its_bound_is_refused_new_keys_and_no_other_is",
            f"{_ONCE}test_a_bound_over_http[idempotency_keys_per_caller-429-too_many_idempotency_keys]",
        ),
    ),
    Switch(
        "idempotency keys: a bound for all callers together",
        "the table of keys grows with what is written in a day",
        (Edit("idempotency.py", "return self._kept.total >= self._key_bounds.total", "return False"),),
        (f"{_ONCE}test_at_the_bound_of_all_new_keys_are_refused",),
    ),
    Switch(
        "idempotency keys: counted again while something is refused",
        "a caller stays refused after its keys are forgotten",
        (
            Edit(
                "idempotency.py",
                "self._counted != self._changes or self._kept.full or self._is_full()",
                "self._counted != self._changes",
            ),
        ),
        (f"{_ONCE}test_forgotten_keys_make_room",),
        by="AssertionError, TooManyIdempotencyKeys, IdempotencyKeysFull",
    ),
    Switch(
        "the answer under an idempotency key is that of its place in the chain",
        "a score that was sent again is said to have replaced another one",
        (Edit("truth/queries/write.sql", "coalesce(k.previous_score, c.previous_score)", "c.previous_score"),),
        (f"{_ONCE}test_each_of_one_users_sets_in_a_batch_keeps_its_own_answer",),
    ),
    Switch(
        "what nobody waits for any more is not done",
        "a write that was refused for being too late is done after all",
        (Edit("batching.py", "if all(future.cancelled() for future in entry.futures):", "if False:"),),
        (f"{_OVERLOAD}test_requests_end_at_their_deadline_and_cancelled_items_are_skipped",),
    ),
    # Stopping
    Switch(
        "deaf to a second signal to stop",
        "the process hangs until it is killed, and the answers under way are lost",
        (Edit("server.py", "if not told:\n            told = True", "if True:\n            told = True"),),
        ("tests/http/test_stop.py::test_two_signals_during_a_write_still_answer_it",),
        by="RemoteProtocolError",
    ),
)
