"""`serve`: builds the service, starts it, and stops it in order.

Start: PostgreSQL (embedded) → keyring → spool → schema and canary → endpoints → the tasks in their order → ready.
Stop: not ready → calls are taken for a while → endpoints take nothing new and finish what runs → the tasks in the
reverse order → database connections → spool → PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, closing

import uvloop
from prometheus_client import CollectorRegistry

from service.config import Settings
from service.replica import ServiceParts, first_encryption, running_replica
from service.rpc.limits import Limits, limits_within, raise_open_files
from service.rpc.metrics import Metrics
from service.rpc.tls_files import TlsFiles
from service.serving import Serving
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.schema import OWN_DATABASE, OWN_LOGIN, embedded_database
from service.storage.spool.spool import Spool
from service.supervisor import Supervisor, handle_signals

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

    registry = CollectorRegistry()
    metrics = Metrics(registry)
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
                registry=registry,
                metrics=metrics,
            )
            on_ready(*await serving.start(reload))
            await stop.wait()
            await serving.stop()
    return supervisor.died is None
