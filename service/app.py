"""What is started, in which order, and how does it stop? The only place that builds things.

Start: PostgreSQL (embedded) → keyring → spool → schema and canary → daily files → access record, writer and drain →
doors → ready.
Stop: not ready → doors take nothing new and finish what runs → drain → writer, which spools what still waits → access
record, which ends its chain → daily files → spool → database connections → PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog
import uuid_utils.compat
import uvloop
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import CollectorRegistry

from service.access_service import AccessService
from service.config import Settings
from service.confirmation import ConfirmationService
from service.conflict_service import ConflictService
from service.encryption import EncryptionService
from service.erasure_service import ErasureService
from service.errors import StartRefusedError
from service.file_rendering import FileRendering
from service.http.door import HttpDoor
from service.keyring import create_keyring
from service.keyring_source import KeyringCommand, KeyringContent, KeyringFile, KeyringSource
from service.lead_service import LeadService
from service.rpc.call import Work, chained
from service.rpc.interceptors import standard_chain
from service.rpc.jwks import JwksFile, JwksUrl, KeySource
from service.rpc.local_key import LOCAL_AUDIENCE, LOCAL_ISSUER, LocalSigningKey
from service.rpc.metrics import Metrics
from service.rpc.readiness import Readiness
from service.rpc.server import GrpcServer
from service.rpc.servicer import LeadServicer
from service.rpc.tls_files import TlsFiles
from service.rpc.tokens import TokenVerifier
from service.rpc.unmasking import unmasking
from service.sealing import LeadSealer
from service.storage.access_chain import AccessHeads
from service.storage.access_records import AccessRecords
from service.storage.access_writer import AccessWriter
from service.storage.admission import Admission
from service.storage.canary import has_canary
from service.storage.condition import Condition, condition_of
from service.storage.conflicts import ConflictRepository
from service.storage.database import Database
from service.storage.drain import Drain, Step
from service.storage.embedded import EmbeddedPostgres
from service.storage.erasures import Erasures
from service.storage.memory import RequestMemory
from service.storage.outage import Outage
from service.storage.replicas import ReplicaReport, replica_name
from service.storage.repository import LeadRepository
from service.storage.schema import OWN_DATABASE, OWN_LOGIN, prepare_own_database
from service.storage.spool import Spool
from service.storage.spool_file import SpoolError
from service.storage.tombstones import Tombstones
from service.storage.writer import LeadWriter
from service.supervisor import Component, Supervisor
from service.validation import ValidationService

OBJECTS_A_COLLECTION = 5_000
"""New objects between two collections, in place of 700, which two dozen calls in flight make among them."""

KEPT_SECONDS = 1.0
"""How much of the grace is kept from running calls, for the stop of everything else; a quarter of a short grace."""

ANSWER_SECONDS = 0.3
"""How long a stop waits for the database to answer: hundreds of times what that takes, and short enough for a stop
within a second when it is away."""


def serve(settings: Settings, *, on_ready: Callable[[int, int], None]) -> None:
    """Run the service until SIGTERM or SIGINT. `on_ready` hears the gRPC and the HTTP port.

    Raises StartRefusedError when the service must not start like this, SystemExit when a vital task ended.
    """
    with ExitStack() as stack:
        url, postgres = settings.database_url, None
        if url is None:
            postgres = stack.enter_context(embedded_postgres(settings))
            url = postgres.url(user=OWN_LOGIN, database=OWN_DATABASE)
        # Every turn of the loop costs, and a call takes some twenty: docs/performance.md.
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        if runner.run(_serve(settings, url, postgres, on_ready)):
            return
    # The log says which task it was.
    raise SystemExit(1)


@contextmanager
def embedded_postgres(settings: Settings) -> Iterator[EmbeddedPostgres]:
    """The embedded server with an up-to-date schema, running as long as it is used. Enter it in the main thread."""
    postgres = EmbeddedPostgres(settings.data_dir)
    postgres.start()
    try:
        prepare_own_database(
            postgres.url(user="postgres", database="postgres"), postgres.url(user="postgres", database=OWN_DATABASE)
        )
        yield postgres
    finally:
        postgres.stop()


def validation_of(settings: Settings) -> ValidationService:
    """The validation that the settings describe."""
    return ValidationService(
        default_region=settings.default_region,
        phone_rule=settings.phone_rule,
        nid_rule=settings.nid_rule,
        policies=settings.policies or (),
    )


def keyring_source(settings: Settings) -> KeyringSource:
    """Where the settings say that the keyring is."""
    if settings.keyring_content is not None:
        return KeyringContent(settings.keyring_content)
    if settings.keyring_command is not None:
        return KeyringCommand(settings.keyring_command)
    return KeyringFile(settings.keyring_path)


async def _encryption(settings: Settings, source: KeyringSource, database: Database) -> EncryptionService:
    """The keyring's encryption. An embedded service that starts for the first time makes its keyring."""
    path = source.path
    if settings.embedded and path is not None and not path.exists() and not await has_canary(database):
        create_keyring(path, now=datetime.now(UTC))
    return EncryptionService(await asyncio.to_thread(source.load))


def token_verifier(settings: Settings) -> TokenVerifier:
    """The token check: the issuer's public keys, or the local signing key when no issuer is set."""
    jwks = settings.auth_jwks
    if jwks is None:
        local_key = LocalSigningKey.load_or_create(settings.signing_key_path)
        return TokenVerifier(local_key, issuer=LOCAL_ISSUER, audience=LOCAL_AUDIENCE)
    is_url = "://" in jwks
    keys: KeySource = JwksUrl(jwks) if is_url else JwksFile(Path(jwks))
    return TokenVerifier(keys, issuer=settings.auth_issuer or "", audience=settings.auth_audience or "")


async def _serve(
    settings: Settings, url: str, postgres: EmbeddedPostgres | None, on_ready: Callable[[int, int], None]
) -> bool:
    """Serve until a signal. False when a vital task ended."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hangup = asyncio.Event()
    on_reload: list[Callable[[], None]] = [hangup.set]
    at_terminal = os.isatty(0)

    def on_hangup() -> None:
        # A window that was closed sends it too: then the service ends, for nobody sees it any more.
        if at_terminal and not os.isatty(0):
            stop.set()
            return
        for reload in on_reload:
            reload()

    loop.add_signal_handler(signal.SIGHUP, on_hangup)

    async with AsyncExitStack() as stopping:
        # What is opened first is closed last.
        confirming, database = Database(url), Database(url, guarded=True)
        stopping.push_async_callback(confirming.close)
        stopping.push_async_callback(database.close)
        validation = validation_of(settings)
        source = keyring_source(settings)
        encryption = await _encryption(settings, source, confirming)
        spool = Spool(settings.spool_path, encryption, max_bytes=settings.spool_bytes)
        stopping.callback(spool.close)
        normaliser = validation.normaliser_identity
        report = ReplicaReport(replica_name(settings.spool_path), database, spool, encryption)
        admission = Admission(database, confirming, spool, encryption, normaliser, report)
        registry = _registry()
        metrics = Metrics(registry)
        supervisor = Supervisor(on_death=stop.set, on_failure=lambda task: metrics.task_failures.labels(task).inc())
        stopping.push_async_callback(_stop_tasks, supervisor, database, settings.shutdown_grace)
        if postgres is not None:
            supervisor.start([Component(name="embedded PostgreSQL", run=postgres.keep_running)])
        await admission.start()
        supervisor.start(
            [
                # First, so that it stops last: what the writer spools at the end is reported too.
                Component(name="replica report", run=report.run, last_words=partial(report.withdraw, database)),
                Component(name="admission", run=admission.run),
                Component(name="keyring reload", run=partial(_reload_keyring, hangup, source, report)),
            ]
        )
        metrics.watch_tasks(loop)
        metrics.watch(spool)
        work = Work()
        repository = LeadRepository(database)
        outage, memory, tombstones = Outage(), RequestMemory(), Tombstones(database)
        writer = LeadWriter(
            repository, spool, outage, memory, on_batch=metrics.batches.observe, on_delayed=metrics.delayed.inc
        )
        sealer = LeadSealer(encryption, validation, transcript_url=settings.transcript_url)
        erasures = Erasures(database, repository, sealer.refreshed)
        drain = Drain(
            database=database,
            repository=repository,
            spool=spool,
            outage=outage,
            memory=memory,
            tombstones=tombstones,
            erasures=erasures,
            refreshed=sealer.refreshed,
            busy=lambda: writer.busy,
            on_drained=lambda outcome: metrics.drained.labels(outcome).inc(),
        )
        leads = LeadService(
            repository=repository,
            writer=writer,
            spool=spool,
            sealer=sealer,
            validation=validation,
            confirmation=ConfirmationService(
                override_dir=settings.confirmation_dir, default_locale=settings.default_locale
            ),
            page_token_tags=encryption.page_token_tags,
            new_id=new_id,
        )
        records = AccessRecords(database, encryption)
        accesses = AccessWriter(
            database,
            records,
            writer=f"serve@{socket.gethostname()}",
            new_id=new_id,
            limit=settings.unmask_limit,
            on_chain=lambda chain: heads.tell(chain),
            on_refusal=lambda cause: structlog.get_logger("leadkeep.storage").error(
                "the access record cannot be written", cause=cause
            ),
        )
        heads = AccessHeads(records, lambda: accesses.chain)
        chain = standard_chain(
            verify=token_verifier(settings).verify,
            unmasking=unmasking(
                accesses.record, check_reason=validation.reason, reason_required=settings.reason_required
            ),
            metrics=metrics,
            max_concurrent_calls=settings.max_concurrent_calls,
            work=work,
            new_id=new_id,
        )
        conflicts = ConflictService(
            conflicts=ConflictRepository(database, repository),
            sealer=sealer,
            validation=validation,
            page_token_tags=encryption.page_token_tags,
        )
        access_service = AccessService(records=records, page_token_tags=encryption.page_token_tags)
        erasure_service = ErasureService(
            erasures=erasures,
            spool=spool,
            memory=memory,
            validation=validation,
            refreshed=sealer.refreshed,
        )
        methods = chained(chain, LeadServicer(leads, conflicts, access_service, erasure_service))
        tls = _tls(settings)
        if tls is not None:
            on_reload.append(tls.look_now)
            supervisor.start([Component(name="TLS files", run=tls.run)])
        grpc_door = GrpcServer(methods, address=str(settings.grpc_address), tls=tls)

        files = FileRendering(
            url=url,
            folder=settings.files_path,
            timezone=settings.files_timezone,
            identity=lambda: database.identity,
            on_render=metrics.on_render,
        )
        metrics.watch_files(lag=lambda: files.lag, alarm=lambda: files.alarm)

        def assess(database_answers: bool) -> Condition:
            return condition_of(
                spool,
                database_answers=database_answers,
                database_refusal=admission.refusal,
                restarting_log=postgres.log_file if postgres is not None and postgres.restarting else None,
                longest_wait=settings.spool_alarm_age,
                files_alarm=files.alarm,
                failing_tasks=supervisor.failing,
                tls_alarm=tls.alarm if tls is not None else None,
            )

        readiness = Readiness(database.answers, assess, grpc_door.set_serving, metrics)
        http_door = HttpDoor(
            methods,
            host=settings.http_address.host,
            port=settings.http_address.port,
            tls=tls,
            readiness=readiness,
            registry=registry,
        )
        supervisor.start(
            [
                Component(name="daily files", run=files.run, finish=files.finish),
                Component(name="access heads", run=heads.run, stop=heads.log_own, last_words=heads.log_others),
                access_writing(accesses),
                *lead_writing(writer),
                Component(name="spool upkeep", run=spool.run_upkeep),
                Component(name="drain", run=drain.run),
                Component(name="erasures", run=drain.run_erasures),
            ]
        )
        await grpc_door.start()
        await http_door.start()
        await readiness.look()
        supervisor.start(
            [
                Component(name="HTTP endpoint", run=http_door.run),
                Component(name="readiness", run=readiness.run),
            ]
        )
        _spare_the_collector()
        on_ready(grpc_door.port, http_door.port)
        await stop.wait()
        structlog.get_logger("leadkeep").info("stopping")
        began, grace = time.monotonic(), settings.shutdown_grace
        for_calls = grace - min(KEPT_SECONDS, grace / 4)
        await readiness.stop()
        if supervisor.died is not None:
            # Callers are answered at once: what waits for the database is spooled, or refused.
            await supervisor.stop(for_calls, in_order=False, vital_only=True)
        left = max(0.0, began + for_calls - time.monotonic())
        await asyncio.gather(grpc_door.stop(left), http_door.stop(left))
        # What a caller has left running is finished too: its lead may be half-way into the database.
        await work.finish(max(0.0, began + for_calls - time.monotonic()))
        await _stop_tasks(supervisor, database, max(0.0, began + grace - time.monotonic()))
    return supervisor.died is None


async def _stop_tasks(supervisor: Supervisor, database: Database, seconds: float) -> None:
    """Stop what runs; in order only if the database answers, for else each task would wait for it in turn."""
    if supervisor.idle:
        return
    answers = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(ANSWER_SECONDS, seconds)):
            answers = await database.answers()
    await supervisor.stop(seconds, in_order=answers)


def lead_writing(writer: LeadWriter) -> list[Component]:
    """The two tasks of a lead writer. What waits is spooled when both have ended."""
    return [
        Component(name="spool writer", run=writer.run_spooling, stop=writer.stop, vital=True),
        Component(name="lead writer", run=writer.run, vital=True),
    ]


def access_writing(writer: AccessWriter) -> Component:
    """The task of an access writer, which ends its chain."""
    return Component(
        name="access writer",
        run=writer.run,
        finish=writer.finish,
        stop=writer.stop,
        last_words=writer.end_chain,
        vital=True,
    )


async def _reload_keyring(hangup: asyncio.Event, source: KeyringSource, report: ReplicaReport) -> None:
    """Read the keyring again at each SIGHUP. One that cannot be used changes nothing."""
    log = structlog.get_logger("leadkeep.keys")
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            keyring = await asyncio.to_thread(source.load)
            await report.take(keyring)
        except StartRefusedError as refused:
            log.error("the keyring was not taken, the one before stays in use", what=str(refused))
        except Exception as error:  # noqa: BLE001 # the next SIGHUP must be heard, whatever it was
            log.error("the keyring was not taken, the one before stays in use", error=type(error).__qualname__)
        else:
            log.info("keyring taken", keys=[f"{key.purpose} {key.id} {key.state}" for key in keyring.keys])


async def drain(
    settings: Settings,
    url: str,
    spool: Spool,
    encryption: EncryptionService,
    *,
    on_progress: Callable[[int], None],
    patience: float,
) -> None:
    """Empty the spool of a service that does not run. `on_progress` hears how many leads wait still.

    Ends early when nothing was drained for `patience` seconds. Raises StartRefusedError.
    """
    async with AsyncExitStack() as stopping:
        confirming, database = Database(url), Database(url, guarded=True)
        stopping.push_async_callback(confirming.close)
        stopping.push_async_callback(database.close)
        validation = validation_of(settings)
        normaliser = validation.normaliser_identity
        report = ReplicaReport(replica_name(settings.spool_path), database, spool, encryption)
        admission = Admission(database, confirming, spool, encryption, normaliser, report)
        await admission.start()
        supervisor = Supervisor(on_death=lambda: None)
        stopping.push_async_callback(_stop_tasks, supervisor, database, settings.shutdown_grace)
        supervisor.start(
            [
                Component(name="replica report", run=report.run, last_words=partial(report.withdraw, database)),
                Component(name="admission", run=admission.run),
            ]
        )
        sealer = LeadSealer(encryption, validation, transcript_url=None)
        repository = LeadRepository(database)
        worker = Drain(
            database=database,
            repository=repository,
            spool=spool,
            outage=Outage(),
            memory=RequestMemory(),
            tombstones=Tombstones(database),
            erasures=Erasures(database, repository, sealer.refreshed),
            refreshed=sealer.refreshed,
        )
        moved_at = time.monotonic()
        while spool.size.waiting and time.monotonic() - moved_at < patience:
            try:
                step = await worker.step()
            except SpoolError:
                raise
            except Exception as error:  # noqa: BLE001 # its text may hold values
                raise StartRefusedError(
                    f"the drain fails by a fault of ours ({type(error).__qualname__}): what waits stays, report it"
                ) from None
            if step is Step.DRAINED:
                moved_at = time.monotonic()
                on_progress(spool.size.waiting)
            else:
                await asyncio.sleep(0.5)


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): made before the database is asked, and in the order of time."""
    made: UUID = uuid_utils.compat.uuid7()
    return made


def _spare_the_collector() -> None:
    """Let the garbage collector look only at what calls leave behind, and less often.

    What was loaded by now stays. Looking at it again and again takes a tenth of a busy service's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_A_COLLECTION, *gc.get_threshold()[1:])


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _tls(settings: Settings) -> TlsFiles | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
