"""The local durable queue, as the writer and the drain use it."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.errors import StartRefusedError
from service.factories import new_id
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring
from service.lead import SealedSubmission
from service.storage.leads.decision import Delayed, DuplicateMatch, MatchedLead
from service.storage.spool import rows as spool_rows
from service.storage.spool.file import SpoolError
from service.storage.spool.rows import FILE_NAME, peek, take_back
from service.storage.spool.spool import Spool, SpoolOverlap
from tests.storage.conftest import Submit, everyone

MEGABYTE = 1_000_000
VALUES = ("Rahima Begum", "+8801712345678", "1985123456789", "14 Lake Road, Dhaka", "diabetic", "r@example.com")


def opened(folder: Path, encryption: EncryptionService, *, max_bytes: int = 100 * MEGABYTE) -> Spool:
    spool = Spool(folder, encryption, max_bytes=max_bytes)
    spool.identified = True
    return spool


def again(submission: SealedSubmission) -> SealedSubmission:
    """The same request once more, under another id."""
    return replace(submission, id=new_id())


async def put(spool: Spool, *submissions: SealedSubmission) -> list[object]:
    outcomes = await spool.put(submissions)
    return [outcomes[each.id] for each in submissions]


async def waiting_in(spool: Spool) -> list[SealedSubmission]:
    return (await spool.oldest(1000, lambda each: each)).submissions


async def test_what_is_put_waits_with_the_moment_of_its_acceptance(spool: Spool, submit: Submit) -> None:
    submission = submit()
    (outcome,) = await put(spool, submission)
    assert isinstance(outcome, Delayed)
    assert outcome.id == submission.id
    assert datetime.now(UTC) - outcome.accepted_at < timedelta(minutes=1)


async def test_what_comes_out_is_what_was_put_in_its_order(spool: Spool, submit: Submit) -> None:
    submissions = [submit(request_id=f"r{number}", conversation_id=f"c{number}") for number in range(5)]
    for each in submissions:
        await put(spool, each)
    found = await waiting_in(spool)
    assert all(each.accepted_at for each in found)
    # These blind indexes are computed anew when it is drained.
    unknown: dict[str, Any] = {"conversation": (), "scheme": ""}
    sent = [replace(each, indexes=replace(each.indexes, **unknown)) for each in submissions]
    as_put = [replace(each, accepted_at=None, accepted_between=None, repeat_window=timedelta(days=1)) for each in found]
    assert as_put == sent


async def test_it_outlives_the_process(tmp_path: Path, encryption: EncryptionService, submit: Submit) -> None:
    first = opened(tmp_path / "spool", encryption)
    submission = submit()
    await put(first, submission)
    first.close()
    second = opened(tmp_path / "spool", encryption)
    assert second.size.waiting == 1
    assert [each.id for each in await waiting_in(second)] == [submission.id]
    second.close()


async def test_a_repeat_in_the_same_batch_is_answered_as_the_first(spool: Spool, submit: Submit) -> None:
    submission = submit(request_id="r")
    first, second = await put(spool, submission, again(submission))
    assert first == second


async def test_one_that_matches_a_waiting_one_is_refused_and_kept(spool: Spool, submit: Submit) -> None:
    first = submit(phone="+1234567", nid="1111")
    await put(spool, first)
    met = MatchedLead(first.id, "bot")
    assert await put(spool, submit(phone="+1234567")) == [DuplicateMatch(met, None)]
    assert await put(spool, submit(nid="1111")) == [DuplicateMatch(None, met)]
    assert [each.refused for each in await waiting_in(spool)] == [False, True, True]


async def test_a_refused_one_is_kept_once_however_often_it_comes(spool: Spool, submit: Submit) -> None:
    await put(spool, submit(phone="+1234567"))
    for refused in (submit(phone="+1234567", request_id="r"), submit(phone="+1234567")):
        outcomes = [await put(spool, again(refused)) for _ in range(3)]
        assert all(isinstance(outcome[0], DuplicateMatch) for outcome in outcomes)
    assert spool.size.waiting == 3


async def test_a_refused_one_that_is_repeated_when_its_rival_is_gone_waits_like_any_other(
    spool: Spool, submit: Submit
) -> None:
    first, refused = submit(phone="+1234567"), submit(phone="+1234567", request_id="r")
    await put(spool, first)
    await put(spool, refused)
    await spool.remove([first.id])
    repeated = again(refused)
    (outcome,) = await put(spool, repeated)
    assert isinstance(outcome, Delayed)
    assert [(each.id, each.refused) for each in await waiting_in(spool)] == [(repeated.id, False)]


@pytest.mark.parametrize("request_id", ["r", None])
async def test_repeats_and_rivals_are_distinguished(spool: Spool, submit: Submit, request_id: str | None) -> None:
    first = submit(phone="+1234567", request_id=request_id)
    await put(spool, first)
    repeat, rival, stranger = again(first), submit(phone="+1234567", request_id="other"), submit()
    assert await spool.overlap([repeat, rival, stranger]) == SpoolOverlap({repeat.id}, {rival.id})


async def test_it_knows_ids_and_conversations_that_wait(spool: Spool, submit: Submit) -> None:
    submission = submit(conversation_id="talk")
    await put(spool, submission)
    assert await spool.holds(submission.id, everyone)
    assert not await spool.holds(new_id(), everyone)
    assert await spool.holds_conversation("talk", everyone)
    assert not await spool.holds_conversation("other", everyone)
    await spool.remove([submission.id])
    assert not await spool.holds(submission.id, everyone)


async def test_what_waits_does_not_exist_for_who_may_not_read_it(spool: Spool, submit: Submit) -> None:
    submission = submit(created_by="bot", conversation_id="talk")
    await put(spool, submission)
    for who, known in (("bot", True), ("another", False)):
        assert await spool.holds(submission.id, who.__eq__) is known
        assert await spool.holds_conversation("talk", who.__eq__) is known


async def test_no_value_lies_on_the_disk_in_clear(spool: Spool, submit: Submit) -> None:
    name, phone, nid, address, notes, email = VALUES
    await put(
        spool,
        submit(
            request_id="the-request",
            conversation_id="the-talk",
            created_by="the-bot",
            name=name,
            phone=phone,
            nid=nid,
            address=address,
            notes=notes,
            email=email,
            interested_policy="Gold Plan",
        ),
    )
    written = b"".join(path.read_bytes() for path in spool.folder.iterdir())
    for value in (*VALUES, "the-request", "the-talk", "the-bot", "Gold Plan", "8801712345678"):
        assert value.encode() not in written


async def test_its_files_are_for_their_owner_only(spool: Spool, submit: Submit) -> None:
    await put(spool, submit())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


async def test_a_second_process_cannot_have_it(
    spool: Spool, encryption: EncryptionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_rows, "OWNER_WAIT_SECONDS", 0.1)
    with pytest.raises(StartRefusedError, match="LEADKEEP_SPOOL_DIR"):
        Spool(spool.folder, encryption, max_bytes=MEGABYTE)


async def test_nothing_is_put_before_it_is_known_whose_it_is(
    tmp_path: Path, encryption: EncryptionService, submit: Submit
) -> None:
    spool = Spool(tmp_path / "spool", encryption, max_bytes=MEGABYTE)
    with pytest.raises(SpoolError):
        await put(spool, submit())
    assert (spool.size.waiting, spool.usable) == (0, False)
    spool.close()


async def test_it_remembers_whose_it_is(spool: Spool, encryption: EncryptionService) -> None:
    assert await spool.identity() is None
    canary = encryption.make_canary()
    await spool.remember(canary, "e164")
    assert await spool.identity() == (canary, "e164")


def damage(spool: Spool, number: int) -> None:
    with sqlite3.connect(spool.folder / FILE_NAME) as connection:
        payload = connection.execute("SELECT payload FROM entry WHERE seq = ?", [number]).fetchone()[0]
        damaged = payload[:100] + ("A" if payload[100] != "A" else "B") + payload[101:]
        connection.execute("UPDATE entry SET payload = ? WHERE seq = ?", [damaged, number])
    connection.close()


async def test_a_damaged_one_is_set_aside_and_the_rest_comes_out(spool: Spool, submit: Submit) -> None:
    submissions = [submit(request_id=f"r{number}") for number in range(3)]
    await put(spool, *submissions)
    damage(spool, 2)
    out = await spool.oldest(10, lambda each: each)
    assert [each.id for each in out.submissions] == [submissions[0].id, submissions[2].id]
    assert out.damaged == [submissions[1].id]
    assert (spool.size.waiting, spool.size.damaged) == (2, 1)
    assert (await spool.oldest(10, lambda each: each)).damaged == []


async def test_a_damaged_one_is_still_acknowledged_and_still_matched(spool: Spool, submit: Submit) -> None:
    submission = submit(request_id="r", phone="+1234567")
    first = await put(spool, submission)
    damage(spool, 1)
    await spool.oldest(10, lambda each: each)
    assert await put(spool, again(submission)) == first
    (met,) = await put(spool, submit(phone="+1234567"))
    assert isinstance(met, DuplicateMatch)
    assert await spool.holds(submission.id, everyone)


async def test_what_was_set_aside_can_be_tried_again(spool: Spool, submit: Submit) -> None:
    submission = submit()
    await put(spool, submission)
    await spool.set_aside(submission.id, "refused by the database (23514)")
    assert (spool.size.waiting, spool.size.damaged) == (0, 1)
    assert peek(spool.folder)[1][0].damage == "refused by the database (23514)"
    assert await waiting_in(spool) == []
    take_back(spool.folder)
    await spool.maintain()
    assert (spool.size.waiting, spool.size.damaged) == (1, 0)
    assert [each.id for each in await waiting_in(spool)] == [submission.id]


async def test_another_keyring_opens_nothing_and_loses_nothing(
    spool: Spool, submit: Submit, encryption: EncryptionService
) -> None:
    await put(spool, submit())
    spool.close()
    stranger = EncryptionService(Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)))
    other = opened(spool.folder, stranger)
    out = await other.oldest(10, lambda each: each)
    assert (len(out.submissions), len(out.damaged), other.size.damaged) == (0, 1, 1)
    other.close()
    spool.__init__(spool.folder, encryption, max_bytes=MEGABYTE)  # type: ignore[misc] # for the fixture's close


async def fill(spool: Spool, submit: Submit, batch_size: int = 8) -> list[SealedSubmission]:
    """Put until it takes no more; what was acknowledged."""
    taken: list[SealedSubmission] = []
    while True:
        batch = [submit() for _ in range(batch_size)]
        try:
            outcomes = await spool.put(batch)
        except SpoolError:
            return taken
        taken += [each for each in batch if isinstance(outcomes[each.id], Delayed)]


async def empty(spool: Spool) -> set[object]:
    """Drain it as the drain does; what came out."""
    out: set[object] = set()
    while batch := (await spool.oldest(50, lambda each: each)).submissions:
        await spool.remove([each.id for each in batch])
        out |= {each.id for each in batch}
    return out


async def test_beyond_its_limit_it_takes_nothing_and_says_so(
    tmp_path: Path, encryption: EncryptionService, submit: Submit
) -> None:
    spool = opened(tmp_path / "spool", encryption, max_bytes=MEGABYTE)
    taken = await fill(spool, submit)
    assert len(taken) > 100
    assert spool.fault is not None
    assert not spool.usable
    assert await spool.holds(next(iter(taken)).id, everyone)  # the size is that after the last call which succeeded
    assert spool.size.waiting == len(taken)
    assert await empty(spool) == {each.id for each in taken}
    await spool.maintain()
    assert spool.usable
    await put(spool, submit())
    spool.close()


@pytest.mark.parametrize("batch_size", [1, 8, 48])
async def test_a_full_disk_refuses_what_it_cannot_keep_and_gives_everything_back(
    small_disk: Path, encryption: EncryptionService, submit: Submit, batch_size: int
) -> None:
    spool = opened(small_disk / "spool", encryption)
    for _ in range(3):
        taken = await fill(spool, submit, batch_size)
        assert len(taken) > 20
        assert not spool.usable
        spool.close()
        spool = opened(small_disk / "spool", encryption)
        assert await empty(spool) == {each.id for each in taken}
        await spool.maintain()
        assert spool.usable
    spool.close()


async def test_an_emptied_spool_gives_its_room_back(spool: Spool, submit: Submit) -> None:
    await put(spool, *[submit(notes="x" * 4000) for _ in range(300)])
    assert spool.size.bytes > 2 * MEGABYTE
    await empty(spool)
    await spool.maintain()
    assert sum(path.stat().st_size for path in spool.folder.glob(f"{FILE_NAME}*")) < MEGABYTE


async def test_a_file_that_is_no_database_takes_nothing_and_is_left_alone(
    tmp_path: Path, encryption: EncryptionService, submit: Submit
) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(b"no database " * 1000)
    spool = opened(folder, encryption)
    assert spool.fault is not None
    with pytest.raises(SpoolError):
        await put(spool, submit())
    assert not spool.empty
    assert (folder / FILE_NAME).read_bytes() == b"no database " * 1000
    spool.close()


def _remove_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _remove_the_file(folder: Path) -> None:
    (folder / FILE_NAME).unlink()


def _remove_the_log(folder: Path) -> None:
    (folder / f"{FILE_NAME}-wal").unlink()


def _exchange_for_a_copy(folder: Path) -> None:
    copy = Path(shutil.copytree(folder, folder.with_name("copy")))
    folder.rename(folder.with_name("moved"))
    copy.rename(folder)


@pytest.mark.parametrize("replace_it", [_remove_the_folder, _remove_the_file, _remove_the_log, _exchange_for_a_copy])
async def test_nothing_is_confirmed_that_a_restart_would_not_find(
    spool: Spool, submit: Submit, replace_it: Callable[[Path], None]
) -> None:
    before = submit()
    await put(spool, before)
    replace_it(spool.folder)
    await spool.maintain()
    assert not spool.usable  # also when nobody submits anything
    with pytest.raises(SpoolError):
        await put(spool, submit(request_id="new", conversation_id="new"))
    with pytest.raises(SpoolError):
        await put(spool, again(before))
    assert before.id in await empty(spool)  # what waits is drained all the same
    await spool.maintain()
    assert not spool.usable


async def test_it_takes_leads_again_when_its_folder_is_put_back(spool: Spool, submit: Submit) -> None:
    moved = spool.folder.with_name("moved")
    spool.folder.rename(moved)
    with pytest.raises(SpoolError):
        await put(spool, submit(request_id="1", conversation_id="1"))
    moved.rename(spool.folder)
    await spool.maintain()
    assert spool.usable
    await put(spool, submit(request_id="2", conversation_id="2"))
    assert spool.fault is None


async def test_one_batch_costs_one_sync(encryption: EncryptionService, submit: Submit, tmp_path: Path) -> None:
    from tests.harness.power import Disk

    disk = Disk()
    with disk.recording():
        watched = opened(tmp_path / "watched", encryption)
        await put(watched, submit())
        before = len(disk.operations)
        await put(watched, *[submit() for _ in range(8)])
        log = [each for each in disk.operations[before:] if each.path.endswith("-wal")]
        watched.close()
    assert [each.kind for each in log].count("sync") == 1
