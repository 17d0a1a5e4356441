"""A lead with unmistakable values goes through every path; then all that was written is searched for them.

The suite goes the paths once. `python -m tests.faults.sentinel` also sends the lead through every failure that
tests/rpc/test_no_value_leaks.py knows, and prints what came of it.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import psycopg
from leadkeep.v1 import lead_service_pb2 as pb

from service.keys.keyring import Keyring
from service.storage.keys.replicas import known_name
from service.storage.spool.rows import peek
from tests.harness import columns, faults
from tests.harness.daily_files import file_of, leads_in, soon_in
from tests.harness.disguises import disguises, encodings, hidden_in, hidden_under
from tests.harness.postgres import TestDatabase, TestServer, own_postgres
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService
from tests.rpc import test_no_value_leaks as failing
from tests.rpc.calls import Client

SENSITIVE = {
    "phone": "+8801731597246",
    "nid": "QZX7793156820",
    "email": "canary.mailbox.kolibri@zaunkoenig-domain.example",
    "address": "77 Kanarienvogel Allee, Papageienstadt 90817",
    "notes": "Wellensittich im Wohnzimmer, bitte nach sechs anrufen",
    "corrected address": "12 Rohrdommel Gasse, Reiherhausen 55512",
    "other phone": "+8801731597999",
    "conversation_id": "whatsapp:+8801731597246",
    "later conversation": "8801731597999@c.us",
    "conversation of a duplicate": "kolibri-01731597246",
}
CLEAR = {
    "name": "Zephyrine Quibbleworth",
    "preferred_contact_time": "Montags beim Glockenschlag",
    "source": "Flugblatt der Vogelwarte",
}
"""What is kept in clear, by design, and must be in no log; and goes with an erasure."""

POLICY = "Ornithologist Life 30-Year"
REQUEST, LATER_REQUEST, DUPLICATE_REQUEST = "request-kolibri-77a1", "request-kolibri-88b2", "request-kolibri-99c3"
WHY = "Wiedehopf gerufen"
"""The reason of a status change."""


def person(**changes: str) -> pb.Lead:
    told = {name: SENSITIVE[name] for name in ("phone", "nid", "email", "address", "notes", "conversation_id")}
    return pb.Lead(**(told | CLEAR | {"interested_policy": POLICY} | changes))  # type: ignore[arg-type] # texts only


@dataclass
class Trial:
    """Two replicas on one PostgreSQL, where their output goes, and what was seen on the way."""

    folder: Path
    server: TestServer
    database: TestDatabase
    here: RunningService
    there: RunningService
    lead_id: str = ""
    traces: dict[str, set[bytes]] = field(default_factory=dict)
    """Tokens, digests and ids that were stored of the lead: what an erasure must take away."""

    @property
    def written(self) -> list[Path]:
        """Everything that the system wrote, but what was asked for in clear."""
        return [
            *(self.folder / name for name in ("here", "there", "commands", "backup", "results")),
            *(each for service in (self.here, self.there) for each in (service.out_path, service.log_path)),
            self.server.postgres.log_file.parent,
        ]

    def run(self, what: str, *arguments: str, code: int = 0, token: str = "") -> None:
        """An operator's command, in this process; what it says is kept."""
        done = self.here.leadkeep_here(*arguments, env={"LEADKEEP_TOKEN": token})
        printed = done.stdout + done.stderr
        (self.folder / "commands" / f"{what}.txt").write_text(printed)
        assert done.returncode == code, f"{what}: {printed}"

    def client(self, service: RunningService, channel: grpc.Channel, role: str = "admin") -> Client:
        return Client(service, channel, role)

    @contextmanager
    def admin(self) -> Iterator[Client]:
        with self.here.channel() as channel:
            yield self.client(self.here, channel)


@contextmanager
def trial() -> Iterator[Trial]:
    """Both replicas, running, with a log of everything."""
    with own_postgres() as server, tempfile.TemporaryDirectory(prefix="leadkeep-sentinel-") as name:
        folder, database = Path(name), server.fresh_database()
        for each in ("here", "there", "commands", "given", "results", "unmasked"):
            (folder / each).mkdir(mode=0o700)
        settings = {
            "LEADKEEP_LOG_LEVEL": "debug",
            "LEADKEEP_ADMIN_DATABASE_URL": database.admin_url,
            "LEADKEEP_KEYRING": str(folder / "keys" / "keyring.json"),
        }
        here, there = (
            RunningService(folder / each, database_url=database.serve_url, settings=settings)
            for each in ("here", "there")
        )
        try:
            here.start()
            # The other one must not: its folder would keep what it has rendered.
            assert eventually(lambda: "this replica renders the daily files" in here.log(), within=60)
            there.start()
            yield Trial(folder, server, database, here, there)
        finally:
            here.stop()
            there.stop()


def create(on: Trial) -> None:
    """Saved, corrected, moved, assigned."""
    with on.admin() as admin:
        on.lead_id = admin.create(person(), request_id=REQUEST).id
        admin.correct(on.lead_id, address=SENSITIVE["corrected address"], reason=WHY)
        admin.move(on.lead_id, pb.LEAD_STATUS_CONTACTED, reason=WHY)
        for assignee in ("rahima", "karim"):
            admin.assign(on.lead_id, assignee, reason=WHY)


def fail(on: Trial) -> None:
    """Refused at both endpoints: as a duplicate, as invalid, for its scope, for the database."""
    with on.admin() as admin, httpx.Client(base_url=on.here.http_url) as http:
        headers = {"authorization": f"Bearer {on.here.token('chatbot')}"}
        for lead in (
            person(conversation_id=SENSITIVE["conversation of a duplicate"]),
            person(phone=SENSITIVE["phone"] + "\u202e"),
            person(notes=SENSITIVE["notes"] * 100),
        ):
            with suppress(grpc.RpcError):
                admin.create(lead, request_id=DUPLICATE_REQUEST)
            sent = {each.name: value for each, value in lead.ListFields()}
            assert http.post("/api/leads/", json=sent, headers=headers).status_code in (400, 409)
        assert http.get("/api/leads", params={"phone": SENSITIVE["phone"]}, headers=headers).status_code == 403
        # It lets the made-up submissions pass, so that the refusal counts as one of this lead's content.
        only_trial = "ALTER TABLE lead ADD CONSTRAINT ck_test CHECK (created_by = 'leadkeep-trial') NOT VALID"
        faults.execute(on.database.admin_url, only_trial)
        with suppress(grpc.RpcError):
            admin.create(person(phone=SENSITIVE["other phone"], nid="QZX7793156899"))
        faults.execute(on.database.admin_url, "ALTER TABLE lead DROP CONSTRAINT ck_test")


def spool_and_crash(on: Trial) -> None:
    """Sent once more to both replicas while the database is away; one is killed and stays away with what it has."""
    on.server.postgres.stop()
    for service in (on.here, on.there):
        with service.channel() as channel:
            again = person(phone=SENSITIVE["other phone"], conversation_id=SENSITIVE["later conversation"])
            answer = on.client(service, channel).create(again, request_id=LATER_REQUEST)
            assert answer.state == pb.SAVE_STATE_DELAYED
        limits = Path(f"/proc/{service.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 ", limits), "a crash would write the memory to the disk"
    os.kill(on.there.pid, signal.SIGABRT)
    assert on.there.process is not None
    on.there.process.wait()
    on.here.kill()
    note_spooled(on)
    on.server.postgres.start()
    on.here.start()


def conflict(on: Trial) -> None:
    """What comes out of the spool meets the lead by its nid; another one was decided."""
    query = "SELECT count(*) FROM lead_conflict"
    assert eventually(lambda: faults.value_of(on.database.admin_url, query) == 1, within=60)
    on.run("conflicts", "conflicts", "list", "--json")
    decided = faults.conflict_with(on.database.admin_url, on.lead_id)
    on.run("resolve", "conflicts", "resolve", decided, "keep-first", "--reason", WHY)
    # What it matched besides, which would take an outage each.
    others = "nid_lead_id = phone_lead_id, request_lead_id = phone_lead_id, repeats = id, erased_lead_id = id"
    faults.execute(on.database.admin_url, f"UPDATE lead_conflict SET {others} WHERE id = '{decided}'")


def show(on: Trial) -> None:
    """Lists, files, exports, a backup, an import, metrics."""
    with on.admin() as admin:
        assert admin.listed_ids(phone=SENSITIVE["phone"]) == [on.lead_id]
        assert admin.listed_ids(email=f" {SENSITIVE['email'].upper()} ") == [on.lead_id]
        assert admin.listed_ids(reference=admin.get(on.lead_id).reference) == [on.lead_id]
        assert admin.get(on.lead_id).phone == SENSITIVE["phone"]
    assert soon_in(file_of(on.here), on.lead_id)
    day = file_of(on.here).stem.removeprefix("leads_")
    on.run("show", "files", "show", "--day", day)
    on.run("export", "export", "--format", "csv")
    unmasked = ("--unmask", "--reason", "trial", "--output", str(on.folder / "unmasked" / "all.json"))
    on.run("export-unmasked", "export", "--format", "json", *unmasked, token=on.here.token())
    on.run("backup", "backup", str(on.folder / "backup"))
    on.run("history", "leads", "history", on.lead_id, "--accesses")
    given = on.folder / "given" / "leads.csv"
    with given.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(failing.as_json(person())))
        rows.writeheader()
        rows.writerows([failing.as_json(person()), failing.as_json(person(phone="+880 17"))])
    reports = (
        "--results",
        str(on.folder / "results" / "results.csv"),
        "--rejects",
        str(on.folder / "unmasked" / "rejects.csv"),
    )
    on.run("import", "import", str(given), *reports, code=4)
    on.run("doctor", "doctor", "--json")
    on.run("list", "spool", "list")
    (on.folder / "commands" / "metrics.txt").write_text(httpx.get(f"{on.here.http_url}/metrics").text)


def rotate(on: Trial) -> None:
    """The keys that seal, index and spool are changed, and all is done anew; nobody waits for the dead."""
    dead = known_name(on.there.data_dir / "spool")
    assert dead
    forgotten = ["--forget", dead]
    for purpose, follow in (("encryption", ["reseal"]), ("index", ["reindex"]), ("spool", [])):
        before = {key.id for key in keyring(on).keys}
        on.run(f"keys-add-{purpose}", "keys", "add", "--purpose", purpose)
        (added,) = {key.id for key in keyring(on).keys} - before
        hang_up(on)
        on.run(f"keys-promote-{purpose}", "keys", "promote", added, *forgotten)
        forgotten = []
        hang_up(on)
        for command in follow:
            on.run(f"keys-{command}", "keys", command)
    on.run("keys-verify", "keys", "verify")


def keyring(on: Trial) -> Keyring:
    return Keyring.from_json(Path(on.here.environment["LEADKEEP_KEYRING"]).read_bytes())


def hang_up(on: Trial) -> None:
    """Let the replica that runs read its keyring again."""
    os.kill(on.here.pid, signal.SIGHUP)


def erase_for_the_dead(on: Trial) -> None:
    """Something that only the other replica may have is erased: it waits for that one."""
    with on.admin() as admin, suppress(grpc.RpcError):
        admin.call("EraseLead", pb.EraseLeadRequest(id=str(uuid4())))
    assert faults.value_of(on.database.admin_url, "SELECT count(*) FROM spool_erasure") == 1


PATHS: tuple[Callable[[Trial], None], ...] = (
    *(create, fail, spool_and_crash, conflict, erase_for_the_dead, show, rotate),
)


def every_failure(on: Trial) -> None:
    """All that tests/rpc/test_no_value_leaks.py does to a lead, with a service of its own; its database is kept."""
    service = RunningService(
        on.folder / "here" / "failing",
        database_url=on.server.fresh_database().serve_url,
        settings={"LEADKEEP_LOG_LEVEL": "debug"},
    )
    faults.broken_spool(service.data_dir)
    service.start()
    admin_url = service.environment["LEADKEEP_DATABASE_URL"].replace("leadkeep_serve@", "postgres@")
    world = failing.World(service, on.server, admin_url)
    with service.channel() as channel, httpx.Client(base_url=service.http_url, timeout=20) as http:
        failing.go_through_everything(world, failing.Caller(world, channel, http))
    service.stop()
    on.server.postgres.start()


def note_spooled(on: Trial) -> None:
    """Note what lies in the spools of both replicas as it is."""
    for service in (on.here, on.there):
        path = service.data_dir / "spool" / "spool.sqlite"
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            (row,) = connection.execute("SELECT id, request, content, phone, nid, conversation, payload FROM entry")
        for name, value in zip(("id", "request", "content", "phone", "nid", "conversation"), row, strict=False):
            # The id stays, in the tombstone.
            on.traces.setdefault(f"spooled {name}", set()).update(encodings(value) if name != "id" else ())
        on.traces.setdefault("spooled payload", set()).update({row[-1].encode(), row[-1].encode()[-100:]})


def note_stored(on: Trial) -> None:
    """Note what the database has of the lead."""
    url = on.database.admin_url
    for name, found in columns.traces(columns.contents(url), columns.types(url)).items():
        on.traces.setdefault(name, set()).update(found)
    for name, value in {"request": REQUEST, "later request": LATER_REQUEST, "reason": WHY, **CLEAR}.items():
        on.traces[name] = set(disguises(value))


def forms(values: dict[str, str]) -> dict[str, tuple[bytes, ...]]:
    return {name: tuple(disguises(value)) for name, value in values.items()}


def logs(on: Trial) -> list[Path]:
    """What processes said."""
    spoken = (each for service in (on.here, on.there) for each in (service.out_path, service.log_path))
    return [*spoken, on.server.postgres.log_file]


def erase(on: Trial) -> None:
    """Erase the lead on one replica, and drop what shares only its nid: a person finds that it is the same customer.

    The other replica comes back with a copy in its spool; all files follow.
    """
    with on.admin() as admin:
        (kept,) = admin.call("EraseLead", pb.EraseLeadRequest(id=on.lead_id, reason="asked for it")).kept_ids
        drop = pb.ResolveConflictRequest(
            id=kept, resolution=pb.CONFLICT_RESOLUTION_KEEP_FIRST, reason="the same person"
        )
        admin.call("ResolveConflict", drop)
    on.there.start()
    assert eventually(lambda: spooled(on.there) == 0, within=60)
    assert eventually(lambda: on.lead_id not in leads_in(file_of(on.here)), within=60)
    assert eventually(lambda: on.lead_id not in leads_in(file_of(on.there)), within=60)


def spooled(service: RunningService) -> int:
    size, _ = peek(service.data_dir / "spool")
    return size.waiting + size.damaged


def dump(on: Trial) -> Path:
    """A fresh dump, in SQL."""
    path = on.folder / "results" / "after.sql"
    command: list[str | Path] = [on.server.postgres.bin_dir / "pg_dump", "--dbname", on.database.admin_url]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path


def events(on: Trial) -> list[tuple[int, str]]:
    """Type and text of each event in the table of histories."""
    with psycopg.connect(on.database.admin_url) as connection:
        return connection.execute("SELECT type, e::text FROM lead_event e ORDER BY id").fetchall()


def after_erasure(on: Trial) -> Iterable[Path]:
    """What must hold nothing of an erased lead: a fresh dump, the daily files, the spools, what processes said."""
    folders = (service.data_dir / name for service in (on.here, on.there) for name in ("files", "spool"))
    return [dump(on), *folders, *logs(on)]


def main() -> None:
    """The whole trial, with every failure."""
    with trial() as on:
        for step in (*PATHS, every_failure):
            step(on)
            print(f"{step.__name__}: done")
        on.here.stop()
        sizes = sum(path.stat().st_size for folder in on.written for path in folder.rglob("*") if path.is_file())
        print(f"searched {sizes / 1e6:.0f} MB for {len(SENSITIVE)} values:", hidden_under(on.written, forms(SENSITIVE)))
        print("logs, also for names:", hidden_under(logs(on), forms({**SENSITIVE, **CLEAR})))
        print("in what was asked for in clear:", hidden_under([on.folder / "unmasked"], forms(SENSITIVE)))
        on.here.start()
        note_stored(on)
        before = hidden_in(dump(on).read_bytes(), on.traces)
        print(f"the dump before the erasure holds {len(before)} of {len(on.traces)} kinds of traces")
        erase(on)
        print("after the erasure:", hidden_under(after_erasure(on), {**on.traces, **forms(SENSITIVE)}))


if __name__ == "__main__":
    main()
