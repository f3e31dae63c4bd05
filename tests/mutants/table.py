"""The mutants, in the order of their bugs. The copied text is what a unit test finds exactly once in its file."""

from __future__ import annotations

from tests.mutants.mutant import Change, Mutant

TRANSACTION = "tests/integration/test_hazard_transaction.py::"
LOCK = "tests/integration/test_hazard_lock.py::"
OBSERVATION = "tests/integration/test_hazard_observation.py::"
SAFETY = "tests/integration/test_safety_stop.py::"
WRAPAROUND = "tests/integration/test_hazard_wraparound.py::"
VALUES = "tests/integration/test_hazard_values.py::"
NAMES = "tests/integration/test_hazard_names.py::"
FAULTS = "tests/chaos/test_faults.py::"
LISTEN = "tests/integration/test_listen.py::"
STREAM = "tests/integration/test_hazard_stream.py::"
STREAM_FAULTS = "tests/chaos/test_hazard_stream_faults.py::"

REFUSED = "tests/integration/test_refused_row.py::"
BESIDE = "tests/integration/test_verify_streamed.py::"
ALERTS = "tests/integration/test_alerts.py::"
CANARY = "tests/integration/test_canary.py::"
METRICS = "tests/integration/test_metrics.py::"

JOIN = "tests/chaos/test_join.py::"
PARKED = "tests/integration/test_parked.py::"
HISTORY = "tests/integration/test_source_history.py::"
VERIFY_STREAMED = "tests/integration/test_verify_streamed.py::"

MUTANTS = (
    Mutant(
        "S33",
        "a table joins without a wait for what wrote to it before it was published",
        (PARKED + "test_a_row_written_ahead_of_the_publication_and_committed_after_it_is_read[18-18-default]",),
        (Change("replicator/stream/join.py", "if oldest >= bound:", "if oldest >= 0:"),),
    ),
    Mutant(
        "B24",
        "a joining table's changes are kept only once its rows are loaded",
        (JOIN + "test_what_commits_while_a_table_is_loaded_is_kept[18-18-keyed]",),
        (
            Change(
                "replicator/stream/join.py",
                "return LoadedTable(streamed, window, definition",
                "return LoadedTable(streamed, replace(window, _entries=[]), definition",
            ),
        ),
    ),
    Mutant(
        "B25",
        "a joining table is read in a snapshot that may not see what the stream has delivered",
        (JOIN + "test_a_commit_that_was_sent_before_it_is_visible_is_read_all_the_same[18-18-keyed]",),
        (
            Change(
                "replicator/stream/join_round.py",
                "if self.delivered.are_visible(",
                "if True or self.delivered.are_visible(",
            ),
        ),
    ),
    Mutant(
        "B29",
        "a window opens inside a transaction, and lacks what was delivered of it before",
        (JOIN + "test_a_window_opens_between_transactions[18-18]",),
        (
            Change(
                "replicator/stream/loop.py",
                """\
        if collector.in_transaction:
            # A window that opened here""",
                """\
        if False:
            # A window that opened here""",
            ),
            Change(
                "replicator/capture/collector.py",
                """\
        if self._begin is not None:
            raise _out_of_order("a window opens""",
                """\
        if False:
            raise _out_of_order("a window opens""",
            ),
        ),
    ),
    Mutant(
        "S25",
        "a table joins before the stream has passed all that its snapshot saw",
        (JOIN + "test_a_table_joins_once_the_stream_has_passed_what_its_snapshot_saw[18-18-keyless]",),
        (
            Change(
                "replicator/stream/join_board.py",
                "for loaded in self._offered.values() if loaded.high <= received]",
                "for loaded in self._offered.values() if received]",
            ),
        ),
    ),
    Mutant(
        "B24",
        "a row is taken for the one of the first look by its content alone",
        (VERIFY_STREAMED + "test_a_row_that_changes_to_and_fro_is_no_difference[18-18]",),
        (
            Change(
                "replicator/proof/streamed_look.py",
                "one.ours, one.versions) == (other.kind, other.theirs, other.ours, other.versions)",
                "one.ours) == (other.kind, other.theirs, other.ours)",
            ),
        ),
    ),
    Mutant(
        "B24",
        "a row is looked at again in a snapshot that may miss what the target holds",
        (VERIFY_STREAMED + "test_a_commit_that_is_delivered_before_it_is_visible_is_no_difference[18-18]",),
        (
            Change(
                "replicator/proof/streamed_look.py",
                "is_whole = begin_after(fresh, self.job, read_open_writers(watcher, relation), _OPEN_LIMIT_S)",
                "is_whole = begin_after(fresh, self.job, (), _OPEN_LIMIT_S)",
            ),
        ),
    ),
    Mutant(
        "B4",
        "the position is saved ahead of the data, in a transaction of its own",
        (SAFETY + "test_an_emptied_source_does_not_empty_the_target[18-18-delete from t-xmin]",),
        (
            Change(
                "replicator/apply/loader.py",
                """\
        with session.connection.transaction():
            for current in loads:
                current.prepare()
""",
                """\
        with session.connection.transaction():
            for current in [load for load in loads if load.job.record.state.lsn]:
                current.prepare()
                current.finish()
        with session.connection.transaction():
            for current in loads:
                current.prepare()
""",
            ),
        ),
    ),
    Mutant(
        "B4",
        "the position is saved after the data, in a transaction of its own",
        (FAULTS + "test_data_whose_commit_got_no_answer_is_not_loaded_twice[18-18]",),
        (
            Change(
                "replicator/apply/loader.py",
                """\
                current.audit()
                current.finish()
                if also is not None:
                    also(session, current.incoming)
""",
                """\
                current.audit()
        for current in loads:
            current.finish()
""",
            ),
        ),
    ),
    Mutant(
        "B6",
        "a watermark read begins after the mark (> for >=)",
        (TRANSACTION + "test_a_row_stamped_exactly_at_the_boundary_is_not_lost[18-18-watermark]",),
        (Change("replicator/capture/pull.py", "{column} >= {mark} OR", "{column} > {mark} OR"),),
    ),
    Mutant(
        "B6",
        "an xmin read begins after the position (> for >=)",
        (TRANSACTION + "test_the_oldest_transaction_that_was_open_is_inside_the_next_read[18-18-xmin]",),
        (
            Change(
                "replicator/capture/pull.py",
                "age(xmin) BETWEEN 0 AND age({}::xid)",
                "age(xmin) BETWEEN 0 AND age({}::xid) - 1",
            ),
        ),
    ),
    Mutant(
        "B7",
        "the mark is the greatest stamp of the target",
        (TRANSACTION + "test_a_late_commit_with_an_old_stamp_is_not_lost[18-18-watermark]",),
        (
            Change(
                "replicator/apply/table_load.py",
                "from dataclasses import dataclass, field\n",
                "from dataclasses import dataclass, field, replace\n",
            ),
            Change(
                "replicator/apply/table_load.py",
                '''\
        """Write position and record, in the same transaction as the data."""
''',
                '''\
        """Write position and record, in the same transaction as the data."""
        if self.job.mapping.watermark is not None:
            query = sql.SQL("SELECT max({}) AS mark FROM {}")
            column = sql.Identifier(self.job.mapping.watermark.name)
            row = self.session.connection.execute(query.format(column, self.target.table)).fetchone()
            assert row is not None
            self.reading = replace(self.reading, next_mark=row["mark"])
''',
            ),
        ),
    ),
    Mutant(
        "B7",
        "the mark is the clock of the snapshot, whatever was open",
        (TRANSACTION + "test_a_late_commit_with_an_old_stamp_is_not_lost[18-18-watermark]",),
        (Change("replicator/reading.py", "if not observation.transactions & newest.transactions:", "if True:"),),
    ),
    Mutant(
        "B8",
        "the position is the snapshot's xmax",
        (TRANSACTION + "test_a_late_commit_with_an_old_stamp_is_not_lost[18-18-xmin]",),
        (
            Change(
                "sql/queries/source.sql",
                "pg_catalog.pg_snapshot_xmin(s.snapshot)::text as xmin",
                "pg_catalog.pg_snapshot_xmax(s.snapshot)::text as xmin",
            ),
        ),
    ),
    Mutant(
        "B8",
        "the position never goes back: max(old, new)",
        ("tests/integration/test_hazard_standby.py::test_another_standby_the_next_night_which_lags[18-18]",),
        (
            Change(
                "replicator/apply/control.py",
                " xid_position=str(facts.xmin),",
                " xid_position=str(max(facts.xmin, before.xid_position or 0)),",
            ),
        ),
    ),
    Mutant(
        "B9",
        "rows are new if the last snapshot's list does not show their xmin",
        (TRANSACTION + "test_savepoints_released_and_rolled_back_in_a_late_transaction[18-18-xmin]",),
        (
            Change(
                "replicator/capture/pull.py",
                """\
    assert row is not None
    facts = SnapshotFacts(
""",
                """\
    assert row is not None
    place = Path("last_snapshot")
    SEEN.append(place.read_text() if place.exists() else "")
    place.write_text(str(connection.execute("SELECT pg_catalog.pg_current_snapshot()::text AS s").fetchone()["s"]))
    facts = SnapshotFacts(
""",
            ),
            Change(
                "replicator/capture/pull.py", "\nBEGIN_READ = ", "\nfrom pathlib import Path\nSEEN = []\nBEGIN_READ = "
            ),
            Change(
                "replicator/capture/pull.py",
                'sql.SQL("age(xmin) BETWEEN 0 AND age({}::xid)").format(sql.Literal(str(wrap_xid(reading.since_xid))))',
                'sql.SQL("NOT pg_visible_in_snapshot(xmin::text::xid8, {})").format(sql.Literal(SEEN[-1]))',
            ),
        ),
    ),
    Mutant(
        "B10",
        "transaction ids are compared as plain numbers",
        (WRAPAROUND + "test_transaction_ids_that_pass_2_to_the_31_and_2_to_the_32[18-18-xmin]",),
        (
            Change(
                "replicator/capture/pull.py",
                "age(xmin) BETWEEN 0 AND age({}::xid)",
                "xmin::text::bigint >= {}::bigint",
            ),
        ),
    ),
    Mutant(
        "B10",
        "a position is compared however long ago it was",
        (WRAPAROUND + "test_transaction_ids_that_pass_2_to_the_31_and_2_to_the_32[18-18-xmin]",),
        (Change("replicator/position.py", "return 0 <= now - position < _XID_HORIZON", "return 0 <= now - position"),),
    ),
    Mutant(
        "B11",
        "open transactions are observed after the snapshot",
        (OBSERVATION + "test_what_a_snapshot_does_not_see_was_observed_or_began_later[18-18-plain]",),
        (
            Change(
                "replicator/capture/pull.py",
                """\
        observation = observe(watcher, [pid, server_pid(watcher)])
        failures = _lock_by_column(connection, failures)
        row = connection.execute(statement("source.snapshot_facts"), {}).fetchone()
""",
                """\
        failures = _lock_by_column(connection, failures)
        row = connection.execute(statement("source.snapshot_facts"), {}).fetchone()
        observation = observe(watcher, [pid, server_pid(watcher)])
""",
            ),
        ),
    ),
    Mutant(
        "B11",
        "the clock is read after the open transactions",
        (OBSERVATION + "test_what_a_snapshot_does_not_see_was_observed_or_began_later[18-18-plain]",),
        (
            Change(
                "replicator/capture/pull.py",
                """\
    observed_at = _value(connection, "observe_clock")
    transactions = _value(connection, "observe_transactions", own=list(own))
""",
                """\
    transactions = _value(connection, "observe_transactions", own=list(own))
    observed_at = _value(connection, "observe_clock")
""",
            ),
        ),
    ),
    Mutant(
        "B11",
        "prepared transactions are counted before the open ones are listed",
        (OBSERVATION + "test_what_a_snapshot_does_not_see_was_observed_or_began_later[18-18-prepared]",),
        (
            Change(
                "replicator/capture/pull.py",
                """\
    transactions = _value(connection, "observe_transactions", own=list(own))
    prepared = _value(connection, "observe_prepared")
""",
                """\
    prepared = _value(connection, "observe_prepared")
    transactions = _value(connection, "observe_transactions", own=list(own))
""",
            ),
        ),
    ),
    Mutant(
        "B12",
        "prepared transactions are not counted",
        (TRANSACTION + "test_a_prepared_transaction_that_is_pending_over_two_nights_is_not_lost[18-18-watermark]",),
        (
            Change(
                "sql/queries/source.sql",
                "select count(*)::int as prepared from pg_catalog.pg_prepared_xacts",
                "select count(*)::int - count(*)::int as prepared from pg_catalog.pg_prepared_xacts",
            ),
        ),
    ),
    Mutant(
        "B12",
        "the mark moves on while a prepared transaction is pending",
        (TRANSACTION + "test_a_prepared_transaction_that_is_pending_over_two_nights_is_not_lost[18-18-watermark]",),
        (Change("replicator/reading.py", "if newest.prepared:", "if False:"),),
    ),
    Mutant(
        "B13",
        "tables are read in READ COMMITTED, each statement in a snapshot of its own",
        (TRANSACTION + "test_what_commits_between_the_snapshot_and_the_read_comes_the_next_night[18-18-xmin]",),
        (
            Change(
                "replicator/capture/pull.py",
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "BEGIN ISOLATION LEVEL READ COMMITTED",
            ),
            Change(
                "replicator/capture/pull.py",
                'self.connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}")',
                'self.connection.execute(sql.SQL("SELECT {}")',
            ),
        ),
    ),
    Mutant(
        "B14",
        "the snapshot is taken before the tables are locked",
        (LOCK + "test_a_change_that_is_under_way_is_waited_for[18-18-truncate-xmin]",),
        (
            Change(
                "replicator/capture/pull.py",
                """\
        failures = _lock(connection, relations)
        observation = observe(watcher, [pid, server_pid(watcher)])
        failures = _lock_by_column(connection, failures)
        row = connection.execute(statement("source.snapshot_facts"), {}).fetchone()
""",
                """\
        observation = observe(watcher, [pid, server_pid(watcher)])
        row = connection.execute(statement("source.snapshot_facts"), {}).fetchone()
        failures = _lock_by_column(connection, _lock(connection, relations))
""",
            ),
        ),
    ),
    Mutant(
        "B14",
        "the tables are not locked for the snapshot",
        (LOCK + "test_a_change_that_is_under_way_is_waited_for[18-18-truncate-xmin]",),
        (Change("replicator/capture/pull.py", "failures = _lock(connection, relations)", "failures = {}"),),
    ),
    Mutant(
        "B14",
        "a reader relies on the lock of the session that took the snapshot",
        (LOCK + "test_a_read_gives_way_to_a_change_that_waits_too_long[18-18-1.0-xmin]",),
        (
            Change(
                "replicator/sync/round.py",
                "if not reader.try_lock(job.mapping.relation) or self.given_way.is_set():",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "B15",
        "row security is left on",
        (SAFETY + "test_row_security_below_a_view[18-18-True]",),
        (Change("replicator/capture/pull.py", "; SET LOCAL row_security = off", ""),),
    ),
    Mutant(
        "B19",
        "sessions keep the settings of their database and role",
        (VALUES + "test_settings_of_the_two_databases_change_no_value[18-18-keyed]",),
        (
            Change("replicator/db.py", "                pin_session(connection)\n", "                pass\n"),
            Change("replicator/db.py", "if name not in _OF_SESSIONS]", "if name in ()]"),
        ),
    ),
    Mutant(
        "B19",
        "sessions keep their database's IntervalStyle",
        (VALUES + "test_settings_of_the_source_change_no_text_that_a_rule_writes[18-18]",),
        (Change("replicator/db.py", '    "IntervalStyle": "postgres",\n', ""),),
    ),
    Mutant(
        "B19",
        "sessions keep their database's extra_float_digits",
        (VALUES + "test_settings_of_the_source_change_no_text_that_a_rule_writes[18-18]",),
        (Change("replicator/db.py", '    "extra_float_digits": "3",\n', ""),),
    ),
    Mutant(
        "B20",
        "rows are compared by IS DISTINCT FROM",
        (
            "tests/integration/test_hazard_target.py::test_values_that_are_equal_and_yet_different_are_written[18-18-equal-xmin]",
        ),
        (
            Change(
                "replicator/apply/merge.py",
                "row({})::record OPERATOR(pg_catalog.*<>) row({})::record",
                "row({}) IS DISTINCT FROM row({})",
            ),
        ),
    ),
    Mutant(
        "B21",
        "a changed definition or rule is not noticed",
        ("tests/integration/test_hazard_schema.py::test_a_prebuilt_table_that_is_swapped_in_by_rename[18-18-xmin]",),
        (Change("replicator/reading.py", "if state.fingerprint != fingerprint:", "if False:"),),
    ),
    Mutant(
        "B26",
        "the target's name is put between quotes by hand",
        (NAMES + "test_odd_names_of_schemas_tables_and_columns_are_only_names[18-18]",),
        (
            Change(
                "replicator/apply/merge.py",
                "return sql.Identifier(self.schema, self.name)",
                """return sql.SQL(f'"{self.schema}"."{self.name}"')""",
            ),
        ),
    ),
    Mutant(
        "B26",
        "the source's name is put between quotes by hand",
        (NAMES + "test_odd_names_of_schemas_tables_and_columns_are_only_names[18-18]",),
        (
            Change(
                "replicator/rules.py",
                "return sql.Identifier(self.relation.schema, self.relation.name)",
                """return sql.SQL(f'"{self.relation.schema}"."{self.relation.name}"')""",
            ),
        ),
    ),
    Mutant(
        "B26",
        "the control schema's name is put between quotes by hand",
        (NAMES + "test_odd_names_serve_in_rules_and_on_the_command_line[18-18]",),
        (
            Change(
                "replicator/statement.py",
                "sql.Identifier(control).as_string()",
                """f'"{control}"'""",
            ),
        ),
    ),
    Mutant(
        "B27",
        "a table whose COMMIT got no answer is loaded again",
        (FAULTS + "test_data_whose_commit_got_no_answer_is_not_loaded_twice[18-18]",),
        (
            Change(
                "replicator/sync/pipeline.py",
                'return [chosen for chosen in left if statuses.get(chosen.table) == "running"]',
                "return list(left)",
            ),
        ),
    ),
    Mutant(
        "B28",
        "a run does not ask whether a younger one took its table over",
        (FAULTS + "test_a_stale_worker_with_a_live_connection_is_fenced_off[18-18]",),
        (Change("sql/queries/control.sql", "and epoch = :'epoch' for update;", "for update;"),),
    ),
    Mutant(
        "B1",
        "changes are confirmed when they have arrived",
        (LISTEN + "test_a_refused_row_stops_the_stream_and_leaves_the_position[18-18]",),
        (
            Change(
                "replicator/stream/loop.py",
                """\
        self.is_free = False
        self._queue.put(changes)
""",
                """\
        self.is_free = False
        if changes.position is not None:
            self._sender.confirm(changes.position)
        self._queue.put(changes)
""",
            ),
        ),
    ),
    Mutant(
        "B2",
        "a keepalive's position is confirmed with work in hand",
        (LISTEN + "test_a_refused_row_stops_the_stream_and_leaves_the_position[18-18]",),
        (
            Change(
                "replicator/stream/loop.py",
                """\
                self._keepalive = item
""",
                """\
                self._keepalive = item
                self.sender.confirm(item.wal_end)
""",
            ),
        ),
    ),
    Mutant(
        "B3",
        "an idle stream never moves on",
        (STREAM + "test_an_idle_table_beside_a_busy_one_does_not_hold_the_wal[18-18-1h]",),
        (
            Change(
                "replicator/stream/loop.py",
                "is_news = keepalive.wal_end > self.loading.position or bool(self._unlanded_stale())",
                "is_news = bool(self._unlanded_stale())",
            ),
        ),
    ),
    Mutant(
        "B5",
        "a commit that a table's copy has already is taken again",
        (LISTEN + "test_a_table_added_to_the_configuration_joins[18-18]",),
        (
            Change(
                "replicator/capture/collector.py",
                "if intake is None or self._skips or self._has(intake.layout.table, begin):",
                "if intake is None or self._skips:",
            ),
        ),
    ),
    Mutant(
        "B5",
        "what a sync read while no listener ran is brought once more",
        (VERIFY_STREAMED + "test_what_was_brought_while_no_listener_ran_is_not_brought_again[18-18-sync]",),
        (
            Change(
                "replicator/position.py",
                "return final_lsn < self.since or (self.seen is not None and self.seen.has(final_lsn, xid))",
                "return final_lsn < self.since",
            ),
        ),
    ),
    Mutant(
        "B16",
        "a value that was not sent is taken for NULL",
        (LISTEN + "test_what_an_update_left_unsent_is_kept[18-18]",),
        (Change("replicator/capture/pgoutput.py", "cells.append(UNCHANGED)", "cells.append(None)"),),
    ),
    Mutant(
        "B17",
        "the old key stays after a row changed it",
        (LISTEN + "test_changes_of_one_key_fold_to_the_last[18-18]",),
        (Change("replicator/fold.py", "self.rows[old_key] = GONE", "pass"),),
    ),
    Mutant(
        "B17",
        "of a row that is read again by its key, the key that it left is forgotten",
        ("tests/integration/test_both_paths.py::test_both_paths_end_where_the_source_is[18-18]",),
        (Change("replicator/capture/intake.py", "            fold.lose(old_key)\n", ""),),
    ),
    Mutant(
        "B18",
        "a TRUNCATE takes nothing with it that came before it in its batch",
        (LISTEN + "test_a_truncate_stands_in_its_place[18-18]",),
        (Change("replicator/fold.py", "self.rows.clear()", "pass"),),
    ),
    Mutant(
        "B22",
        "a gap is pulled from the next transaction id on, not from the oldest that was open",
        (STREAM_FAULTS + "test_a_transaction_prepared_before_a_gap_is_found_after_it[18-18]",),
        (
            Change(
                "sql/queries/replication.sql",
                "pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text as xid;",
                "pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text as xid;",
            ),
        ),
    ),
    Mutant(
        "B25",
        "a row is read again in a snapshot that may not see the change that asked for it",
        (STREAM_FAULTS + "test_rows_that_are_read_again_are_never_older_than_their_change[18-18-standby]",),
        (
            Change(
                "replicator/capture/lookup.py",
                "return not any(xid in running or measure_xid(xid, next_xid) >= 0 for xid in self.xids)",
                "return True",
            ),
        ),
    ),
    Mutant(
        "O1",
        "an incident that lasts is told at every look",
        (ALERTS + "test_a_failure_is_told_once_and_once_more_when_it_is_over[18-18]",),
        (
            Change(
                "replicator/monitor/incident.py",
                "for key, old in kept.items() if key in by_key and old.told_at is None",
                "for key, old in kept.items() if key in by_key",
            ),
        ),
    ),
    Mutant(
        "O4",
        "a notice tells the address that it goes to, with its secret",
        (CANARY + "test_a_stream_that_fails_tells_no_secret_and_no_cell[18-18]",),
        (
            Change(
                "replicator/monitor/messenger.py",
                "body=notice.body, title=notice.title",
                "body=notice.body + url, title=notice.title",
            ),
        ),
    ),
    Mutant(
        "O4",
        "an incident repeats what PostgreSQL said",
        (ALERTS + "test_a_failure_is_told_once_and_once_more_when_it_is_over[18-18]",),
        (
            Change(
                "replicator/db.py",
                """    why = f"SQLSTATE {state} ({type(error).__name__})" + (f", {where}" if where else "")
""",
                """    why = f"SQLSTATE {state} ({type(error).__name__}) {error}" + (f", {where}" if where else "")
""",
            ),
        ),
    ),
    Mutant(
        "O3",
        "a batch that ends under the replica role is not counted",
        (METRICS + "test_counters_outlive_the_rows_that_they_were_counted_from[18-18]",),
        (
            Change(
                "sql/migrations/0011_total.sql",
                """enable always trigger etl_control_updated;
""",
                """enable trigger etl_control_updated;
""",
            ),
        ),
    ),
    Mutant(
        "T9",
        "a row in quarantine is not read again by the next sync",
        ("tests/integration/test_quarantine.py::test_refused_rows_are_put_aside_and_all_others_land[18-18-xmin]",),
        (
            Change(
                "replicator/apply/keyed.py",
                "if self.waiting and self.reading.load_type != FULL:",
                "if False and self.waiting:",
            ),
        ),
    ),
    Mutant(
        "T9",
        "the row that stops the stream is told by its batch, not by its transaction",
        (REFUSED + "test_the_row_that_stops_the_stream_is_told_by_transaction_and_key[18-18-3000]",),
        (
            Change(
                "replicator/stream/loop.py",
                "if failed.commit_lsn is None or (search is not None and transactions <= 1):",
                "if failed.commit_lsn is None or search is not None:",
            ),
        ),
    ),
    Mutant(
        "T9",
        "a repair beside the listener tries rows in quarantine again",
        (BESIDE + "test_rows_in_quarantine_keep_no_other_row_from_being_mended_beside_the_listener[18-18-verify]",),
        (
            Change(
                "replicator/proof/streamed_repair.py",
                """        if not self.quarantines:
            return list(findings)
        waiting""",
                """        if self.quarantines:
            return list(findings)
        waiting""",
            ),
            Change(
                "replicator/proof/streamed_repair.py",
                """            if not self.quarantines:
                raise
""",
                """            if self.quarantines:
                raise
""",
            ),
        ),
    ),
    Mutant(
        "S35",
        "a slot's stream goes on at the position before the source was compared with it",
        (HISTORY + "test_a_source_that_was_put_back_and_is_past_the_position_again_is_told_by_what_it_lacks[18-18]",),
        (
            Change(
                "replicator/continuity.py",
                "    return Resume(end, confirmed, record.last_commit, has_new_timeline=is_new)",
                "    return Resume(record.position, record.position, has_new_timeline=is_new)",
            ),
        ),
    ),
    Mutant(
        "S35",
        "a sync compares the marker of the last read after it has decided what to read",
        (HISTORY + "test_a_sync_reads_all_of_a_source_that_was_put_back[18-18-past the position again]",),
        (
            Change(
                "replicator/sync/round.py",
                "lost_markers=self.lost_markers)",
                "lost_markers=frozenset())",
            ),
        ),
    ),
    Mutant(
        "S36",
        "the timeline of a standby is that of its control file",
        (HISTORY + "test_a_rewound_standby_is_read_whole_though_its_control_file_has_the_old_timeline[18-18]",),
        (
            Change(
                "sql/queries/source.sql",
                "select greatest(c.timeline_id, r.min_recovery_end_timeline, w.received_tli)",
                "select c.timeline_id",
            ),
        ),
    ),
    Mutant(
        "S37",
        "the flush of what a snapshot saw is not awaited",
        (HISTORY + "test_a_sync_waits_until_what_it_saw_is_on_the_disk_of_the_source[18-18]",),
        (
            Change(
                "replicator/capture/history.py",
                "    if known is None or not is_flushed(connection, facts.lsn):",
                "    if False:",
            ),
            Change(
                "replicator/sync/round.py",
                "if not facts.is_standby and not await_flush(",
                "if False and not await_flush(",
            ),
        ),
    ),
    Mutant(
        "T16",
        "equal system identifiers are taken for one database",
        (HISTORY + "test_a_target_that_was_a_clone_of_the_source_takes_its_tables[18-18]",),
        (
            Change(
                "replicator/sync/identity.py",
                "    if _shares_locks(source, target):\n",
                "    if here == there:\n",
            ),
        ),
    ),
)
