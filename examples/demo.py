"""What the README promises, shown in a minute on a service of its own: `make demo`.

Each step prints the grpcurl line that does the same, what came back, and `✓` for what it proves. Exit code 1: a promise
was not kept. The service, its PostgreSQL and its data are gone afterwards; at a terminal they stay until Enter is
pressed, so that the printed lines can be pasted.
"""

# ruff: noqa: T201, S101 # printing and proving is what a demonstration is for

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1.lead_service_pb2_grpc import LeadServiceStub

from service.storage.postgres.embedded import ROOT_BASE
from service.storage.postgres.folders import homes

LEADKEEP = Path(sys.executable).with_name("leadkeep")
DEADLINE = 10  # seconds for a call; a chatbot's user waits no longer
MARY = {
    "name": "Mary Major",
    "phone": "+8801712345678",
    "nid": "1990123456789",
    "address": "9 Mill Lane",
    "email": "mary@example.com",
    "interestedPolicy": "Term Life 20-Year",
    "conversationId": "chat-42",
}
JANE = MARY | {"name": "Jane Roe", "phone": "+8801812345678", "nid": "1985123456789", "conversationId": "chat-43"}


class Demo:
    """A running service, and the calls that are shown on it."""

    def __init__(self, environment: dict[str, str], pid: int, address: str) -> None:
        self.environment = environment
        self.pid = pid
        self.address = address
        self.tokens = {role: self.leadkeep("token", "--role", role) for role in ("chatbot", "agent", "admin")}
        self.calls = LeadServiceStub(grpc.insecure_channel(address))

    def leadkeep(self, *arguments: str) -> str:
        """What a command of Leadkeep prints."""
        done = subprocess.run([LEADKEEP, *arguments], env=self.environment, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.strip()

    def call(self, role: str, rpc: str, request: dict[str, Any], **headers: str) -> dict[str, Any]:
        """Print the grpcurl line of a call, make the call, print and return the answer. Raises grpc.RpcError."""
        shown = "".join(f"-H '{name}: {value}' " for name, value in headers.items())
        print(f"$ grpcurl -plaintext -H \"authorization: Bearer ${role.upper()}\" {shown}-d '{json.dumps(request)}' \\")
        print(f"    {self.address} leadkeep.v1.LeadService/{rpc}")
        message = ParseDict(request, getattr(pb, f"{rpc}Request")())
        metadata = [("authorization", f"Bearer {self.tokens[role]}"), *headers.items()]
        try:
            answer = MessageToDict(getattr(self.calls, rpc)(message, timeout=DEADLINE, metadata=metadata))
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}")
            raise
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return answer


def main() -> None:
    """Show the promises one after the other."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="leadkeep-demo-") as folder, running_service(Path(folder)) as demo:
        print("The tokens of the lines below:")
        for role in demo.tokens:
            print(f"{role.upper()}=$(LEADKEEP_DATA_DIR={folder} {LEADKEEP} token --role {role})")
        lead_id = show_a_lead(demo)
        show_who_sees_what(demo, lead_id)
        show_an_outage(demo)
        show_the_daily_file(demo)
        title(f"Done in {time.monotonic() - began:.0f} seconds")
        if sys.stdin.isatty():
            input("The service still runs: paste the lines above, and press Enter to end it. ")


def show_a_lead(demo: Demo) -> str:
    """A lead is created, and a duplicate of it refused and kept. Returns the lead's id."""
    title("A chatbot creates a lead")
    created = demo.call("chatbot", "CreateLead", {"lead": MARY, "requestId": "demo-1"})
    prove(created["state"] == "SAVE_STATE_SAVED", "it is in PostgreSQL, encrypted, before the customer reads this")

    title("The same chatbot repeats the call, because it did not hear the answer")
    repeated = demo.call("chatbot", "CreateLead", {"lead": MARY, "requestId": "demo-1"})
    prove(repeated["id"] == created["id"], "the same lead, stored once")

    title("The customer comes back with another wish")
    again = MARY | {"interestedPolicy": "Health Plus", "conversationId": "chat-44"}
    try:
        demo.call("chatbot", "CreateLead", {"lead": again, "requestId": "demo-2"})
        refused = False
    except grpc.RpcError as error:
        refused = error.code() is grpc.StatusCode.ALREADY_EXISTS
    prove(refused, "a duplicate is no second lead")
    kept = demo.call("agent", "ListResubmissions", {"leadId": created["id"]})["resubmissions"]
    prove(kept[0]["lead"]["interestedPolicy"] == "Health Plus", "and what the customer wished is kept with the first")
    return str(created["id"])


def show_who_sees_what(demo: Demo, lead_id: str) -> None:
    """An agent sees masks; an admin sees values, and that is on record."""
    title("An agent looks at it")
    masked = demo.call("agent", "GetLead", {"id": lead_id})["lead"]
    prove(masked["masked"] and masked["phone"] != MARY["phone"], "phone, national ID, address and e-mail are masked")

    title("An admin looks at it")
    seen = demo.call("admin", "GetLead", {"id": lead_id}, **{"leadkeep-reason": "callback"})["lead"]
    prove(seen["phone"] == MARY["phone"], "the values are shown")
    accesses = demo.call("admin", "ListAccesses", {"leadId": lead_id})["accesses"]
    prove(accesses[0]["reason"] == "callback", "and who looked, at what, when and why was recorded before")


def show_an_outage(demo: Demo) -> None:
    """While PostgreSQL is frozen a lead is kept on the disk, and reaches the database afterwards."""
    title("PostgreSQL freezes (SIGSTOP), and the next customer comes")
    database = postgres_processes(demo.pid)
    send(database, signal.SIGSTOP)
    try:
        created = demo.call("chatbot", "CreateLead", {"lead": JANE, "requestId": "demo-3"})
    finally:
        send(database, signal.SIGCONT)
    prove(created["state"] == "SAVE_STATE_DELAYED", "it is on the disk, encrypted; the customer has a confirmation")

    title("PostgreSQL goes on (SIGCONT), and the chatbot repeats its call")
    eventually(lambda: is_saved(demo, created["id"]))
    saved = demo.call("chatbot", "CreateLead", {"lead": JANE, "requestId": "demo-3"})
    prove(saved["state"] == "SAVE_STATE_SAVED" and saved["id"] == created["id"], "the same lead, in PostgreSQL now")


def show_the_daily_file(demo: Demo) -> None:
    """The day's JSON file holds both leads."""
    title("The day's file")
    today = datetime.now(UTC).date().isoformat()

    def shown() -> str:
        try:
            return demo.leadkeep("files", "show", "--day", today)
        except subprocess.CalledProcessError:  # not rendered yet
            return ""

    eventually(lambda: "Mary Major" in shown() and "Jane Roe" in shown())
    print(f"$ leadkeep files show --day {today}")
    print(shown())
    prove("Mary Major" in shown() and "Jane Roe" in shown(), "both leads of today, as they are in the database")


def is_saved(demo: Demo, lead_id: str) -> bool:
    """Whether the database has this lead: what waits in the spool is UNAVAILABLE."""
    try:
        demo.calls.GetLead(
            pb.GetLeadRequest(id=lead_id),
            timeout=DEADLINE,
            metadata=[("authorization", f"Bearer {demo.tokens['agent']}")],
        )
    except grpc.RpcError:
        return False
    return True


@contextmanager
def running_service(folder: Path) -> Iterator[Demo]:
    """A service with a PostgreSQL of its own on free ports of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEADKEEP_")}
    environment = kept | {
        "LEADKEEP_DATA_DIR": str(folder),
        "LEADKEEP_GRPC_ADDRESS": "127.0.0.1:0",
        "LEADKEEP_HTTP_ADDRESS": "127.0.0.1:0",
        "LEADKEEP_FILES_TIMEZONE": "UTC",
    }
    log = folder / "service.log"
    with log.open("w") as errors:
        service = subprocess.Popen(  # noqa: S603
            [LEADKEEP, "serve"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert service.stdout is not None
        ready = re.search(r"gRPC on (\S+),", service.stdout.readline())
        if ready is None:
            raise SystemExit(f"the service did not start:\n{log.read_text()}")
        yield Demo(environment, service.pid, ready[1])
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(30)
        shutil.rmtree(homes(folder, ROOT_BASE)[0], ignore_errors=True)  # root's database lies apart from the folder


def postgres_processes(pid: int) -> list[int]:
    """The PostgreSQL processes that a process has started, itself or by others."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            is_postgres = Path(f"/proc/{child}/comm").read_text().strip() == "postgres"
            found += [*([child] if is_postgres else []), *postgres_processes(child)]
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each of these processes."""
    for pid in pids:
        os.kill(pid, number)


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until it is true, and no longer than `seconds`."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.2)


def title(text: str) -> None:
    """Print what is shown next."""
    print(f"\n━━ {text} ━━\n", flush=True)


def prove(kept: bool, promise: str) -> None:
    """Print a promise that was kept. Raises SystemExit for one that was not."""
    print(f"{'✓' if kept else '✗'} {promise}", flush=True)
    if not kept:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
