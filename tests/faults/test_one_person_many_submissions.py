"""One person submits fifty times at once, each time written differently, through two services on one database."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from contextlib import AsyncExitStack

import grpc
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.conftest import StartService
from tests.faults import times
from tests.harness.failures import reason_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.running_service import RunningService

SUBMISSIONS = 50
ROUNDS = times(20, whole=100)

BENGALI = str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯")
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
FULL_WIDTH = str.maketrans("0123456789+", "０１２３４５６７８９＋")  # noqa: RUF001 # what the test is about

Round = list[pb.Lead]


@pytest.fixture(scope="module")
def shared_database(postgres_server: TestServer) -> TestDatabase:
    return postgres_server.fresh_database()


@pytest.fixture(scope="module")
def two_services(
    shared_database: TestDatabase, shared_keyring: dict[str, str], start_shared: StartService
) -> list[RunningService]:
    """Two processes with one keyring and one region on one database."""
    settings = shared_keyring | {"LEADKEEP_DEFAULT_REGION": "BD"}
    return [
        start_shared(name, database_url=shared_database.serve_url, settings=settings) for name in ("first", "second")
    ]


def written_phones(national: str) -> list[str]:
    """Ways to write the Bangladeshi number whose digits behind the country code are `national`."""
    split = [national, f"{national[:2]} {national[2:6]} {national[6:]}", f"({national[:4]})-{national[4:]}"]
    split += [national.replace(national[4:6], f"{national[4:6]}.", 1), " ".join(national)]
    prefixed = [prefix + rest for prefix in ("+880", "+880 ", "00880", "00880-", "0") for rest in split]
    scripts = [{}, BENGALI, ARABIC, FULL_WIDTH]
    return [phone.translate(script) for phone, script in itertools.product(prefixed, scripts)]


def written_nids(nid: str) -> list[str]:
    """Ways to write a national ID."""
    split = [nid, f"{nid[:4]} {nid[4:9]} {nid[9:]}", f"{nid[:4]}-{nid[4:]}", "-".join(nid), f" {nid} "]
    return [way.translate(script) for way, script in itertools.product(split, [{}, BENGALI, ARABIC, FULL_WIDTH])]


def one_person(number: int, rng: random.Random) -> Round:
    """The same phone and NID, each written in up to fifty ways."""
    phones = rng.sample(written_phones(f"18{number:08d}"), SUBMISSIONS)
    nids = itertools.cycle(written_nids(f"26{number:011d}"))
    return [somebody(phone=phone, nid=nid) for phone, nid in zip(phones, nids, strict=False)]


def one_nid(number: int, rng: random.Random) -> Round:
    """The same NID with phones of fifty different people."""
    nids = itertools.cycle(written_nids(f"27{number:011d}"))
    leads = [somebody(nid=nid) for nid, _ in zip(nids, range(SUBMISSIONS), strict=False)]
    rng.shuffle(leads)
    return leads


async def submit_rounds(services: list[RunningService], rounds: list[Round]) -> list[Counter[str]]:
    """What the callers of each round hear: OK, or status and reason."""
    async with AsyncExitStack() as stack:
        stubs = [
            lead_service_pb2_grpc.LeadServiceStub(
                await stack.enter_async_context(grpc.aio.insecure_channel(service.grpc_address))
            )
            for service in services
        ]
        tokens = [service.metadata("chatbot") for service in services]

        async def submit(number: int, lead: pb.Lead) -> str:
            which = number % len(services)
            try:
                await stubs[which].CreateLead(pb.CreateLeadRequest(lead=lead), metadata=tokens[which], timeout=20)
            except grpc.RpcError as error:
                return f"{error.code().name} {reason_of(error)}"
            return "OK"

        return [
            Counter(await asyncio.gather(*(submit(number, lead) for number, lead in enumerate(leads))))
            for leads in rounds
        ]


def counted(database: TestDatabase, created_after: str) -> list[tuple[int, int]]:
    """Of each lead made since: the resubmissions that were counted, and those that are kept."""
    with psycopg.connect(database.admin_url) as connection:
        return connection.execute(
            "SELECT resubmissions, (SELECT count(*) FROM resubmission WHERE lead_id = lead.id)"
            " FROM lead WHERE created_at > %s::timestamptz",
            [created_after],
        ).fetchall()


def now(database: TestDatabase) -> str:
    with psycopg.connect(database.admin_url) as connection:
        row = connection.execute("SELECT clock_timestamp()::text").fetchone()
        assert row is not None
        return str(row[0])


@pytest.mark.parametrize(
    ("made_by", "reason"), [(one_person, "DUPLICATE_PHONE"), (one_nid, "DUPLICATE_NID")], ids=["person", "nid"]
)
async def test_of_fifty_submissions_at_once_one_becomes_the_lead_and_the_others_hear_so(
    made_by: object, reason: str, two_services: list[RunningService], shared_database: TestDatabase
) -> None:
    assert callable(made_by)
    rng = random.Random(reason)
    began = now(shared_database)
    heard = await submit_rounds(two_services, [made_by(number, rng) for number in range(ROUNDS)])
    assert heard == [Counter({"OK": 1, f"ALREADY_EXISTS {reason}": SUBMISSIONS - 1})] * ROUNDS
    assert counted(shared_database, began) == [(SUBMISSIONS - 1, SUBMISSIONS - 1)] * ROUNDS


def test_the_rounds_write_one_number_in_fifty_ways() -> None:
    assert len(set(written_phones("1812345678"))) >= SUBMISSIONS
