"""Parts of a replica, storage and use cases, and how they run: the same for `serve` and `leadkeep spool drain`.

The database is confirmed before anything is written to it. At the end the tasks are stopped, last started first, and
the connections closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from service.config import Settings
from service.factories import encryption_of, keyring_source, new_id, validation_of
from service.keys.encryption import EncryptionService
from service.keys.keyring import create_keyring
from service.lead_sealer import LeadSealer
from service.rpc.metrics import Metrics
from service.rpc.servicer import LeadServicer
from service.storage.access.record import AccessRecords
from service.storage.access.writer import AccessWriter
from service.storage.database.database import Database
from service.storage.database.fence import Fence
from service.storage.diagnosis import diagnose
from service.storage.intake.all_spools import AllSpools
from service.storage.intake.drain import Drain
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.intake.writer import LeadWriter
from service.storage.keys.canary import read_key_state
from service.storage.keys.replicas import Admission, ReplicaReport, replica_name
from service.storage.leads.changes import LeadHistory
from service.storage.leads.conflicts import ConflictRepository
from service.storage.leads.erasures import Erasures
from service.storage.leads.open_erasures import OpenErasures
from service.storage.leads.persons import Persons
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.storage.leads.summaries import LeadSummaries
from service.storage.spool.spool import Spool
from service.supervisor import Component, Supervisor
from service.use_cases.confirmation import ConfirmationService
from service.use_cases.conflict_service import ConflictService
from service.use_cases.lead_service import LeadService
from service.use_cases.person_service import ErasureService, PersonService
from service.use_cases.summary_service import SummaryService

ANSWER_SECONDS = 1.0
"""How long a stop waits for the database to answer: enough on a busy machine, where a third of a second left a replica
that had stopped as running, and short enough for a stop within two seconds when the database is away."""


class ServiceParts:
    """The parts of a replica; nothing runs before `running_replica` starts them."""

    def __init__(
        self, settings: Settings, url: str, spool: Spool, encryption: EncryptionService, metrics: Metrics
    ) -> None:
        self.spool, self.page_token_tags = spool, encryption.page_token_tags
        self.files_timezone = settings.files_timezone
        self.fence = Fence(url, settings.spool_path)
        self.confirming = Database(url, fence=self.fence)
        self.database = Database(url, guarded=True, fence=self.fence)
        self.validation = validation_of(settings)
        normaliser = self.validation.normaliser_identity
        self.report = ReplicaReport(replica_name(settings.spool_path), self.database, spool, encryption)
        self.admission = Admission(self.database, self.confirming, spool, encryption, normaliser, self.report)
        open_erasures = OpenErasures(self.report.name, encryption)
        submissions = SubmissionStore(
            self.database, require_standby=settings.require_standby, open_erasures=open_erasures
        )
        self.sealer = LeadSealer(
            *(encryption, self.validation),
            transcript_url=settings.transcript_url,
            repeat_window=timedelta(seconds=settings.repeat_window),
        )
        self.erasures = Erasures(self.database, self.sealer.resealed_and_reindexed, open_erasures)
        self.records = AccessRecords(self.database, encryption)
        self.recent, self.outage = RecentRequests(), Outage()
        self.writer = LeadWriter(
            *(submissions, spool, self.outage, self.recent),
            on_batch=metrics.batches.observe,
            on_delayed=metrics.delayed.inc,
        )
        self.spools = AllSpools(
            database=self.database,
            spool=spool,
            encryption=encryption,
            open_erasures=open_erasures,
            erasures=self.erasures,
            recent=self.recent,
            make_keys=self.sealer.search_keys,
        )
        self.drain = Drain(
            submissions=submissions,
            spool=spool,
            outage=self.outage,
            recent=self.recent,
            erasures=self.erasures,
            apply_erasures=self.spools.apply_erasures,
            reseal=self.sealer.resealed_and_reindexed,
            busy=lambda: self.writer.busy,
            on_drained=lambda outcome: metrics.drained.labels(outcome).inc(),
        )

    def servicer(self, confirmation: ConfirmationService) -> LeadServicer:
        """The use cases on these parts, as the contract's methods."""
        history = LeadHistory(self.database)
        erasing = ErasureService(
            erasures=self.erasures,
            spool=self.spool,
            recent=self.recent,
            validation=self.validation,
            reseal=self.sealer.resealed_and_reindexed,
        )
        return LeadServicer(
            LeadService(
                repository=LeadRepository(self.database, self.spool, self.writer),
                history=history,
                sealer=self.sealer,
                validation=self.validation,
                confirmation=confirmation,
                page_token_tags=self.page_token_tags,
                new_id=new_id,
            ),
            ConflictService(
                conflicts=ConflictRepository(self.database),
                sealer=self.sealer,
                validation=self.validation,
                page_token_tags=self.page_token_tags,
            ),
            self.records,
            erasing,
            SummaryService(
                summaries=LeadSummaries(self.database), zone=self.files_timezone, now=partial(datetime.now, UTC)
            ),
            PersonService(
                persons=Persons(self.database, self.sealer.resealed_and_reindexed),
                history=history,
                erasures=self.erasures,
                erasing=erasing,
                spools=self.spools,
                sealer=self.sealer,
                validation=self.validation,
                page_token_tags=self.page_token_tags,
            ),
            self.page_token_tags,
        )


@asynccontextmanager
async def running_replica(parts: ServiceParts, supervisor: Supervisor, grace: float) -> AsyncIterator[None]:
    """Confirm the database and report on the keys; end all tasks in `grace` seconds. Raises StartRefusedError."""
    try:
        await parts.admission.start()
        supervisor.start(
            [
                # First, so that it stops last: what the writer spools at the end is reported too.
                Component(
                    name="replica report",
                    run=parts.report.run,
                    on_clean_stop=partial(parts.report.withdraw, parts.database),
                ),
                Component(name="admission", run=parts.admission.run),
                Component(name="spool answers", run=parts.spools.run),
                *([Component(name="fence", run=parts.fence.run)] if parts.fence.several_hosts else []),
            ]
        )
        yield
    finally:
        await stop_tasks(supervisor, parts.database, grace)
        await parts.database.close()
        await parts.confirming.close()
        await parts.fence.close()


async def stop_tasks(supervisor: Supervisor, database: Database, seconds: float) -> None:
    """Stop the tasks; in order only if the database answers, because each task would wait for it in turn."""
    if supervisor.idle:
        return
    answers = False
    with suppress(TimeoutError):
        async with asyncio.timeout(min(ANSWER_SECONDS, seconds)):
            answers = (await diagnose(database)).reachable
    await supervisor.stop(seconds, in_order=answers)


async def first_encryption(settings: Settings, url: str) -> EncryptionService:
    """The encryption of the keyring, which an embedded service makes when it starts for the first time."""
    path = keyring_source(settings).path
    if settings.embedded and path is not None and not path.exists():
        database = Database(url)
        if await database.read(read_key_state) is None:
            create_keyring(path, now=datetime.now(UTC))
        await database.close()
    return await asyncio.to_thread(encryption_of, settings)


def lead_writing(writer: LeadWriter) -> list[Component]:
    """The two tasks of a lead writer. Waiting leads are spooled when both have ended."""
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
        on_clean_stop=writer.end_chain,
        vital=True,
    )
