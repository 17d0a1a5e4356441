"""The leads of a day as the daily file shows them: one snapshot of the database, as JSON that the server builds.

Promise: what a snapshot yields is the state of one moment, which it names; every lead that was acknowledged before that
moment is in it. Touches that the snapshot has seen are settled with it, all others stay noted.

It is used in a process of its own that should stay small, so it talks to psycopg and leaves SQLAlchemy aside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
from psycopg import IsolationLevel, pq, sql
from psycopg.conninfo import make_conninfo

from service.lead import CUSTOMER_FIELDS, SEALED_FORM, SENSITIVE_FIELDS, LeadEventType
from service.storage.database import session

UNREACHABLE_SQLSTATES = ("08", "53", "57", "58", "25006", "25P03", "25P04", "3D000")
"""Beginnings of the SQLSTATEs of a server that is away, full, or no primary any more; see failures.py."""

_CONNECT_SECONDS = 5
_SNAPSHOT_SETTINGS: LiteralString = (
    "SET LOCAL jit = off; SET LOCAL lock_timeout = '5s';"
    # As long as the service waits for a sign of life: a slow disk may take its time to sync a file.
    " SET LOCAL idle_in_transaction_session_timeout = '60s';"
    # A settled touch that a crash brings back is rendered again, and nothing else is written here.
    " SET LOCAL synchronous_commit = off;"
    # Leads are read in the order of their index: sorting 100,000 of them would write 130 MB of temporary files, and
    # nothing would arrive before all is sorted, so that no pause of the reader could hold the server back.
    " SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off"
)
"""Of the transaction alone, because a pooler lends the server connection to others. They take no snapshot."""

LEASE_SECONDS = 10.0
"""How long a replica keeps its turn without renewing it: one that was killed is replaced after as long. On a busy host
a process of low priority may not run for seconds, and must not lose its turn by that."""

RENEWAL_SECONDS = 1.0
"""How often the turn is renewed: often enough that a busy machine does not lose it between two renders."""

# A render holds the row locked to its end, so that no render, however long, loses the turn or runs beside another.
_TAKE_TURN: LiteralString = """
    WITH free AS (
        SELECT id FROM file_turn WHERE holder = %(me)s OR expires_at < clock_timestamp() FOR UPDATE SKIP LOCKED
    )
    UPDATE file_turn SET holder = %(me)s, expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
    FROM free WHERE file_turn.id = free.id RETURNING true
"""
_KEEP_TURN: LiteralString = """
    UPDATE file_turn SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
    WHERE holder = %(me)s RETURNING true
"""
_GIVE_TURN: LiteralString = "UPDATE file_turn SET expires_at = '-infinity' WHERE holder = %(me)s"

_LINE: LiteralString = """
SELECT row_to_json(line)::text FROM (
    SELECT id, {fields}, status, created_at, updated_at, version, assignee, resubmissions, phone_shared, nid_shared,
           created_by, request_id, encode(content_digest, 'base64') AS content_digest,
           array_to_json(ARRAY(
               SELECT row_to_json(link) FROM (
                   SELECT submission_id, conversation_id, linked_at FROM lead_conversation WHERE lead_id = lead.id
                   ORDER BY linked_at, submission_id, conversation_id) link)) AS conversations,
           array_to_json(ARRAY(
               SELECT row_to_json(event) FROM (
                   SELECT (ARRAY[{types}])[type] AS type, version, fields, from_status, to_status, from_assignee,
                          to_assignee, actor, reason, at
                   FROM lead_event WHERE lead_id = lead.id AND type > 1 ORDER BY lead_id, version, id) event
           )) AS events,
           CASE WHEN resubmissions = 0 THEN '[]' ELSE array_to_json(ARRAY(
               SELECT row_to_json(kept) FROM (
                   SELECT submission_id, {fields}, actor, request_id,
                          encode(content_digest, 'base64') AS content_digest, verified, submitted_at
                   FROM resubmission WHERE lead_id = lead.id ORDER BY submitted_at, submission_id
               ) kept)) END AS kept_resubmissions,
           array_to_json(ARRAY(
               SELECT row_to_json(alias) FROM (
                   SELECT id, created_by, created_at FROM lead_alias WHERE lead_id = lead.id ORDER BY id) alias
           )) AS aliases
    FROM lead WHERE created_at >= {start} AND created_at < {end} ORDER BY created_at, id
) line
"""
_KEY_IDS: LiteralString = """
SELECT DISTINCT split_part(token, '.', 1) FROM (
    SELECT unnest(ARRAY[{sealed}]) AS token FROM lead
    WHERE created_at >= %(start)s AND created_at < %(end)s
    UNION ALL
    SELECT unnest(ARRAY[{kept_sealed}])
    FROM resubmission kept JOIN lead ON lead.id = kept.lead_id
    WHERE lead.created_at >= %(start)s AND lead.created_at < %(end)s AND lead.resubmissions > 0
    UNION ALL
    SELECT link.conversation_id FROM lead_conversation link JOIN lead ON lead.id = link.lead_id
    WHERE lead.created_at >= %(start)s AND lead.created_at < %(end)s
) tokens WHERE strpos(token, {form}) > 0
"""


_LOOK_SECONDS = 0.5
_PATIENCE_LOOKS = 2
"""Looks at one same statement before the server is asked: most statements take milliseconds."""

_ANSWER_SECONDS = 2
"""How long a server may take to let a connection in: the shortest that libpq knows."""

ONE_DAY = timedelta(days=1)


class Days:
    """The days of the time zone with this IANA name. Raises ZoneInfoNotFoundError or ValueError for another name.

    They are half-open, on the days when the clocks change too: every moment belongs to exactly one. Where the clocks
    jump over midnight, the day begins with the jump; where they go back to it, with the first of both midnights.
    """

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self._zone = ZoneInfo(zone)

    def bounds(self, day: date) -> tuple[datetime, datetime]:
        """The first moment of the day, and the first one after it, in UTC."""
        return self._midnight(day), self._midnight(day + ONE_DAY)

    def day_of(self, moment: datetime) -> date:
        """The day of a moment that knows its offset."""
        day = moment.astimezone(self._zone).date()
        # Clocks that go back over midnight show yesterday's date again, within a day that has begun.
        if moment >= self._midnight(day + ONE_DAY):
            return day + ONE_DAY
        return day if moment >= self._midnight(day) else day - ONE_DAY

    def _midnight(self, day: date) -> datetime:
        # fold=0 is the first of two midnights, and the moment of the jump where there is none (PEP 495).
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).astimezone(UTC)


class DailyLeadsError(Exception):
    """The database did not answer, or refused; `cause` is the SQLSTATE or a fixed word, `away` whether it may pass."""

    def __init__(self, cause: str, *, away: bool) -> None:
        super().__init__(f"the database cannot be read ({cause})")
        self.cause = cause
        self.away = away


@dataclass(frozen=True, slots=True)
class Rendered:
    """What some replica rendered last for a day."""

    snapshot_at: datetime
    digest: bytes


class Snapshot:
    """The leads of one day at one moment. Good inside `DailyLeads.snapshot` only."""

    def __init__(self, connection: psycopg.Connection, days: Days, day: date, *, settles: bool) -> None:
        self._connection = connection
        self._zone = days.zone
        self.day = day
        start, end = days.bounds(day)
        self._bounds = {"start": start, "end": end}
        # The first statement takes the snapshot, after BEGIN, whose time this is: what was committed by then is in it.
        self.snapshot_at: datetime = self._value("SELECT transaction_timestamp()")
        if settles:
            connection.execute("DELETE FROM lead_touch WHERE quarter >= %(start)s AND quarter < %(end)s", self._bounds)
        self.lead_count: int = self._value(
            "SELECT count(*) FROM lead WHERE created_at >= %(start)s AND created_at < %(end)s"
        )
        key_ids = sql.SQL(_KEY_IDS).format(
            sealed=sql.SQL(", ").join(map(sql.Identifier, SENSITIVE_FIELDS)),
            kept_sealed=sql.SQL(", ").join(sql.Identifier("kept", name) for name in SENSITIVE_FIELDS),
            form=sql.Literal(SEALED_FORM),
        )
        self.key_ids = sorted(str(row[0]) for row in connection.execute(key_ids, self._bounds))

    def _value(self, query: LiteralString) -> Any:
        row = self._connection.execute(query, self._bounds).fetchone()
        assert row is not None  # noqa: S101 # an aggregate or expression without FROM has one row
        return row[0]

    def lines(self) -> Iterator[str]:
        """Each lead as one line of JSON without its line end, oldest first."""
        query = sql.SQL(_LINE).format(
            fields=sql.SQL(", ").join(map(sql.Identifier, CUSTOMER_FIELDS)),
            types=sql.SQL(", ").join(sql.Literal(each.name.lower()) for each in LeadEventType),
            **{name: sql.Literal(at) for name, at in self._bounds.items()},
        )
        with (
            self._connection.cursor() as cursor,
            cursor.copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as copy,
        ):
            # rows(), for COPY's own text form doubles every backslash.
            for (line,) in copy.rows():
                yield line

    def note_rendered(self, digest: bytes) -> None:
        """Record for the other replicas what was rendered."""
        self._connection.execute(
            "INSERT INTO daily_file (day, timezone, snapshot_at, lead_count, digest) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (day, timezone) DO UPDATE SET snapshot_at = excluded.snapshot_at,"
            " lead_count = excluded.lead_count, digest = excluded.digest",
            [self.day, self._zone, self.snapshot_at, self.lead_count, digest],
        )


class DailyLeads:
    """The days of one database. Connects when first used, and again after a failure.

    With `identity`, only the database of this identity is read: no failover can bring another one's leads in. `holder`
    holds the turn: with the same one a replica that is started again has its turn at once.
    """

    def __init__(self, url: str, days: Days, *, identity: UUID | None = None, holder: UUID | None = None) -> None:
        self._url = url
        self._days = days
        self._identity = identity
        self._connection: psycopg.Connection | None = None
        self._lease = {"me": holder or uuid4(), "seconds": LEASE_SECONDS}
        self._has_turn = False
        self._renewed_at = float("-inf")

    def take_turn(self) -> bool:
        """Take the lease, or renew it: whether this replica is the one that renders, for at most LEASE_SECONDS."""
        now = time.monotonic()
        if self._has_turn and now - self._renewed_at < RENEWAL_SECONDS:
            return True
        with self._translated_failures():
            self._has_turn = self._connected().execute(_TAKE_TURN, self._lease).fetchone() is not None
            self._renewed_at = now
            return self._has_turn

    def touched(self) -> set[date]:
        """The days with leads that changed since a render settled them."""
        with self._translated_failures():
            rows = self._connected().execute("SELECT DISTINCT quarter FROM lead_touch")
            return {self._days.day_of(quarter) for (quarter,) in rows}

    def days_with_leads(self) -> list[date]:
        """Every day that has a lead, oldest first: one look into the index for each."""
        found: list[date] = []
        after = datetime.min.replace(tzinfo=UTC) + timedelta(days=2)
        with self._translated_failures():
            while True:
                query = "SELECT min(created_at) FROM lead WHERE created_at >= %s"
                row = self._connected().execute(query, [after]).fetchone()
                if row is None or row[0] is None:
                    return found
                found.append(self._days.day_of(row[0]))
                after = self._days.bounds(found[-1])[1]

    def rendered(self) -> dict[date, Rendered]:
        """What was rendered last, by any replica, for each day of this time zone."""
        with self._translated_failures():
            rows = self._connected().execute(
                "SELECT day, snapshot_at, digest FROM daily_file WHERE timezone = %s", [self._days.zone]
            )
            return {day: Rendered(at, digest) for day, at, digest in rows}

    @contextmanager
    def snapshot(self, day: date, *, settles: bool) -> Iterator[Snapshot]:
        """One snapshot of a day. With `settles` its touches are settled when the block ends well.

        What settles while this replica has the turn keeps it, or fails with `turn_lost`.
        """
        with self._translated_failures():
            connection = self._connected()
            connection.read_only = not settles
            holds_turn = settles and self._has_turn
            with connection.transaction():
                connection.execute(_SNAPSHOT_SETTINGS)
                if holds_turn:
                    self._keep_turn(connection)
                yield Snapshot(connection, self._days, day, settles=settles)
                if holds_turn:
                    self._keep_turn(connection)

    def _keep_turn(self, connection: psycopg.Connection) -> None:
        try:
            kept = connection.execute(_KEEP_TURN, self._lease).fetchone()
        except psycopg.errors.SerializationFailure:  # another one took it as this transaction began
            kept = None
        if kept is None:
            raise DailyLeadsError("turn_lost", away=True)
        self._renewed_at = time.monotonic()

    def give_turn(self) -> None:
        """Let another replica render at once. Raises DailyLeadsError."""
        if self._has_turn:
            self._has_turn = False
            with self._translated_failures():
                self._connected().execute(_GIVE_TURN, self._lease)

    def close(self) -> None:
        """End the connection; the turn ends with its lease."""
        self._has_turn = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self.close()
            self._connection = session.connect(
                self._url, "leadkeep-files", identity=self._identity, connect_timeout=_CONNECT_SECONDS
            )
            leave_when_frozen(self._url, self._connection)
            self._connection.isolation_level = IsolationLevel.REPEATABLE_READ  # of each transaction: the snapshots
        return self._connection

    @contextmanager
    def _translated_failures(self) -> Iterator[None]:
        """Drivers print values into their errors, so that none gets beyond this module."""
        try:
            yield
        except session.SessionRefusedError as refused:
            self.close()
            raise DailyLeadsError(refused.word, away=True) from None
        except psycopg.Error as error:
            sqlstate = error.sqlstate
            self.close()
            away = sqlstate is None or sqlstate.startswith(UNREACHABLE_SQLSTATES)
            raise DailyLeadsError(sqlstate or "connection", away=away) from None
        except BaseException:
            self.close()  # a snapshot that was left half-way may still be streaming
            raise


def leave_when_frozen(url: str, connection: psycopg.Connection) -> None:
    """Shut the connection's socket as soon as its server hangs; what waits for it then fails. Returns at once.

    A server that is frozen (SIGSTOP, a hanging disk, a paused machine) still acknowledges what is sent to it, so
    neither keepalives nor tcp_user_timeout notice, and no timeout of the server itself runs. A statement that is only
    slow must not be cut off. The difference is whether the same server lets another connection in.

    It may take 4 s: a second of patience, two for the answer, and the looks in between.
    """
    info = connection.info
    same_server = make_conninfo(
        url, host=info.host, port=info.port, target_session_attrs="any", connect_timeout=_ANSWER_SECONDS
    )
    threading.Thread(target=_watch, args=(same_server, connection.pgconn), daemon=True).start()


def _watch(same_server: str, connection: pq.abc.PGconn) -> None:
    looks = 0
    while connection.status == pq.ConnStatus.OK:
        time.sleep(_LOOK_SECONDS)
        looks = looks + 1 if connection.transaction_status == pq.TransactionStatus.ACTIVE else 0
        if looks > _PATIENCE_LOOKS:
            looks = 0
            if not _answers(same_server):
                session.shut_down(connection)
                return


def _answers(url: str) -> bool:
    """Whether a connection is let in. A refusal is an answer; what is gone for good ends the statement by itself."""
    try:
        psycopg.connect(url).close()
    except psycopg.errors.ConnectionTimeout:
        return False
    except psycopg.Error:
        pass
    return True
