"""Faults that are put into a test's own database: rows that others hold, statements that take long or fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from service.lead import CUSTOMER_FIELDS

SLOW = "Slow Person"
"""The name of a lead whose insert takes its time, once `slow_inserts` was called."""


def execute(admin_url: str, *statements: str) -> None:
    """Run SQL as the owner of the database."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def value_of(admin_url: str, query: str) -> object:
    """The single value that a query answers."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def conflict_with(database_url: str, lead_id: str) -> str:
    """Make a conflict of the newest resubmission of a lead, as if it had been acknowledged and came late; its id."""
    copied = ", ".join((*CUSTOMER_FIELDS, "request_id", "content_digest", "phone_index", "nid_index", "email_index"))
    query = f"""
        INSERT INTO lead_conflict (id, {copied}, created_by, phone_lead_id, accepted_at)
        SELECT submission_id, {copied}, actor, lead_id, submitted_at FROM resubmission WHERE lead_id = '{lead_id}'
        ORDER BY submitted_at DESC LIMIT 1 RETURNING id"""
    return str(value_of(database_url, query))


@contextmanager
def locked_lead(admin_url: str, lead_id: str) -> Iterator[psycopg.Connection]:
    """Hold a lead's row like a foreign transaction would; leaving gives it free."""
    with psycopg.connect(admin_url) as connection:
        connection.execute("SELECT 1 FROM lead WHERE id = %s FOR UPDATE", (lead_id,))
        yield connection
        connection.rollback()


def slow_inserts(admin_url: str, seconds: float) -> None:
    """From now on it takes `seconds` to insert a lead whose name is SLOW."""
    execute(
        admin_url,
        f"""CREATE OR REPLACE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$""",
        f"""CREATE OR REPLACE TRIGGER take_time BEFORE INSERT ON lead
            FOR EACH ROW WHEN (NEW.name = '{SLOW}') EXECUTE FUNCTION take_time()""",
    )


GATE = 7
"""The advisory lock at which the insert of a lead whose name is SLOW waits, once `gated_inserts` was called."""


def gated_inserts(admin_url: str) -> None:
    """From now on the insert of a lead whose name is SLOW waits while somebody holds `closed_gate`."""
    execute(
        admin_url,
        f"""CREATE OR REPLACE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS
            $$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NEW; END $$""",
        f"""CREATE OR REPLACE TRIGGER wait_at_gate BEFORE INSERT ON lead
            FOR EACH ROW WHEN (NEW.name = '{SLOW}') EXECUTE FUNCTION wait_at_gate()""",
    )


@contextmanager
def closed_gate(admin_url: str) -> Iterator[None]:
    """Let the inserts of `gated_inserts` wait until the block ends."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield


def waits_at_gate(admin_url: str) -> bool:
    """Whether an insert waits at the closed gate."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    return bool(value_of(admin_url, waiting))


def slow_changes(admin_url: str, seconds: float) -> None:
    """From now on it takes `seconds` to change the status of a lead for the reason SLOW."""
    execute(
        admin_url,
        f"""CREATE OR REPLACE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$""",
        f"""CREATE OR REPLACE TRIGGER take_time BEFORE INSERT ON lead_event
            FOR EACH ROW WHEN (NEW.reason = '{SLOW}') EXECUTE FUNCTION take_time()""",
    )


@contextmanager
def endless_summaries(admin_url: str) -> Iterator[None]:
    """While the block runs, a summary by day takes a minute for each lead that it counts."""
    execute(
        admin_url,
        # By the types of its arguments PostgreSQL prefers it to its own.
        """CREATE FUNCTION public.width_bucket(timestamptz, timestamptz[]) RETURNS int LANGUAGE sql VOLATILE
            AS 'SELECT length(pg_sleep(60)::text)'""",
    )
    try:
        yield
    finally:
        execute(admin_url, "DROP FUNCTION public.width_bucket(timestamptz, timestamptz[])")


def cancel_summary(admin_url: str) -> bool:
    """End an endless summary, as its time limit would; whether there was one."""
    query = (
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep' AND query LIKE '%width_bucket%'"
    )
    return bool(value_of(admin_url, query))


def broken_spool(data_dir: Path) -> None:
    """Give a service that has not started yet a spool which takes nothing, so that only the database confirms."""
    folder = data_dir / "spool"
    folder.mkdir(mode=0o700)
    (folder / "spool.sqlite").write_bytes(b"this is no database " * 1000)


@contextmanager
def failing_inserts(admin_url: str, sqlstate: str, times: int) -> Iterator[None]:
    """The next `times` inserts of a lead fail with this SQLSTATE."""
    execute(
        admin_url,
        # A sequence is not rolled back, so it counts the attempts.
        "DROP SEQUENCE IF EXISTS attempts CASCADE",
        "CREATE SEQUENCE attempts",
        "GRANT USAGE ON SEQUENCE attempts TO leadkeep_app",
        f"""CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF nextval('attempts') <= {times} THEN
                 RAISE EXCEPTION 'on purpose' USING ERRCODE = '{sqlstate}', DETAIL = NEW::text;
               END IF; RETURN NEW; END $$""",
        "CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON lead FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    try:
        yield
    finally:
        execute(admin_url, "DROP TRIGGER fail ON lead")
