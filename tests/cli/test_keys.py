"""Keys are changed while the service runs, as an operator does it. The tests of this module are one life, in order."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, KeyState, Purpose
from service.rotation import workers
from service.validation import KNOWS_INDEX_RULE
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.daily_files import file_of, today
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

TOKENS = "phone || nid || address || coalesce(email, '') || coalesce(notes, '')"


class Life:
    """A service whose keys change, and what was there before."""

    def __init__(self, service: RunningService, database: TestDatabase) -> None:
        self.service = service
        self.database = database
        self.first = self.keyring()
        self.person = somebody()
        self.request = str(uuid4())
        self.lead_id = self.create(self.person, self.request).id

    def keyring(self) -> Keyring:
        return Keyring.from_json((self.service.data_dir / "keyring.json").read_bytes())

    def primary(self, purpose: str) -> str:
        return self.keyring().primary(Purpose(purpose)).id

    def create(self, lead: pb.Lead, request_id: str = "") -> pb.CreateLeadResponse:
        return self.service.create(lead, request_id=request_id, role="admin")

    def get(self, lead_id: str) -> pb.Lead:
        return self.service.get(lead_id)

    def refusal(self, lead: pb.Lead, request_id: str = "") -> str:
        """Why a lead is not taken."""
        with pytest.raises(grpc.RpcError) as refused:
            self.create(lead, request_id)
        return str(refused.value.code().name)

    def keys(self, *arguments: str, **env: str) -> Any:
        """What a command printed as JSON."""
        done = self.service.leadkeep("keys", *arguments, "--json", env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def hang_up(self, *, opens: str = "", seals: str = "") -> None:
        """Let the service take its keyring, and wait until it says that it has."""
        os.kill(self.service.pid, signal.SIGHUP)
        said = "SELECT count(*) FROM replica WHERE state = 'running' AND '{}' = ANY({})"
        for key_id, column in ((opens, "opens"), (seals, "seals")):
            query = said.format(key_id, column)
            assert not key_id or eventually(lambda query=query: self.value(query) == 1, within=20)  # type: ignore[misc]

    def value(self, query: str) -> Any:
        return faults.value_of(self.database.admin_url, query)

    def add_and_promote(self, purpose: str) -> str:
        made = str(self.keys("add", "--purpose", purpose)["id"])
        self.hang_up(opens=made)
        promoted = self.service.leadkeep("keys", "promote", made, "--timeout", "20s")
        assert promoted.returncode == 0, promoted.stderr
        self.hang_up(seals=made)
        return made


@pytest.fixture(scope="module")
def life(service: RunningService, service_database: TestDatabase) -> Life:
    return Life(service, service_database)


def test_status_tells_every_key_its_state_and_who_has_it(life: Life) -> None:
    told = life.keys("status")
    assert [(key["purpose"], key["state"]) for key in told["keys"]] == [(each.value, "primary") for each in Purpose]
    assert told["keys"][0]["sealed"] == {"canary": 1, "leads": 5}
    [replica] = told["replicas"]
    assert set(replica["seals"]) == {key["id"] for key in told["keys"]}
    assert set(replica["opens"]) == {*replica["seals"], KNOWS_INDEX_RULE}
    assert told["index"]["state"] == "steady"


def test_a_key_is_promoted_only_when_every_replica_can_open_with_it(life: Life) -> None:
    made = life.keys("add")["id"]
    refused = life.service.leadkeep("keys", "promote", made, "--timeout", "1s")
    name = life.keys("status")["replicas"][0]["name"]
    assert refused.returncode == 1
    assert f"waiting for replica {name} to load the key {made}" in refused.stderr
    assert f"in vain for {name}" in refused.stderr
    assert life.keyring().find(made).state is KeyState.ACTIVE  # type: ignore[union-attr]
    life.hang_up(opens=made)
    assert life.service.leadkeep("keys", "promote", made, "--timeout", "20s").returncode == 0
    assert life.primary("encryption") == made


def test_a_keyring_from_before_the_new_key_is_refused_at_the_start(life: Life, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(life.first.to_json())
    old.chmod(0o600)
    settings = {"LEADKEEP_KEYRING": str(old), "LEADKEEP_SPOOL_DIR": str(tmp_path / "spool")}
    refused = life.service.leadkeep("serve", env=settings)
    assert refused.returncode == 1
    assert f"key {life.primary('encryption')} is not in it" in refused.stderr
    # Nobody has to wait for one that was refused.
    assert life.value("SELECT count(*) FROM replica WHERE state = 'running'") == 1


def test_a_replica_that_lags_goes_on_sealing_with_the_old_key_and_stops_its_retirement(life: Life) -> None:
    old, before = life.first.primary(Purpose.ENCRYPTION).id, life.create(somebody()).id
    assert life.value(f"SELECT phone LIKE '{old}.%' FROM lead WHERE id = '{before}'")
    refused = life.service.leadkeep("keys", "retire", old, "--timeout", "1s")
    assert refused.returncode == 1
    assert f"to stop sealing with {old}: send it SIGHUP" in refused.stderr
    life.hang_up(seals=life.primary("encryption"))
    after = life.create(somebody()).id
    assert life.value(f"SELECT phone LIKE '{life.primary('encryption')}.%' FROM lead WHERE id = '{after}'")


def test_retire_names_what_still_needs_the_key(life: Life) -> None:
    old = life.first.primary(Purpose.ENCRYPTION).id
    refused = life.service.leadkeep("keys", "retire", old, "--timeout", "20s")
    assert refused.returncode == 1
    assert "10 tokens of leads: run leadkeep keys reseal" in refused.stderr
    assert life.keyring().find(old).state is KeyState.ACTIVE  # type: ignore[union-attr]
    assert life.value("SELECT retired_keys = '{}' FROM key_canary")


def test_reseal_leaves_nothing_on_the_old_key_and_every_version_and_time_as_it_was(life: Life) -> None:
    old = life.first.primary(Purpose.ENCRYPTION).id
    # A resubmission of the old key, and a conflict, each bound to an id of its own.
    sealer = EncryptionService(life.first)
    kept, conflict = uuid4(), uuid4()
    for table, columns, values, bound in (
        (
            "resubmission",
            "lead_id, submission_id, actor, verified",
            f"'{life.lead_id}', '{kept}', 'a', false",
            kept,
        ),
        (
            "lead_conflict",
            "phone_lead_id, id, created_by, accepted_at",
            f"'{life.lead_id}', '{conflict}', 'a', now()",
            conflict,
        ),
    ):
        tokens = "', '".join(sealer.seal(bound, name, "+8801711111111") for name in ("phone", "nid", "address"))
        faults.execute(
            life.database.admin_url,
            f"INSERT INTO {table} ({columns}, name, interested_policy, content_digest, phone, nid, address)"
            f" VALUES ({values}, 'n', 'p', 'd', '{tokens}')",
        )
    state = "SELECT string_agg(id::text || version || updated_at || created_at, ' ' ORDER BY id) FROM lead"
    before = life.value(state)

    done = life.keys("reseal")

    assert done["sealed_anew"] == {"leads": 2, "resubmissions": 1, "conflicts": 1, "conversations": 0}
    assert done["left"] == 0
    assert life.value(state) == before
    left = f"SELECT count(*) FROM {{}} WHERE {TOKENS} LIKE '%{old}.%'"
    assert [life.value(left.format(table)) for table in ("lead", "resubmission", "lead_conflict")] == [0, 0, 0]
    assert life.get(life.lead_id).phone == life.person.phone
    assert life.service.leadkeep("keys", "verify").returncode == 0


def test_reseal_again_has_nothing_to_do(life: Life) -> None:
    assert life.keys("reseal")["sealed_anew"] == {"leads": 0, "resubmissions": 0, "conflicts": 0, "conversations": 0}


def test_retire_waits_for_the_daily_files_and_then_the_old_keyring_starts_nowhere(life: Life, tmp_path: Path) -> None:
    old = life.first.primary(Purpose.ENCRYPTION).id
    retired = life.service.leadkeep("keys", "retire", old, "--timeout", "30s")
    assert retired.returncode == 0, retired.stderr
    assert life.keyring().find(old).state is KeyState.RETIRED  # type: ignore[union-attr]
    assert old not in file_of(life.service, today()).read_text()
    # A copy in which the retired key still seals has every key, and would seal what opens nowhere else.
    stale = tmp_path / "stale.json"
    changed = json.loads(life.keyring().to_json())
    for key in changed["keys"]:
        key["state"] = {old: "primary", life.primary("encryption"): "active"}.get(key["id"], key["state"])
    stale.write_text(json.dumps(changed))
    stale.chmod(0o600)
    settings = {"LEADKEEP_KEYRING": str(stale), "LEADKEEP_SPOOL_DIR": str(tmp_path / "spool")}
    refused = life.service.leadkeep("serve", env=settings)
    assert refused.returncode == 1
    assert f"seals with the key {old}, which was retired" in refused.stderr


def test_the_database_takes_nothing_that_is_sealed_with_a_retired_key(life: Life) -> None:
    old = life.first.primary(Purpose.ENCRYPTION).id
    for statement in (
        f"UPDATE lead SET notes = '{old}.gAAAAAAAAAAAx'",
        f"UPDATE resubmission SET phone = '{old}.gAAAAAAAAAAAx'",
        f"UPDATE lead_conflict SET address = '{old}.gAAAAAAAAAAAx'",
    ):
        with pytest.raises(psycopg.Error) as refused:
            faults.execute(life.database.admin_url, statement)
        assert refused.value.sqlstate == "LK002"


def test_a_keyring_that_cannot_be_used_is_not_taken(life: Life) -> None:
    path = life.service.data_dir / "keyring.json"
    good = path.read_bytes()
    path.write_bytes(good[:200])
    os.kill(life.service.pid, signal.SIGHUP)
    assert eventually(lambda: "the keyring was not taken" in life.service.log(), within=30)
    path.write_bytes(Keyring.generate(now=life.first.keys[0].created_at).to_json().encode())
    os.kill(life.service.pid, signal.SIGHUP)
    assert eventually(lambda: life.service.log().count("the keyring was not taken") == 2, within=30)
    path.write_bytes(good)
    assert life.get(life.lead_id).phone == life.person.phone


def test_a_secret_in_the_wrong_line_is_printed_by_no_command_and_in_no_log(life: Life, tmp_path: Path) -> None:
    path = life.service.data_dir / "keyring.json"
    good = path.read_bytes()
    misplaced = json.loads(good)
    secret = misplaced["keys"][1]["secret"]
    misplaced["keys"][1]["created_at"] = secret
    path.write_text(json.dumps(misplaced))
    os.kill(life.service.pid, signal.SIGHUP)
    assert eventually(lambda: "key 2 has a created_at that is no time" in life.service.log(), within=30)
    copy = tmp_path / "misplaced.json"
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    path.write_bytes(good)
    shown = life.service.log()
    for command in (("doctor",), ("keys", "status"), ("keys", "add"), ("backup", str(tmp_path / "b"), "--verify")):
        done = life.service.leadkeep_here(*command, env={"LEADKEEP_KEYRING": str(copy)})
        shown += done.stdout + done.stderr
    assert secret[:12] not in shown


def test_a_new_index_key_is_in_use_only_after_reindex(life: Life) -> None:
    before = life.primary("index")
    made = life.add_and_promote("index")
    assert life.keys("status")["index"]["key_id"] == before
    refused = life.service.leadkeep("keys", "retire", before, "--timeout", "20s")
    assert refused.returncode == 1
    assert "the blind indexes of leads: run leadkeep keys reindex" in refused.stderr
    held = life.value("SELECT phone_index FROM lead LIMIT 1")

    done = life.keys("reindex")

    assert (done["needed"], done["leads"], done["beside"]) == (True, 3, [])
    index = life.keys("status")["index"]
    assert (index["state"], index["key_id"]) == ("steady", made)
    assert life.value("SELECT count(*) FROM lead WHERE phone_index IS NOT NULL OR phone_index_2 IS NULL") == 0
    assert held not in life.value("SELECT array_agg(phone_index_2) FROM lead")


def test_duplicates_are_refused_after_it_and_a_repeat_from_before_is_recognised(life: Life) -> None:
    assert life.refusal(somebody(phone=life.person.phone)) == "ALREADY_EXISTS"
    assert life.refusal(somebody(nid=life.person.nid)) == "ALREADY_EXISTS"
    again = life.create(life.person, life.request)
    assert again.id == life.lead_id
    assert life.refusal(somebody(), life.request) == "ALREADY_EXISTS"


def test_an_index_key_is_retired_and_the_repeat_is_still_recognised(life: Life) -> None:
    before = life.first.primary(Purpose.INDEX).id
    retired = life.service.leadkeep("keys", "retire", before, "--timeout", "20s")
    assert retired.returncode == 0, retired.stderr
    life.hang_up(seals=life.primary("index"))
    assert life.create(life.person, life.request).id == life.lead_id
    assert life.keys("verify")["sound"]


def test_the_database_takes_no_lead_of_an_older_plan(life: Life) -> None:
    with pytest.raises(psycopg.Error) as refused:
        faults.execute(life.database.admin_url, "UPDATE lead SET phone_index = sha256('p'), index_epoch = 1")
    assert refused.value.sqlstate == "LK001"


def test_new_rules_let_a_second_lead_of_one_person_stand_beside_the_first(life: Life, tmp_path: Path) -> None:
    one = life.create(somebody(nid="1234567890123")).id
    other = life.create(somebody(nid="19901234567890123")).id
    rules = {"LEADKEEP_NID_RULE": "BD", "LEADKEEP_SPOOL_DIR": str(tmp_path / "spool")}
    refused = life.service.leadkeep("serve", env=rules)
    assert "leadkeep keys reindex" in refused.stderr

    done = life.keys("reindex", LEADKEEP_NID_RULE="BD")

    assert done["beside"] == [{"lead": other, "beside": one, "field": "nid"}]
    assert {life.get(one).nid, life.get(other).nid} == {"1234567890123", "19901234567890123"}
    # The running service still has the old rules, and refuses by the new ones all the same.
    assert life.refusal(somebody(nid="19951234567890123")) == "ALREADY_EXISTS"
    assert not life.keys("reindex", LEADKEEP_NID_RULE="BD")["needed"]


def test_a_start_with_the_new_rules_is_accepted_and_with_the_old_ones_refused(life: Life) -> None:
    life.service.stop()
    refused = life.service.leadkeep("serve")
    assert refused.returncode == 1
    assert "LEADKEEP_NID_RULE" in refused.stderr
    life.service.environment["LEADKEEP_NID_RULE"] = "BD"
    life.service.start()
    assert life.get(life.lead_id).nid == life.person.nid


def test_a_replica_that_is_gone_for_good_is_forgotten_by_name(life: Life) -> None:
    faults.execute(
        life.database.admin_url,
        "INSERT INTO replica (name, state, epoch, opens, seals, spool_keys)"
        " VALUES ('gone', 'running', 0, '{}', '{}', '{}')",
    )
    made = life.keys("add")["id"]
    life.hang_up(opens=made)
    refused = life.service.leadkeep("keys", "promote", made, "--timeout", "1s")
    assert "in vain for gone" in refused.stderr
    unknown = life.service.leadkeep("keys", "promote", made, "--forget", "nobody")
    assert "there is no replica nobody; there is: gone, " in unknown.stderr
    assert life.service.leadkeep("keys", "promote", made, "--timeout", "20s", "--forget", "gone").returncode == 0


def test_a_key_that_a_spool_needs_is_not_retired(life: Life) -> None:
    old = life.primary("spool")
    life.add_and_promote("spool")
    faults.execute(
        life.database.admin_url,
        "INSERT INTO replica (name, state, epoch, opens, seals, spool_keys)"
        f" VALUES ('stopped', 'stopped', 0, '{{}}', '{{}}', '{{{old}}}')",
    )
    refused = life.service.leadkeep("keys", "retire", old, "--timeout", "20s")
    assert refused.returncode == 1
    assert "the spool of the replica stopped: let it drain" in refused.stderr
    assert life.service.leadkeep("keys", "retire", old, "--timeout", "20s", "--forget", "stopped").returncode == 0


def test_a_replica_of_this_machine_that_was_killed_is_not_waited_for(life: Life) -> None:
    life.service.kill()
    made = life.keys("add")["id"]
    assert life.value("SELECT count(*) FROM replica WHERE state = 'running'") == 1
    assert life.service.leadkeep("keys", "promote", made, "--timeout", "1s").returncode == 0
    life.service.start()
    assert life.get(life.lead_id).phone == life.person.phone


@pytest.mark.parametrize("arguments", [["promote", "e0"], ["retire", "e0"]])
def test_a_key_that_there_is_not_is_refused(life: Life, arguments: list[str]) -> None:
    refused = life.service.leadkeep("keys", *arguments)
    assert refused.returncode == 1
    assert "there is no key e0 in the keyring" in refused.stderr


def test_an_audit_key_waits_for_replicas_as_others_do_and_has_nothing_to_do_with_spools(life: Life) -> None:
    made = life.keys("add", "--purpose", "audit")["id"]
    early = life.service.leadkeep("keys", "promote", made, "--timeout", "1s")
    assert early.returncode == 1
    assert f"to load the key {made}" in early.stderr
    life.hang_up(opens=made)
    promoted = life.service.leadkeep("keys", "promote", made, "--timeout", "20s")
    assert "spool" not in promoted.stdout
    assert "leave the key before in the keyring" in promoted.stdout


def test_the_primary_key_is_not_retired(life: Life) -> None:
    refused = life.service.leadkeep("keys", "retire", life.primary("encryption"))
    assert refused.returncode == 1
    assert "promote that first" in refused.stderr


def test_a_keyring_of_a_command_is_taken_on_sighup_and_changed_by_the_operator(
    database: TestDatabase, start_service: StartService, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    command = {"LEADKEEP_KEYRING_COMMAND": f"cat '{kept}'"}
    operator = RunningService(tmp_path / "operator", database_url=database.serve_url, settings=command)
    assert "--output FILE" in operator.leadkeep("keys", "init").stderr
    assert operator.leadkeep("keys", "init", "--output", str(kept)).returncode == 0
    service = start_service(database_url=database.serve_url, settings=command)
    assert "--output FILE" in service.leadkeep("keys", "add").stderr
    changed = tmp_path / "changed.json"
    made = json.loads(service.leadkeep("keys", "add", "--output", str(changed), "--json").stdout)["id"]
    changed.replace(kept)
    os.kill(service.pid, signal.SIGHUP)
    query = f"SELECT count(*) FROM replica WHERE '{made}' = ANY(opens)"
    assert eventually(lambda: faults.value_of(database.admin_url, query) == 1, within=20)
    promoted = service.leadkeep("keys", "promote", made, "--timeout", "20s", "--output", str(changed))
    assert promoted.returncode == 0, promoted.stderr
    assert Keyring.from_json(changed.read_bytes()).primary(Purpose.ENCRYPTION).id == made
    shown = service.leadkeep("config").stdout
    assert str(kept) not in shown


def test_reseal_tells_rows_that_do_not_open_from_others_that_are_left(
    start_service: StartService, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MOST_PASSES", 2)  # each waits two seconds for the lock
    life = Life(start_service(database_url=database.serve_url), database)
    old = life.primary("encryption")
    damaged = life.create(somebody()).id
    life.add_and_promote("encryption")
    faults.execute(database.admin_url, f"UPDATE lead SET notes = '{old}.gAAAAAAAAAAAx' WHERE id = '{damaged}'")

    with faults.locked_lead(database.admin_url, life.lead_id):
        done = life.service.leadkeep_here("keys", "reseal")

    assert done.returncode == 1
    assert f"1 rows do not open and stay as they are: lead {damaged}" in done.stderr
    assert "1 rows are still sealed with another key" in done.stderr
