"""Can leads be made durable now, and what should an operator know? Decided once, for every door and for `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from service.storage.spool import Spool
from service.storage.spool_rows import Size

FULL_SHARE = 0.8
"""Of the spool's limit; beyond it there is little time left to bring the database back."""

DATABASE_AWAY = "the database cannot be reached or takes no writes"


@dataclass(frozen=True, slots=True)
class Condition:
    """`usable`: leads can be made durable somewhere. `reasons`: why all is not well, in fixed words and numbers."""

    usable: bool
    reasons: tuple[str, ...]


def condition_of(
    spool: Spool,
    *,
    database_answers: bool,
    database_refusal: str | None,
    longest_wait: float,
    files_alarm: str | None,
) -> Condition:
    """What is so now. `longest_wait`: the age in seconds from which a spooled lead is an alarm."""
    reasons = [] if database_answers else [database_refusal or DATABASE_AWAY]
    if not database_answers and not spool.identified:
        reasons.append("no lead is accepted before the database was reached once: its keyring is not confirmed")
    if spool.fault is not None:
        reasons.append(f"the spool takes no leads: {spool.fault}")
    reasons += spool_alarms(spool.size, max_bytes=spool.max_bytes, longest_wait=longest_wait)
    if files_alarm is not None:
        reasons.append(files_alarm)
    return Condition(database_answers or spool.usable, tuple(reasons))


def spool_alarms(size: Size, *, max_bytes: int, longest_wait: float) -> list[str]:
    """What an operator should do something about."""
    alarms = []
    if size.damaged:
        alarms.append(f"{size.damaged} spooled leads were set aside: see leadkeep spool list")
    if size.bytes > FULL_SHARE * max_bytes:
        alarms.append(f"the spool holds {size.bytes // 1_000_000} MB, its limit is {max_bytes // 1_000_000} MB")
    if size.oldest is not None and size.waiting and (age := age_of(size)) > longest_wait:
        alarms.append(f"leads have waited in the spool for {age / 3600:.1f} hours")
    return alarms


def age_of(size: Size) -> float:
    """Seconds since the oldest spooled lead was accepted; 0 when there is none."""
    return 0.0 if size.oldest is None else max(0.0, (datetime.now(UTC) - size.oldest).total_seconds())
