"""Readiness: whether leads can be made durable now, and the alarms; what `/readyz`, grpc health and `doctor` report.

Checked every second, more often while the database is away, and published to every endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from service.storage.database.session import SessionRefusedError
from service.storage.diagnosis import AWAY, Diagnosis
from service.storage.intake.outage import Outage
from service.storage.leads.open_erasures import WaitingErasures
from service.storage.spool.rows import SpoolSize
from service.storage.spool.spool import Spool

CHECK_SECONDS = 1.0
"""How often the database is asked. A load balancer asks about as often."""

ANSWER_SECONDS = 1.5
"""How long it may take to answer before it counts as away: a busy machine takes a second at times, and then every read
and change would be refused."""

CHECK_AWAY_SECONDS = 0.25
"""How often a database is asked that is away: reads and changes are refused until it answers."""

FULL_SHARE = 0.8
"""Of the spool's limit; beyond it there is little time left to bring the database back."""


LONGEST_ERASURE = 600.0
"""Seconds for which an erasure may wait for a replica: it takes less to replace all of them, one after the other."""

HANGING = frozenset({"hung", "left_behind", "not_durable"})
"""Causes of an outage in which the database answers, and what is stored does not end."""


class ReadinessReason(StrEnum):
    """Why the service is not ready, or degraded: the closed list of words that `/readyz` shows to anybody.

    A word says what kind of fault there is, and never a path, a key id, a number or a setting: those are the detail of
    a `Condition`, which goes to the log and to `doctor`.
    """

    meaning: str

    def __new__(cls, word: str, meaning: str) -> ReadinessReason:
        """A word, and its sentence for the OpenAPI document."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member

    STARTING = "starting", "The service has just started and has not asked its database yet."
    STOPPING = "stopping", "The service was told to stop and takes no new calls."
    DATABASE_AWAY = "database_away", "The database cannot be reached or takes no writes."
    DATABASE_REFUSED = (
        "database_refused",
        "The database that was found must not be used: it has another keyring, normaliser, schema or encoding, lacks "
        "grants, or is not the one that was confirmed.",
    )
    SETTINGS_LOST = (
        "settings_lost",
        "PostgreSQL, or a pooler in front of it, dropped settings of the session that SAVED relies on.",
    )
    SERVER_SUPERSEDED = (
        "server_superseded",
        "The server that was found is not used: a standby was promoted in its place.",
    )
    CONNECTION_REFUSED = "connection_refused", "PostgreSQL, or a pooler in front of it, refuses the connection."
    STATEMENTS_REFUSED = (
        "statements_refused",
        "The database answers and refuses what the service asks: a right, a table or a column is missing, or a trigger "
        "raises. New leads wait in the spool.",
    )
    COMMITS_HANG = "commits_hang", "Commits do not end: is a synchronous standby away? New leads wait in the spool."
    STANDBY_MISSING = (
        "standby_missing",
        "Leads must reach a synchronous standby, and the database's commits wait for none. They wait in the spool.",
    )
    POSTGRES_RESTARTING = "postgres_restarting", "The embedded PostgreSQL ended and is being started again."
    KEYRING_NOT_CONFIRMED = (
        "keyring_not_confirmed",
        "No lead is accepted before the database was reached once and has confirmed the keyring.",
    )
    SPOOL_FAILING = "spool_failing", "The spool takes no leads: its disk is full, or its file or folder cannot be used."
    SPOOL_FILLING = "spool_filling", "The spool holds more than 80 % of its limit."
    LEADS_SET_ASIDE = "leads_set_aside", "Spooled leads were set aside and wait for an operator."
    LEADS_WAIT_LONG = "leads_wait_long", "Leads have waited in the spool for longer than the alarm age."
    ERASURES_WAIT = "erasures_wait", "Erasures wait for a replica that does not run, or cannot read its spool."
    FILES_BEHIND = "files_behind", "The daily files cannot be rendered."
    TLS_FILES_REFUSED = "tls_files_refused", "New TLS files cannot be used; the certificate before stays in use."
    TASKS_FAILING = "tasks_failing", "Background tasks fail and are restarted."


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether leads can be made durable somewhere, and every reason why all is not well, each with its detail.

    `details` are for operators only: they may name paths, key ids and settings, but hold no customer's value.
    """

    usable: bool
    details: Mapping[ReadinessReason, str]


def condition_of(
    spool: Spool,
    *,
    diagnosis: Diagnosis,
    outage: Outage,
    drain_refused: str | None,
    access_refused: str | None,
    call_refused: str | None,
    require_standby: bool,
    database_refusal: str | None,
    session_refusal: SessionRefusedError | None,
    restarting_log: Path | None,
    longest_wait: float,
    erasures_alarm: str | None,
    files_alarm: str | None,
    tls_alarm: str | None,
    failing_tasks: Sequence[str],
) -> Condition:
    """The condition of the service now.

    `drain_refused`: the SQLSTATE with which the database refuses a lead that waits; `access_refused`: entries of the
    access record; `call_refused`: what a caller asked for. `restarting_log`: the log of the
    embedded PostgreSQL while that is being restarted, else None. `longest_wait`: the age in seconds from which a
    spooled lead is an alarm.
    """
    failing = outage.cause if outage.lasting else None
    cause = failing or diagnosis.failed
    no_standby = require_standby and diagnosis.reachable and diagnosis.commits_wait_for == 0
    hangs = diagnosis.commits_hang or failing in HANGING
    refusals = [*diagnosis.lacking, *({diagnosis.refused, failing if outage.refused else None, drain_refused} - {None})]
    if access_refused is not None:
        refusals.append(f"entries of the access record ({access_refused})")
    if call_refused is not None:
        refusals.append(f"calls ({call_refused})")
    away = not diagnosis.reachable or diagnosis.read_only or (failing is not None and not (outage.refused or hangs))
    details: dict[ReadinessReason, str | None] = {
        ReadinessReason.DATABASE_REFUSED: database_refusal if away else None,
        ReadinessReason.DATABASE_AWAY: (
            f"the database cannot be reached or takes no writes{f' (cause {cause})' if cause else ''}"
            if away and database_refusal is None and session_refusal is None
            else None
        ),
        **({ReadinessReason[session_refusal.word.upper()]: str(session_refusal)} if away and session_refusal else {}),
        ReadinessReason.STATEMENTS_REFUSED: (
            f"the database refuses: {'; '.join(map(str, refusals))}; see leadkeep doctor" if refusals else None
        ),
        ReadinessReason.COMMITS_HANG: (
            "commits do not end: is a synchronous standby away?" if hangs and diagnosis.reachable else None
        ),
        ReadinessReason.STANDBY_MISSING: (
            "LEADKEEP_REQUIRE_STANDBY is set, and commits wait for no standby: synchronous_standby_names is empty"
            if no_standby
            else None
        ),
        ReadinessReason.POSTGRES_RESTARTING: (
            f"PostgreSQL ended and is being restarted, see {restarting_log}" if away and restarting_log else None
        ),
        ReadinessReason.KEYRING_NOT_CONFIRMED: (
            "no lead is accepted before the database was reached once" if away and not spool.identified else None
        ),
        ReadinessReason.SPOOL_FAILING: (
            f"the spool {spool.folder} takes no leads: {spool.fault}" if spool.fault is not None else None
        ),
        **spool_alarms(spool.size, max_bytes=spool.max_bytes, longest_wait=longest_wait),
        ReadinessReason.ERASURES_WAIT: erasures_alarm,
        ReadinessReason.FILES_BEHIND: files_alarm,
        ReadinessReason.TLS_FILES_REFUSED: tls_alarm,
        **(tasks_fail(failing_tasks) if failing_tasks else {}),
    }
    stores = diagnosis.reachable and not (diagnosis.read_only or failing or no_standby)
    return Condition(stores or spool.usable, _without_none(details))


def _without_none(details: Mapping[ReadinessReason, str | None]) -> dict[ReadinessReason, str]:
    return {reason: detail for reason, detail in details.items() if detail is not None}


def tasks_fail(names: Sequence[str]) -> dict[ReadinessReason, str]:
    """The reason that background tasks fail and are restarted."""
    return {ReadinessReason.TASKS_FAILING: f"background tasks fail and are restarted: {', '.join(names)}"}


def spool_alarms(size: SpoolSize, *, max_bytes: int, longest_wait: float) -> dict[ReadinessReason, str]:
    """The alarms of a spool, which an operator should act on."""
    age = size.age
    alarms = {
        ReadinessReason.LEADS_SET_ASIDE: (
            f"{size.damaged} spooled leads were set aside: see leadkeep spool list" if size.damaged else None
        ),
        ReadinessReason.SPOOL_FILLING: (
            f"the spool holds {size.bytes // 1_000_000} MB, its limit is {max_bytes // 1_000_000} MB"
            if size.bytes > FULL_SHARE * max_bytes
            else None
        ),
        ReadinessReason.LEADS_WAIT_LONG: (
            f"leads have waited in the spool for {age / 3600:.1f} hours"
            if size.waiting and age > longest_wait
            else None
        ),
    }
    return _without_none(alarms)


def erasures_alarm(waiting: Sequence[WaitingErasures]) -> str | None:
    """The alarm of erasures that wait for replicas, which an operator should act on."""
    late = [each for each in waiting if each.seconds > LONGEST_ERASURE]
    if not late:
        return None
    named = ", ".join(f"{each.erasures} for the replica {each.replica}" for each in late)
    return (
        f"erasures wait, {named}: start it with its spool, or, if it is gone for good, leave it out with leadkeep keys "
        "reindex --forget NAME"
    )


class Readiness:
    """Ready while leads can be made durable anywhere and nobody has asked the service to stop.

    `probe` asks the database; `assess` turns its answer into a condition; `listener` and `on_change` get what changed.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[Diagnosis]],
        assess: Callable[[Diagnosis], Condition],
        listener: Callable[[bool], Awaitable[None]],
        on_change: Callable[[bool, bool], None],
    ) -> None:
        self._probe = probe
        self._assess = assess
        self._listener = listener
        self._on_change = on_change
        self._stopping = False
        self._asking: asyncio.Future[Diagnosis] | None = None
        self.diagnosis: Diagnosis | None = None
        """The state of the database at the last check."""
        self.ready = False
        self.degraded = False
        self.reasons: tuple[ReadinessReason, ...] = (ReadinessReason.STARTING,)

    @property
    def database_away(self) -> bool:
        """Whether the database could not be reached at the last check."""
        return self.diagnosis is not None and not self.diagnosis.reachable

    async def run(self) -> None:
        """Check every second."""
        while True:
            await asyncio.sleep(CHECK_AWAY_SECONDS if self.database_away else CHECK_SECONDS)
            await self.check()

    async def stop(self) -> None:
        """Be not ready for good."""
        self._stopping = True
        await self._set(Condition(False, {ReadinessReason.STOPPING: "the service was told to stop"}))

    async def check(self) -> None:
        """Ask the database and publish the condition that follows from its answer."""
        # A frozen server never answers, and waiting on its connection cannot be bounded from within: the question is
        # left where it is, and not asked again before it ends.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._probe())
        await asyncio.wait({self._asking}, timeout=ANSWER_SECONDS)
        if self._stopping:
            return
        try:
            self.diagnosis = self._asking.result() if self._asking.done() else AWAY
            condition = self._assess(self.diagnosis)
        except Exception:
            # The last condition may have changed meanwhile.
            await self._set(Condition(self.ready, tasks_fail(["readiness"])))
            raise
        await self._set(condition)

    async def _set(self, condition: Condition) -> None:
        reasons = tuple(condition.details)
        degraded = condition.usable and bool(reasons)
        changed = (condition.usable, reasons) != (self.ready, self.reasons)
        if condition.usable != self.ready:
            # First: when it fails, the next check finds that nothing was published yet.
            await self._listener(condition.usable)
        self.ready, self.degraded, self.reasons = condition.usable, degraded, reasons
        if changed:
            self._on_change(self.ready, degraded)
            state = "degraded" if degraded else "ready" if self.ready else "not ready"
            # The details stay here: /readyz is open to everybody and shows the words alone.
            detail = "; ".join(condition.details.values())
            structlog.get_logger("leadkeep.readiness").info(state, reasons=reasons, detail=detail or None)
