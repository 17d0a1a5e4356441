"""`serve`: builds the service, starts it, and stops it in order.

Start: PostgreSQL (embedded) → keyring → spool → schema and canary → endpoints → the tasks in their order → ready.
Stop: not ready → calls are taken for a while → endpoints take nothing new and finish what runs → the tasks in the
reverse order → database connections → spool → PostgreSQL.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

import structlog
import uvloop
from prometheus_client import CollectorRegistry
from uuid_utils import uuid7

from service.config import Settings
from service.factories import keyring_source, new_id, reason_rules, token_verifier
from service.files.renderer_process import FileRendering
from service.http.endpoint import OPS_LIMITS, HttpEndpoint
from service.keys.keyring import follow_keyring
from service.replica import ServiceParts, access_writing, first_encryption, lead_writing, running_replica, stop_tasks
from service.rpc.call import KEPT_SECONDS, Work, chained, end_calls
from service.rpc.interceptors import duplicate_limit, standard_chain
from service.rpc.limits import Limits, Refusals, limits_within, raise_open_files
from service.rpc.metrics import Metrics
from service.rpc.readiness import Condition, Readiness, condition_of, erasures_alarm
from service.rpc.server import GrpcServer
from service.rpc.tls_files import TlsFiles
from service.rpc.unmasking import unmasking
from service.storage.access.record import log_head
from service.storage.access.writer import AccessHeads, AccessWriter
from service.storage.diagnosis import Diagnosis, diagnose
from service.storage.keys.replicas import replica_name
from service.storage.leads.resubmissions import DuplicateLimit
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_DATABASE, OWN_LOGIN, embedded_database
from service.storage.spool.spool import Spool
from service.supervisor import Component, Supervisor, handle_signals, shutdown_delay
from service.use_cases.confirmation import ConfirmationService

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

    registry, work = CollectorRegistry(), Work()
    metrics = Metrics(registry)
    supervisor = Supervisor(on_death=stop.set, on_failure=lambda task: metrics.task_failures.labels(task).inc())
    encryption = await first_encryption(settings, url)
    with closing(Spool(settings.spool_path, encryption, max_bytes=settings.spool_bytes)) as spool:
        parts = ServiceParts(settings, url, spool, encryption, metrics)
        async with running_replica(parts, supervisor, settings.shutdown_grace):
            database, records = parts.database, parts.records
            accesses = AccessWriter(
                database,
                records,
                writer=f"serve@{socket.gethostname()}",
                new_id=new_id,
                limit=settings.unmask_limit,
                on_chain=log_head,
                on_refusal=lambda cause: structlog.get_logger("leadkeep.storage").error(
                    "the access record cannot be written", cause=cause
                ),
            )
            heads = AccessHeads(records, accesses)
            confirmation = ConfirmationService(
                override_dir=settings.confirmation_dir, default_locale=settings.default_locale
            )
            chain = standard_chain(
                verify=token_verifier(settings).verify,
                explain=confirmation.explain,
                database_away=lambda: readiness.database_away,
                unmasking=unmasking(accesses.record, reason_rules(settings)),
                limiting=(
                    [duplicate_limit(DuplicateLimit(database, settings.duplicate_limit).require_room)]
                    if settings.duplicate_limit is not None
                    else []
                ),
                metrics=metrics,
                max_concurrent_calls=settings.max_concurrent_calls,
                default_deadline=settings.default_deadline,
                work=work,
                new_id=uuid7,
            )
            methods = chained(chain, parts.servicer(confirmation))
            files = FileRendering(
                url=url,
                replica=replica_name(settings.spool_path),
                folder=settings.files_path,
                timezone=settings.files_timezone,
                identity=lambda: database.identity,
                on_render=metrics.on_render,
            )

            def assess(diagnosis: Diagnosis) -> Condition:
                if diagnosis.reachable and diagnosis.refused is None:
                    metrics.commits_wait_for.set(diagnosis.commits_wait_for)
                return condition_of(
                    spool,
                    diagnosis=diagnosis,
                    outage=parts.outage,
                    drain_refused=parts.drain.refused,
                    require_standby=settings.require_standby,
                    database_refusal=parts.admission.refusal,
                    session_refusal=database.refusal or parts.confirming.refusal,
                    restarting_log=postgres.log_file if postgres is not None and postgres.restarting else None,
                    longest_wait=settings.spool_alarm_age,
                    erasures_alarm=erasures_alarm(parts.spools.waiting),
                    files_alarm=files.alarm,
                    failing_tasks=supervisor.failing,
                    tls_alarm=tls.alarm if tls is not None else None,
                )

            refusals = Refusals(lambda door, reason: metrics.refusals.labels(door, reason).inc())
            grpc_endpoint = GrpcServer(
                methods, address=str(settings.grpc_address), tls=tls, limits=limits, refusals=refusals
            )
            readiness = Readiness(partial(diagnose, database), assess, grpc_endpoint.set_serving, metrics.set_readiness)
            required = parts.validation.required
            http = partial(HttpEndpoint, tls=tls, readiness=readiness, registry=registry, required=required)
            at, ops_at = settings.http_address, settings.ops_address
            origins = settings.allowed_origins or ()
            http_endpoint = http(
                methods, host=at.host, port=at.port, limits=limits, refusals=refusals, allowed_origins=origins
            )
            ops_endpoint = None
            if ops_at is not None:
                setting = "LEADKEEP_OPS_ADDRESS"
                ops_endpoint = http(None, host=ops_at.host, port=ops_at.port, setting=setting, limits=OPS_LIMITS)
            metrics.watch_tasks(asyncio.get_running_loop())
            metrics.watch(spool, files, parts.spools)

            await grpc_endpoint.start()
            await http_endpoint.start()
            if ops_endpoint is not None:
                await ops_endpoint.start()
            supervisor.start(
                [
                    # Stopped from the end: the writer spools what still waits, the access record ends its chain.
                    *([Component(name="embedded PostgreSQL", run=postgres.keep_running)] if postgres else []),
                    Component(
                        name="keyring reload",
                        run=partial(follow_keyring, keyring_source(settings), reload, parts.report.use_keyring),
                    ),
                    *([Component(name="TLS files", run=tls.run)] if tls else []),
                    Component(name="daily files", run=files.run, finish=files.finish),
                    Component(name="access heads", run=heads.run, stop=heads.log_own, on_clean_stop=heads.log_others),
                    access_writing(accesses),
                    *lead_writing(parts.writer),
                    Component(name="spool upkeep", run=spool.run_upkeep),
                    Component(name="drain", run=parts.drain.run),
                    Component(name="erasures", run=parts.drain.run_erasures),
                    Component(name="limits", run=grpc_endpoint.run),
                    Component(name="readiness", run=readiness.run),
                ]
            )
            await readiness.check()
            # What was loaded by now stays: looking at it again and again takes a tenth of a busy service's time.
            gc.collect()
            gc.freeze()
            on_ready(grpc_endpoint.port, http_endpoint.port, ops_endpoint.port if ops_endpoint else None)
            await stop.wait()

            structlog.get_logger("leadkeep").info("stopping")
            await readiness.stop()
            if supervisor.died is None:
                # Load balancers and clients notice, and go elsewhere.
                await asyncio.sleep(shutdown_delay(settings.shutdown_delay))
            left = await end_calls((grpc_endpoint, http_endpoint), work, supervisor, settings.shutdown_grace)
            if ops_endpoint is not None:
                # Probes are answered as long as calls are.
                await ops_endpoint.stop(0)
            await stop_tasks(supervisor, database, max(left, KEPT_SECONDS))
    return supervisor.died is None
