"""`serve`: builds the service, starts it, and stops it in order.

Start: PostgreSQL (embedded) → keyring → spool → schema and canary → endpoints → the tasks in their order → ready.
Stop: not ready → calls are taken for a while → endpoints take nothing new and finish what runs → the tasks in the
reverse order → database connections → spool → PostgreSQL.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial

import structlog
import uvloop
from uuid_utils import uuid7

from service.config import Settings
from service.executors import DaemonThreads
from service.factories import keyring_source, new_id, token_verifier
from service.files.renderer_process import FileRendering
from service.http.endpoint import OPS_LIMITS, HttpEndpoint
from service.keys.keyring import follow_keyring
from service.replica import (
    ServiceParts,
    access_writing,
    first_encryption,
    lead_writing,
    running_replica,
    stop_tasks,
)
from service.rpc.call import KEPT_SECONDS, Handler, Work, chained, end_calls
from service.rpc.interceptors import duplicate_limit, standard_chain
from service.rpc.limits import Limits, Refusals, limits_within, raise_open_files
from service.rpc.metrics import Metrics
from service.rpc.readiness import Condition, Readiness, condition_of, erasures_alarm
from service.rpc.server import GrpcServer
from service.rpc.tls_files import TlsFiles
from service.rpc.unmasking import ReasonRules, unmasking
from service.storage.access.writer import AccessHeads, AccessWriter, log_head
from service.storage.database.failures import CONTENT_CLASSES, RecentRefusal
from service.storage.diagnosis import Diagnosis, diagnose
from service.storage.keys.replicas import replica_name
from service.storage.leads.changes import LeadHistory
from service.storage.leads.resubmissions import DuplicateLimit
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_DATABASE, OWN_LOGIN, embedded_database
from service.storage.spool.spool import Spool
from service.supervisor import Component, Supervisor, handle_signals, shutdown_delay
from service.use_cases.confirmation import ConfirmationService

REFUSED_SECONDS = 10.0
"""How long a refused call counts: nothing shows that the next one would pass, except that next one."""

OnReady = Callable[[int, int, int | None], None]


def serve(settings: Settings, *, on_ready: OnReady) -> None:
    """Run the service until SIGTERM or SIGINT. `on_ready` gets the ports: gRPC, HTTP, operators' (if set).

    Raises StartRefusedError when the service must not start like this, SystemExit when a vital task ended.
    """
    wanted = Limits(connections=settings.max_connections, connections_of_peer=settings.max_connections_per_peer)
    limits = limits_within(wanted, raise_open_files())
    with ExitStack() as stack:
        url, postgres = settings.database_url, None
        if url is None:
            postgres = stack.enter_context(embedded_database(settings.data_dir))
            url = postgres.url(user=OWN_LOGIN, database=OWN_DATABASE)
        # Every turn of the loop costs, and a call takes some twenty: docs/performance.md.
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        runner.get_loop().set_default_executor(DaemonThreads())
        if runner.run(_serve(settings, limits, url, postgres, on_ready)):
            return
    # The log names the task.
    raise SystemExit(1)


async def _serve(
    settings: Settings, limits: Limits, url: str, postgres: EmbeddedPostgres | None, on_ready: OnReady
) -> bool:
    """Serve until a signal. False when a vital task ended."""
    stop, reload = asyncio.Event(), asyncio.Event()
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    handle_signals(stop.set, [reload.set, tls.reload_now] if tls else [reload.set])

    metrics = Metrics()
    supervisor = Supervisor(on_death=stop.set, on_failure=lambda task: metrics.task_failures.labels(task).inc())
    encryption = await first_encryption(settings, url)
    with closing(Spool(settings.spool_path, encryption, max_bytes=settings.spool_bytes)) as spool:
        parts = ServiceParts(settings, url, spool, encryption, metrics)
        async with running_replica(parts, supervisor, settings.shutdown_grace):
            serving = Serving(
                *(settings, parts, supervisor),
                limits=limits,
                url=url,
                postgres=postgres,
                tls=tls,
                metrics=metrics,
            )
            on_ready(*await serving.start(reload))
            await stop.wait()
            await serving.stop()
    return supervisor.died is None


class Serving:
    """The chain, the endpoints and the tasks on the parts of a replica. The endpoints answer after `start`.

    Args:
        limits: what callers may hold of the service.
        url: the database, for the process that writes the daily files.
        postgres: the embedded PostgreSQL, if the service runs it.
        tls: the certificate of both endpoints; None serves in clear.
        metrics: what `/metrics` shows.

    Raises StartRefusedError when an address cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        parts: ServiceParts,
        supervisor: Supervisor,
        *,
        limits: Limits,
        url: str,
        postgres: EmbeddedPostgres | None,
        tls: TlsFiles | None,
        metrics: Metrics,
    ) -> None:
        self._settings, self._parts, self._supervisor = settings, parts, supervisor
        self._postgres, self._tls, self._metrics = postgres, tls, metrics
        self._work = Work()
        self._refused = RecentRefusal(REFUSED_SECONDS)
        self._accesses = AccessWriter(
            parts.database,
            parts.records,
            writer=f"serve@{socket.gethostname()}",
            new_id=new_id,
            limit=settings.unmask_limit,
            on_chain=log_head,
            on_refusal=lambda cause: structlog.get_logger("leadkeep.storage").error(
                "the access record cannot be written", cause=cause
            ),
        )
        self._files = FileRendering(
            url=url,
            replica=replica_name(settings.spool_path),
            folder=settings.files_path,
            timezone=settings.files_timezone,
            identity=lambda: parts.database.identity,
            on_render=metrics.on_render,
        )
        methods = self._methods()
        refusals = Refusals(lambda door, reason: metrics.refusals.labels(door, reason).inc())
        self._grpc = GrpcServer(methods, address=str(settings.grpc_address), tls=tls, limits=limits, refusals=refusals)
        diagnosing = partial(diagnose, parts.database)
        self._readiness = Readiness(diagnosing, self._assess, self._grpc.set_serving, metrics.set_readiness)
        http = partial(
            HttpEndpoint,
            tls=tls,
            readiness=self._readiness,
            registry=metrics.registry,
            required=parts.validation.required,
        )
        at, ops_at = settings.http_address, settings.ops_address
        origins = settings.allowed_origins or ()
        self._http = http(
            methods, host=at.host, port=at.port, limits=limits, refusals=refusals, allowed_origins=origins
        )
        self._ops = None
        if ops_at is not None:
            setting = "LEADKEEP_OPS_ADDRESS"
            self._ops = http(None, host=ops_at.host, port=ops_at.port, setting=setting, limits=OPS_LIMITS)
        metrics.watch(parts.spool, self._files, parts.spools)

    def _methods(self) -> Mapping[str, Handler]:
        """The contract's methods behind the chain."""
        settings = self._settings
        confirmation = ConfirmationService(
            override_dir=settings.confirmation_dir, default_locale=settings.default_locale
        )
        limiting = []
        if settings.duplicate_limit is not None:
            limit = DuplicateLimit(self._parts.database, settings.duplicate_limit)
            limiting.append(duplicate_limit(limit.require_room))
        reasons = ReasonRules(self._parts.validation.text, settings.reason_required, settings.purposes or ())
        chain = standard_chain(
            verify=token_verifier(settings).verify,
            explain=confirmation.explain,
            database_away=lambda: self._readiness.database_away,
            unmasking=unmasking(self._accesses, reasons, LeadHistory(self._parts.database).had_other_phones),
            limiting=limiting,
            metrics=self._metrics,
            max_concurrent_calls=settings.max_concurrent_calls,
            default_deadline=settings.default_deadline,
            work=self._work,
            new_id=uuid7,
            on_refused=self._note_refusal,
        )
        return chained(chain, self._parts.servicer(confirmation))

    def _note_refusal(self, cause: str) -> None:
        """A call was refused that no new lead meets. Not counted where it may be for what the caller entered."""
        if cause[:2] not in CONTENT_CLASSES:
            self._refused.note(cause)

    def _assess(self, diagnosis: Diagnosis) -> Condition:
        """The condition of the service with the database as it was found."""
        parts, postgres = self._parts, self._postgres
        if diagnosis.reachable and diagnosis.refused is None:
            self._metrics.commits_wait_for.set(diagnosis.commits_wait_for)
        return condition_of(
            parts.spool,
            diagnosis=diagnosis,
            outage=parts.outage,
            drain_refused=parts.drain.refused,
            access_refused=self._accesses.refused,
            call_refused=self._refused.cause,
            require_standby=self._settings.require_standby,
            database_refusal=parts.admission.refusal,
            session_refusal=parts.database.refusal or parts.confirming.refusal,
            restarting_log=postgres.log_file if postgres is not None and postgres.restarting else None,
            longest_wait=self._settings.spool_alarm_age,
            erasures_alarm=erasures_alarm(parts.spools.waiting),
            files_alarm=self._files.alarm,
            failing_tasks=self._supervisor.failing,
            tls_alarm=self._tls.alarm if self._tls is not None else None,
        )

    def _tasks(self, reload: asyncio.Event) -> Iterator[Component]:
        """In the order of their start. Stopped from the end: the writer spools what still waits, the access record
        ends its chain."""
        parts, files, heads = self._parts, self._files, AccessHeads(self._parts.records, self._accesses)
        if self._postgres is not None:
            yield Component(name="embedded PostgreSQL", run=self._postgres.keep_running)
        keyring = partial(follow_keyring, keyring_source(self._settings), reload, parts.report.use_keyring)
        yield Component(name="keyring reload", run=keyring)
        if self._tls is not None:
            yield Component(name="TLS files", run=self._tls.run)
        yield Component(name="daily files", run=files.run, finish=files.finish)
        yield Component(name="access heads", run=heads.run, stop=heads.log_own, on_clean_stop=heads.log_others)
        yield access_writing(self._accesses)
        yield from lead_writing(parts.writer)
        yield Component(name="spool upkeep", run=parts.spool.run_upkeep)
        yield Component(name="drain", run=parts.drain.run)
        yield Component(name="erasures", run=parts.drain.run_erasures)
        yield Component(name="limits", run=self._grpc.run)
        yield Component(name="gRPC listener", run=self._grpc.connections.watch_listeners, vital=True)
        yield Component(name="readiness", run=self._readiness.run)

    async def start(self, reload: asyncio.Event) -> tuple[int, int, int | None]:
        """Take calls; the ports, as `OnReady` gets them. `reload` asks for the keyring to be read again."""
        self._metrics.watch_tasks(asyncio.get_running_loop())
        await self._grpc.start()
        await self._http.start()
        if self._ops is not None:
            await self._ops.start()
        self._supervisor.start(list(self._tasks(reload)))
        await self._readiness.check()
        # What was loaded by now stays: looking at it again and again takes a tenth of a busy service's time.
        gc.collect()
        gc.freeze()
        return self._grpc.port, self._http.port, self._ops.port if self._ops else None

    async def stop(self) -> None:
        """Answer what runs, take nothing new, and stop the tasks."""
        settings, supervisor = self._settings, self._supervisor
        structlog.get_logger("leadkeep").info("stopping")
        await self._readiness.stop()
        if supervisor.died is None:
            # Load balancers and clients notice, and go elsewhere.
            await asyncio.sleep(shutdown_delay(settings.shutdown_delay))
        left = await end_calls((self._grpc.stop, self._http.stop), self._work, supervisor, settings.shutdown_grace)
        if self._ops is not None:
            # Probes are answered as long as calls are.
            await self._ops.stop(0)
        await stop_tasks(supervisor, self._parts.database, max(left, KEPT_SECONDS))
