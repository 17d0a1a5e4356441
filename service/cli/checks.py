"""`leadkeep doctor` and `leadkeep audit verify`: checks of an installation and of its access record.

Exit codes: 0 nothing found; 1 it could not be checked; 3 a fault was found.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, NamedTuple, TypeVar

import typer

from service import factories
from service.cli.command import AsJson, report
from service.cli.database import confirmed_database_url, database_url, is_untouched
from service.config import Settings, load_settings
from service.errors import LeadkeepError, StartRefusedError
from service.rpc.readiness import erasures_alarm, spool_alarms
from service.rpc.tokens.local_key import LocalSigningKey
from service.storage.access.check import Findings, check
from service.storage.access.writer import logged_heads
from service.storage.database.database import Database
from service.storage.database.failures import NoStandbyError, StorageFaultError, cause_of, is_transient
from service.storage.database.fence import Fence
from service.storage.diagnosis import Diagnosis, diagnose, excess_rights, in_the_way, lacks_group
from service.storage.keys.canary import compare_canary, found_by, read_key_state
from service.storage.keys.rekeying import EMAILS, LACKS_EMAIL_INDEX, rekeying
from service.storage.leads.open_erasures import waiting_erasures
from service.storage.leads.submissions import SubmissionStore
from service.storage.schema import APPLICATION_ROLE, require_current, revision_of
from service.storage.spool.rows import peek

T = TypeVar("T")

LOOKS = 5
LOOK_AGAIN_SECONDS = 0.2
"""How often a look is taken before doctor reports what a busy moment explains too, and the time between two. Each look
has as long as the service's own statements: 2 seconds in all, and 200 ms for a lock."""

STATEMENTS = "statements of the service"
"""The check whether the database takes what the service asks of it."""

KEPT = "; a running service is degraded: it keeps new leads in its spool"

_TOO_SHORT = "{0} of the server, the database, the role or the URL is too short: ALTER ROLE … SET {0} = '10s', or more"

MENDS = {
    "25006": "the server takes no writes",
    "25P04": _TOO_SHORT.format("transaction_timeout"),
    "42501": "a right is missing that was granted otherwise, such as EXECUTE on a function: run leadkeep migrate",
    "42P01": "the schema is missing, or a table that another one's trigger names: run leadkeep migrate, or restore",
    "53100": "the disk of the server is full: free space on it",
    "57014": _TOO_SHORT.format("statement_timeout"),
    "57P05": _TOO_SHORT.format("idle_session_timeout"),
    "53400": "a limit of the server is reached: raise temp_file_limit, or work_mem of the role",
    "55P03": "something holds a lock for long: see pg_locks",
    "not_stored": "PostgreSQL takes a statement and stores nothing: a trigger or a rule drops rows",
    "hung": "it takes longer than the service waits: see what the server is busy with",
}
"""What to do about a cause that the catalogue does not show: an SQLSTATE, or a word of ours."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of `doctor`."""

    check: str
    ok: bool
    detail: str


class Given(NamedTuple):
    """What a check of the database is given."""

    settings: Settings
    url: str
    database: Database
    diagnosis: Diagnosis


def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, schema, rights, keys and spool; exit code 3 if something is wrong."""
    findings = asyncio.run(_findings(load_settings()))
    healthy = all(finding.ok for finding in findings)
    report(
        {"healthy": healthy, "checks": [asdict(finding) for finding in findings]},
        [f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.detail}" for finding in findings],
        as_json=as_json,
        sound=healthy,
    )


async def _findings(settings: Settings) -> list[Finding]:
    """Check everything that `serve` needs, whether it runs or not; one fault does not hide the next."""
    findings = [await _finding(check, look, settings) for check, look in CHECKS_HERE.items()]
    if is_untouched(settings):
        # Looking must not make anything: a database without a keyring would only be half of a first start.
        return [*findings, Finding("database", True, "is made by the first serve")]
    try:
        with database_url(settings) as url:
            findings += await _database_findings(settings, url)
    except StartRefusedError as refused:
        findings.append(Finding("database", False, str(refused)))
    return findings


async def _finding(check: str, look: Callable[[T], str | Awaitable[str]], given: T) -> Finding:
    """What a look finds: its answer, or why it refuses."""
    try:
        found = look(given)
        return Finding(check, True, found if isinstance(found, str) else await found)
    except (StartRefusedError, LeadkeepError, StorageFaultError) as error:
        return Finding(check, False, str(error))


async def _database_findings(settings: Settings, url: str) -> list[Finding]:
    # What a look notes in the service's folder would belong to whoever looks.
    fence = Fence(url, settings.spool_path, remembers=False)
    database = Database(url, fence=fence)
    try:
        diagnosis = await _settled(
            partial(diagnose, database), lambda found: found.reachable or database.refusal is not None
        )
        if not diagnosis.reachable:
            refused = await database.why_refused()
            return [Finding("database", False, f"{refused or _away(diagnosis)}{KEPT}")]
        given = Given(settings, url, database, diagnosis)
        findings = [await _finding("database", _writes, given)]
        try:
            revision = await revision_of(database)
            require_current(revision)
            findings.append(Finding("schema", True, f"revision {revision}"))
        except StartRefusedError as refused:
            # A schema that is gone or shut as a whole; an older one lacks this and that, which says nothing.
            why = _lacking(diagnosis) if len(diagnosis.lacking) == 1 else []
            return [*findings, Finding("schema", False, str(refused)), *why]
        except (LeadkeepError, StorageFaultError) as error:
            findings.append(Finding("schema", False, str(error)))
        findings += await _statements(given)
        return findings + [await _finding(check, look, given) for check, look in CHECKS_OF_DATABASE.items()]
    finally:
        await database.close()
        await fence.close()


async def _excess(given: Given) -> str:
    if excess := await excess_rights(given.database):
        raise StartRefusedError(f"more than needed: may {', '.join(excess)}")
    return "no DDL, no DELETE"


async def _canary(given: Given) -> str:
    encryption = factories.encryption_of(given.settings)
    normaliser = factories.validation_of(given.settings).normaliser_identity
    found = await compare_canary(given.database, encryption, normaliser)
    if found is None:
        return "no service has started yet"
    detail = "keyring and normaliser are those of the stored leads"
    if found.next_digest or found.clearing:
        return f"{detail}; the blind indexes are being changed: leadkeep keys reindex goes on with it"
    if found.normaliser != normaliser:
        return f"{detail}; an earlier index rule: leadkeep keys reindex moves the leads to this release's"
    return detail


async def _conversation_ids(given: Given) -> str:
    async with rekeying(given.url) as tables:
        in_clear = await tables.in_clear()
    if in_clear:
        counted = ", ".join(f"{count} of {plural}" for plural, count in in_clear.items())
        raise StartRefusedError(f"in clear, from before they were sealed: {counted}; run leadkeep keys reseal")
    return "all are sealed"


async def _email_index(given: Given) -> str:
    async with rekeying(given.url) as tables:
        lacking = await tables.count(EMAILS, LACKS_EMAIL_INDEX)
    if lacking:
        raise StartRefusedError(
            f"{lacking} leads cannot be found by their e-mail yet, so that this search is refused; run leadkeep keys "
            "reseal"
        )
    return "every lead can be found by its e-mail"


async def _person_index(given: Given) -> str:
    state = await given.database.read(read_key_state)
    if state is None:
        return "no service has started yet"
    async with rekeying(given.url) as tables:
        lacking = await tables.not_found(found_by(state, factories.encryption_of(given.settings)))
    if lacking:
        counted = " and ".join(f"{count} {plural}" for plural, count in lacking.items())
        raise StartRefusedError(
            f"{counted} cannot be found by phone, nid or e-mail yet, so that leadkeep person is refused; run leadkeep "
            "keys reseal"
        )
    return "every resubmission and conflict can be found by phone, nid and e-mail"


async def _erasures(given: Given) -> str:
    waiting = await waiting_erasures(given.database)
    if alarm := erasures_alarm(waiting):
        raise StartRefusedError(alarm)
    return f"{sum(each.erasures for each in waiting)} wait for a replica"


def _away(diagnosis: Diagnosis) -> str:
    cause = diagnosis.failed
    return f"does not serve (cause {cause}): {MENDS[cause]}" if cause in MENDS else "cannot be reached"


def _writes(given: Given) -> str:
    if given.diagnosis.read_only:
        raise StartRefusedError(
            "takes no writes: it is a standby (name every host in LEADKEEP_DATABASE_URL, with "
            "target_session_attrs=read-write), or default_transaction_read_only is on for the server, the database or "
            f"the role (managed servers set it when a disk is full){KEPT}"
        )
    return "embedded" if given.settings.embedded else "reachable, takes writes"


async def _statements(given: Given) -> list[Finding]:
    """Whether the database takes what the service asks of it: by its catalogue, then by submissions that are undone."""
    database, diagnosis = given.database, given.diagnosis
    if diagnosis.lacking:
        with suppress(LeadkeepError, StorageFaultError):
            if login := await lacks_group(database):
                mend = f"the login has none of the rights; run: GRANT {APPLICATION_ROLE} TO {login}"
                return [Finding(STATEMENTS, False, f"{mend}{KEPT}")]
        return _lacking(diagnosis)
    cause = diagnosis.refused or await _trial(database, given.settings)
    foreign: list[str] = []
    with suppress(LeadkeepError, StorageFaultError):
        foreign = [f"something in its tables that is not Leadkeep's, {each}" for each in await in_the_way(database)]
    if cause is None:
        return [Finding(STATEMENTS, True, "; ".join(["every right is there, and a submission passes", *foreign]))]
    mends = [f"a submission that was to be undone again fails (cause {cause})"]
    if cause in MENDS:
        mends.append(MENDS[cause])
    return [Finding(STATEMENTS, False, f"{'; '.join([*mends, *foreign])}{KEPT}")]


def _lacking(diagnosis: Diagnosis) -> list[Finding]:
    return [Finding(STATEMENTS, False, f"{each}{KEPT}") for each in diagnosis.lacking]


async def _trial(database: Database, settings: Settings) -> str | None:
    store = SubmissionStore(database, require_standby=settings.require_standby)
    error = await _settled(store.trial, lambda found: found is None or not is_transient(found))
    return cause_of(error) if error is not None and not isinstance(error, NoStandbyError) else None


async def _settled(look: Callable[[], Awaitable[T]], is_settled: Callable[[T], bool]) -> T:
    """What a look finds, repeated while it may be a fault that passes by itself."""
    for _ in range(LOOKS - 1):
        if is_settled(found := await look()):
            return found
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    return await look()


def _standbys(given: Given) -> str:
    diagnosis, there = given.diagnosis, given.diagnosis.standbys
    wanted = diagnosis.commits_wait_for
    if diagnosis.commits_hang:
        what = f"{there} of {wanted} are there" if there is not None else f"{diagnosis.hanging} commits wait"
        raise StartRefusedError(f"commits do not end: is a synchronous standby away? ({what}){KEPT}")
    if given.settings.require_standby and wanted == 0:
        raise StartRefusedError(f"LEADKEEP_REQUIRE_STANDBY is set and synchronous_standby_names is empty{KEPT}")
    unseen = f"; whether they are there cannot be seen, run as a superuser: GRANT pg_monitor TO {APPLICATION_ROLE}"
    return f"a commit waits for {wanted}{unseen if there is None else ''}"


def _data_folder(settings: Settings) -> str:
    folder = settings.data_dir
    if not folder.exists():
        return f"{folder} is made by the first serve"
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise StartRefusedError(f"{folder} can be entered by others; run: chmod 700 '{folder}'")
    return f"{folder}, mode 0700"


def _keyring(settings: Settings) -> str:
    source = factories.keyring_source(settings)
    if is_untouched(settings) and source.path is not None and not source.path.exists():
        return "is made by the first serve"
    return f"{len(source.load().keys)} keys in {source.name}"


def _tokens(settings: Settings) -> str:
    if settings.auth_jwks is not None:
        return "verified with the keys of LEADKEEP_AUTH_JWKS"
    if not settings.signing_key_path.exists():
        return "the local signing key is made by the first serve or token"
    LocalSigningKey.load(settings.signing_key_path)
    return f"verified with {settings.signing_key_path}"


def _spool(settings: Settings) -> str:
    size, _ = peek(settings.spool_path)
    alarms = spool_alarms(size, max_bytes=settings.spool_bytes, longest_wait=settings.spool_alarm_age)
    if alarms:
        raise StartRefusedError(f"degraded: {'; '.join(alarms.values())}")
    return f"{size.waiting} leads wait in {settings.spool_path}"


def _files(settings: Settings) -> str:
    folder = settings.files_path
    try:
        if not folder.exists():
            return f"{folder} is made by the first serve"
        files = [entry for entry in folder.iterdir() if entry.name.startswith("leads_")]
        exposed = [entry.name for entry in files if stat.S_IMODE(entry.stat().st_mode) & 0o077]
    except OSError as error:
        raise StartRefusedError(f"{folder} cannot be used: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartRefusedError(f"{folder} cannot be written")
    if exposed:
        raise StartRefusedError(f"{folder}/{exposed[0]} may be read by others; run: chmod 600 '{folder}'/leads_*.json")
    return f"{len(files)} in {folder}"


CHECKS_HERE: dict[str, Callable[[Settings], str]] = {
    "data folder": _data_folder,
    "keyring": _keyring,
    "tokens": _tokens,
    "spool": _spool,
    "daily files": _files,
}
"""The checks of this machine. A check returns what is well, or raises StartRefusedError."""

CHECKS_OF_DATABASE: dict[str, Callable[[Given], str | Awaitable[str]]] = {
    "standbys": _standbys,
    "rights of serve": _excess,
    "canary": _canary,
    "conversation ids": _conversation_ids,
    "e-mail index": _email_index,
    "person index": _person_index,
    "erasures": _erasures,
}
"""The checks of a database of this release's schema."""


def verify_record(
    heads: Annotated[
        Path | None, typer.Option(help="File with lines of the service's log, as they were shipped elsewhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find entries that were changed, added or removed. Exit code 3 if there are any.

    With --heads, also find entries that were removed together with all traces of them in the database.
    """
    settings = load_settings()
    try:
        with _opened(heads) as lines:
            encryption = factories.encryption_of(settings)
            with confirmed_database_url(settings) as url:
                # Read before the database is: a service that runs goes on writing to both.
                logged = list(dict.fromkeys(logged_heads(lines)))
                findings = check(url, encryption, logged)
    except StorageFaultError as fault:
        raise StartRefusedError(f"the access record cannot be read: {fault}") from None
    except ValueError as error:
        raise StartRefusedError(f"{heads} cannot be used: {error}") from None
    if heads is not None and not findings.heads:
        raise StartRefusedError(f"{heads} holds no head of a chain: it proves nothing")
    report(
        {"unchanged": findings.unchanged, **asdict(findings)},
        _record_lines(findings, with_heads=heads is not None),
        as_json=as_json,
        sound=findings.unchanged,
    )


def _record_lines(findings: Findings, *, with_heads: bool) -> Iterator[str]:
    for fault in findings.faults:
        where = f" (chain {fault.chain})" if fault.chain else ""
        yield f"{fault.kind}: {fault.what}{where}"
    if findings.fault_count > len(findings.faults):
        yield f"and {findings.fault_count - len(findings.faults)} more"
    yield (
        f"{findings.entries} entries in {findings.chains} chains: {findings.ended} have ended, "
        f"{findings.chains - findings.ended} are being written or were left by a writer that was killed."
    )
    if findings.earlier_entries:
        sealed = "sealed by the first chain" if findings.earlier_sealed else "to be sealed with the first unmasked read"
        yield f"{findings.earlier_entries} entries from before there were chains, {sealed}."
    if with_heads:
        yield f"Compared with {findings.heads} heads."
    elif findings.chains:
        yield "Not compared with heads of the log (--heads): tables that were all cut alike would not be noticed."
    yield "Unchanged." if findings.unchanged else f"NOT as it was written: {findings.fault_count} faults."


def _opened(heads: Path | None) -> IO[str]:
    try:
        return (heads or Path(os.devnull)).open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StartRefusedError(f"{heads} cannot be read: {error.strerror}") from None
