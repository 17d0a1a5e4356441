"""Whose a submission is."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from service.lead import BlindIndexes, SealedSubmission
from service.storage.leads.decision import Person
from service.storage.leads.erasures import PersonMovedError
from service.storage.spool.spool import Spooled
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import where


@pytest.fixture
def erased(submit: Submit) -> SealedSubmission:
    return submit(request_id="r1")


@pytest.fixture
def person(erased: SealedSubmission) -> Person:
    return Person(frozenset()).extended_by(erased)


@pytest.fixture
def stranger(submit: Submit) -> SealedSubmission:
    return submit(request_id="r2")


def with_values_of(stranger: SealedSubmission, erased: SealedSubmission, *, phone: bool, nid: bool) -> SealedSubmission:
    of_phone, of_nid = erased if phone else stranger, erased if nid else stranger
    indexes = BlindIndexes(epoch=0, phone=of_phone.indexes.phone, nid=of_nid.indexes.nid)
    return replace(stranger, indexes=indexes)


@pytest.mark.parametrize(("phone", "nid"), [(True, True), (True, False), (False, True), (False, False)])
def test_both_phone_and_nid_make_it_the_persons_and_one_of_them_does_not(
    erased: SealedSubmission, person: Person, stranger: SealedSubmission, phone: bool, nid: bool
) -> None:
    assert person.owns(with_values_of(stranger, erased, phone=phone, nid=nid)) == (phone and nid)


def test_its_id_makes_it_the_persons(erased: SealedSubmission, person: Person, stranger: SealedSubmission) -> None:
    assert person.owns(replace(stranger, id=erased.id))


def test_its_request_makes_it_the_persons(person: Person, stranger: SealedSubmission) -> None:
    assert person.owns(replace(stranger, request_id="r1"))


def test_the_request_id_of_another_subject_does_not(person: Person, stranger: SealedSubmission) -> None:
    assert not person.owns(replace(stranger, request_id="r1", created_by="another bot"))


def test_the_want_of_a_request_id_does_not(erased: SealedSubmission, stranger: SealedSubmission) -> None:
    person = Person(frozenset()).extended_by(replace(erased, request_id=None))
    assert not person.owns(replace(stranger, request_id=None))


def test_an_index_in_the_other_pair_is_found(
    erased: SealedSubmission, person: Person, stranger: SealedSubmission
) -> None:
    phone, nid = ((None, values[0]) for values in (erased.indexes.phones, erased.indexes.nids))
    assert person.owns(replace(stranger, indexes=BlindIndexes(epoch=0, phone=phone, nid=nid)))


@pytest.mark.parametrize("lost", [each.name for each in fields(Person)])
async def test_a_spool_that_was_searched_for_less_than_the_person_is_searched_again(
    lost: str, world: World, erased: SealedSubmission, database: TestDatabase
) -> None:
    """A correction, or another erasure, came between the search and the lock."""
    await world.create(erased)
    searched_for = replace(await world.erasures.person(erased.id), **{lost: frozenset()})
    with pytest.raises(PersonMovedError):
        await world.erasures.erase(erased.id, actor="boss", reason=None, spooled=Spooled(sought=searched_for))
    assert where(database, erased) == {"lead"}
