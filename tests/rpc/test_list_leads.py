from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.leads import somebody
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect


def some_policy() -> str:
    """A policy of one test's own: the filter by it keeps other tests' leads out of the list."""
    return f"policy {uuid4()}"


def people(client: Client, count: int, **fields: str) -> list[str]:
    return [client.create(somebody(**fields)).id for _ in range(count)]


def pages(client: Client, **request: Any) -> list[list[str]]:
    found: list[list[str]] = []
    token = ""
    while True:
        page = client.list_leads(page_token=token, **request)
        found.append([lead.id for lead in page.leads])
        token = page.next_page_token
        if not token:
            return found


def come_again(client: Client, lead_id: str) -> None:
    """Let the person of a lead submit once more, with another policy."""
    lead = client.get(lead_id)
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        client.create(somebody(phone=lead.phone, nid=lead.nid, name=f"Again {uuid4()}"))


def timestamp(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


class TestPages:
    def test_the_newest_lead_comes_first(self, admin: Client) -> None:
        policy = some_policy()
        made = people(admin, 3, interested_policy=policy)

        assert admin.listed_ids(interested_policy=policy) == made[::-1]

    def test_pages_hold_every_lead_once(self, admin: Client) -> None:
        policy = some_policy()
        made = people(admin, 7, interested_policy=policy)

        assert pages(admin, interested_policy=policy, page_size=3) == [made[:3:-1], made[3:0:-1], made[:1]]

    def test_leads_of_one_moment_are_neither_repeated_nor_lost_between_pages(
        self, service: RunningService, admin: Client
    ) -> None:
        policy = some_policy()
        made = people(admin, 7, interested_policy=policy)
        moment = datetime(2026, 1, 31, 9, 30, 0, 123_456, tzinfo=UTC)
        execute(service, "UPDATE lead SET created_at = %(at)s WHERE interested_policy = %(p)s", at=moment, p=policy)

        found = pages(admin, interested_policy=policy, page_size=2)

        assert [lead_id for page in found for lead_id in page] == sorted(made, reverse=True)

    def test_a_lead_that_comes_in_meanwhile_moves_no_later_page(self, admin: Client) -> None:
        policy = some_policy()
        made = people(admin, 4, interested_policy=policy)
        first = admin.list_leads(interested_policy=policy, page_size=2)
        people(admin, 1, interested_policy=policy)

        rest = admin.listed_ids(interested_policy=policy, page_size=2, page_token=first.next_page_token)

        assert rest == made[1::-1]

    def test_a_page_that_is_exactly_full_is_the_last(self, admin: Client) -> None:
        policy = some_policy()
        people(admin, 2, interested_policy=policy)

        assert admin.list_leads(interested_policy=policy, page_size=2).next_page_token == ""

    def test_nothing_found_is_an_empty_page(self, admin: Client) -> None:
        assert admin.list_leads(interested_policy=some_policy()) == pb.ListLeadsResponse()

    def test_a_page_holds_50_leads_unless_told_and_100_at_most(self, admin: Client) -> None:
        policy = some_policy()
        people(admin, 102, interested_policy=policy)

        assert len(admin.listed_ids(interested_policy=policy)) == 50
        assert len(admin.listed_ids(interested_policy=policy, page_size=1)) == 1
        assert len(admin.listed_ids(interested_policy=policy, page_size=100)) == 100
        assert len(admin.listed_ids(interested_policy=policy, page_size=5000)) == 100

    def test_a_negative_page_size_is_refused(self, admin: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(page_size=-1)

        assert list(refusal.violations) == ["page_size"]

    def test_the_page_size_may_change_between_pages(self, admin: Client) -> None:
        policy = some_policy()
        made = people(admin, 4, interested_policy=policy)
        first = admin.list_leads(interested_policy=policy, page_size=1)

        rest = admin.listed_ids(interested_policy=policy, page_size=9, page_token=first.next_page_token)

        assert rest == made[2::-1]


class TestPageTokens:
    @pytest.fixture
    def policy(self, admin: Client) -> str:
        policy = some_policy()
        people(admin, 2, interested_policy=policy)
        return policy

    @pytest.fixture
    def token(self, admin: Client, policy: str) -> str:
        token: str = admin.list_leads(interested_policy=policy, page_size=1).next_page_token
        assert token
        return token

    @pytest.mark.parametrize(
        "other",
        [
            {"interested_policy": "another"},
            {"statuses": [pb.LEAD_STATUS_NEW]},
            {"assignee": "Sam"},
            {"conversation_id": "c"},
            {"phone": "+8801711000000"},
            {"nid": "1234567890"},
            {"email": "jane@example.com"},
            {"reference": "LK-7F3K-9QXM"},
            {"created_after": Timestamp(seconds=1)},
            {"created_before": Timestamp(seconds=1)},
            {"updated_after": Timestamp(seconds=1)},
            {"updated_before": Timestamp(seconds=1)},
            {"name_prefix": "Pe"},
            {"unassigned": True},
            {"created_by": "admin"},
            {"source": "ad"},
            *({"order_by": order} for order in pb.LeadOrder.values()[1:]),
        ],
    )
    def test_a_token_of_another_filter_or_order_is_refused(
        self, admin: Client, policy: str, token: str, other: dict[str, Any]
    ) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            admin.list_leads(**({"interested_policy": policy} | other), page_token=token)

    @pytest.mark.parametrize("order", pb.LeadOrder.values()[1:])
    def test_a_token_of_an_order_leads_on_in_it_alone(
        self, admin: Client, policy: str, token: str, order: pb.LeadOrder
    ) -> None:
        for lead_id in admin.listed_ids(interested_policy=policy):
            come_again(admin, lead_id)
        of_order = {"interested_policy": policy, "page_size": 1, "order_by": order}
        first = admin.list_leads(**of_order)

        rest = admin.list_leads(**of_order, page_token=first.next_page_token)

        assert len({lead.id for lead in (*first.leads, *rest.leads)}) == 2
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            admin.list_leads(interested_policy=policy, page_token=first.next_page_token)

    def test_a_token_of_another_subject_is_refused(self, connect: Connect) -> None:
        policy = some_policy()
        one, other = connect("chatbot", subject="page-bot-1"), connect("chatbot", subject="page-bot-2")
        people(one, 2, interested_policy=policy)
        token = one.list_leads(interested_policy=policy, page_size=1).next_page_token

        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            other.list_leads(interested_policy=policy, page_token=token)

    def test_a_readers_token_is_refused_for_who_reads_only_its_own(
        self, connect: Connect, policy: str, token: str
    ) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            connect("chatbot").list_leads(interested_policy=policy, page_token=token)

    @pytest.mark.parametrize("at", [0, 7, 8, 23, 24, 39])
    def test_a_tampered_token_is_refused(self, admin: Client, policy: str, token: str, at: int) -> None:
        raw = bytearray(base64.urlsafe_b64decode(token + "=="))
        raw[at] ^= 1

        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            admin.list_leads(interested_policy=policy, page_token=base64.urlsafe_b64encode(raw).rstrip(b"=").decode())

    @pytest.mark.parametrize("nonsense", ["x", "not base64 ☃", "A" * 54, "A" * 5000])
    def test_what_is_no_token_is_refused(self, admin: Client, policy: str, nonsense: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            admin.list_leads(interested_policy=policy, page_token=nonsense)

    def test_a_token_tells_no_filter_value(self, admin: Client, policy: str, token: str) -> None:
        assert policy.encode() not in base64.urlsafe_b64decode(token + "==")


class TestFilters:
    def test_by_statuses(self, admin: Client) -> None:
        policy = some_policy()
        new, contacted, converted = people(admin, 3, interested_policy=policy)
        admin.move(contacted, pb.LEAD_STATUS_CONTACTED)
        admin.move(converted, pb.LEAD_STATUS_CONVERTED)

        found = admin.listed_ids(
            interested_policy=policy, statuses=[pb.LEAD_STATUS_NEW, pb.LEAD_STATUS_CONVERTED, pb.LEAD_STATUS_NEW]
        )

        assert found == [converted, new]

    def test_by_moment_of_creation(self, service: RunningService, admin: Client) -> None:
        policy = some_policy()
        made = people(admin, 3, interested_policy=policy)
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        for hours, lead_id in enumerate(made):
            at = noon + timedelta(hours=hours)
            execute(service, "UPDATE lead SET created_at = %(at)s WHERE id = %(id)s", at=at, id=lead_id)

        def found(**moments: datetime) -> list[str]:
            return admin.listed_ids(
                interested_policy=policy, **{name: timestamp(moment) for name, moment in moments.items()}
            )

        one = noon + timedelta(hours=1)
        assert found(created_after=one) == [made[2], made[1]], "created_after includes its moment"
        assert found(created_before=one) == [made[0]], "created_before excludes its moment"
        assert found(created_after=one, created_before=one + timedelta(microseconds=1)) == [made[1]]

    def test_by_assignee(self, admin: Client) -> None:
        policy, sam = some_policy(), f"Sam {uuid4()}"
        mine, _ = people(admin, 2, interested_policy=policy)
        admin.assign(mine, sam)

        assert admin.listed_ids(assignee=sam) == [mine]

    def test_by_policy(self, admin: Client) -> None:
        policy = some_policy()
        [lead_id] = people(admin, 1, interested_policy=policy)

        assert admin.listed_ids(interested_policy=f"  {policy} ") == [lead_id]

    def test_by_conversation(self, admin: Client) -> None:
        talk = f"talk-{uuid4()}"
        made = people(admin, 2, conversation_id=talk)

        assert admin.listed_ids(conversation_id=talk) == made[::-1]

    def test_by_a_conversation_that_was_linked_later(self, admin: Client) -> None:
        talk, person = f"talk-{uuid4()}", somebody()
        lead_id = admin.create(person).id
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            admin.create(somebody(phone=person.phone, nid=person.nid, conversation_id=talk))

        assert admin.listed_ids(conversation_id=talk) == [lead_id]

    @pytest.mark.parametrize("phone", ["+8801711555001", "+880 1711-555-001", "+৮৮০ ১৭১১ ৫৫৫০০১"])
    def test_by_phone_in_any_form(self, admin: Client, phone: str) -> None:
        [lead_id] = admin.listed_ids(phone="+8801711555001") or people(admin, 1, phone="+8801711555001")

        assert admin.listed_ids(phone=phone) == [lead_id]

    @pytest.mark.parametrize("nid", ["ZX5550001", "zx-555-0001", " ZX 555 ০০০১ "])
    def test_by_nid_in_any_form(self, admin: Client, nid: str) -> None:
        [lead_id] = admin.listed_ids(nid="ZX5550001") or people(admin, 1, nid="ZX5550001")

        assert admin.listed_ids(nid=nid) == [lead_id]

    def test_a_corrected_phone_is_found_and_the_old_one_is_not(self, admin: Client) -> None:
        old, new = somebody(), somebody()
        lead_id = admin.create(old).id
        admin.correct(lead_id, phone=new.phone)

        assert admin.listed_ids(phone=new.phone) == [lead_id]
        assert admin.listed_ids(phone=old.phone) == []

    def test_by_moment_of_the_last_change(self, admin: Client) -> None:
        policy = some_policy()
        first, second, third = people(admin, 3, interested_policy=policy)
        moved = admin.move(first, pb.LEAD_STATUS_CONTACTED)

        assert admin.listed_ids(interested_policy=policy, updated_after=moved.updated_at) == [first]
        assert admin.listed_ids(interested_policy=policy, updated_before=moved.updated_at) == [third, second]

    def test_leads_of_nobody(self, admin: Client) -> None:
        policy = some_policy()
        taken, free = people(admin, 2, interested_policy=policy)
        admin.assign(taken, "Sam")
        assert admin.listed_ids(interested_policy=policy, unassigned=True) == [free]

        admin.assign(taken, "")
        assert admin.listed_ids(interested_policy=policy, unassigned=True) == [free, taken]

    @pytest.mark.parametrize("assignee", ["Sam", "  Sam "])
    def test_nobody_and_somebody_at_once_is_refused(self, admin: Client, assignee: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(unassigned=True, assignee=assignee)

        assert list(refusal.violations) == ["unassigned"]

    def test_by_creator(self, admin: Client, connect: Connect) -> None:
        policy = some_policy()
        [made] = people(connect("chatbot", subject="bot-of-the-web"), 1, interested_policy=policy)
        people(admin, 1, interested_policy=policy)

        assert admin.listed_ids(interested_policy=policy, created_by="bot-of-the-web") == [made]
        assert admin.listed_ids(interested_policy=policy, created_by="bot-of-the-we") == []

    def test_who_reads_only_its_own_finds_nothing_of_another_creator(self, admin: Client, connect: Connect) -> None:
        policy = some_policy()
        bot = connect("chatbot", subject="bot-that-asks")
        [own] = people(bot, 1, interested_policy=policy)
        people(admin, 1, interested_policy=policy)

        assert bot.listed_ids(interested_policy=policy, created_by="bot-that-asks") == [own]
        assert bot.listed_ids(interested_policy=policy, created_by="admin") == []
        assert bot.listed_ids(name_prefix="Person", interested_policy=policy) == [own]

    @pytest.mark.parametrize(
        ("name", "prefixes"),
        [
            ("Quibbleworth, Zephyrine", ["qu", "QUIBBLEWORTH,", "  Quibbleworth, z "]),
            ("Ñandú", ["ña", "N\u0303AND", "ñandú"]),
            ("মোছাম্মৎ", ["মো", "মোছাম্মৎ", "ম\u09c7\u09beছ"]),
            ("%_\\ wild", ["%_", "%_\\", "%_\\ WI"]),
        ],
    )
    def test_by_the_beginning_of_a_name_in_any_case(self, admin: Client, name: str, prefixes: list[str]) -> None:
        policy = some_policy()
        [lead_id] = people(admin, 1, interested_policy=policy, name=name)
        people(admin, 1, interested_policy=policy, name=f"not {name}")

        for prefix in prefixes:
            assert admin.listed_ids(interested_policy=policy, name_prefix=prefix) == [lead_id], prefix

    @pytest.mark.parametrize("prefix", ["%%", "__", "q%", "qu_", "quibbleworthx", "uibble"])
    def test_a_prefix_is_no_pattern(self, admin: Client, prefix: str) -> None:
        policy = some_policy()
        people(admin, 1, interested_policy=policy, name="Quibbleworth")

        assert admin.listed_ids(interested_policy=policy, name_prefix=prefix) == []

    @pytest.mark.parametrize("prefix", ["q", " q ", "ম", "  ", "x" * 201, "a\u0000b"])
    def test_a_prefix_of_one_character_or_none_is_refused(self, admin: Client, prefix: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(name_prefix=prefix)

        assert list(refusal.violations) == ["name_prefix"]

    def test_a_corrected_name_is_found_and_the_old_one_is_not(self, admin: Client) -> None:
        policy = some_policy()
        [lead_id] = people(admin, 1, interested_policy=policy, name="Before")
        admin.correct(lead_id, name="After")

        assert admin.listed_ids(interested_policy=policy, name_prefix="aft") == [lead_id]
        assert admin.listed_ids(interested_policy=policy, name_prefix="bef") == []

    def test_all_filters_must_match(self, admin: Client) -> None:
        policy, talk, sam, source = some_policy(), f"talk-{uuid4()}", f"Sam {uuid4()}", f"ad {uuid4()}"
        person = somebody(interested_policy=policy, conversation_id=talk, source=source)
        made = admin.create(person)
        lead_id, reference = made.id, made.confirmation.reference
        people(admin, 2, interested_policy=policy)
        admin.assign(lead_id, sam)
        matching: dict[str, Any] = {
            "statuses": [pb.LEAD_STATUS_NEW],
            "created_after": Timestamp(seconds=1),
            "created_before": timestamp(datetime.now(UTC) + timedelta(hours=1)),
            "assignee": sam,
            "interested_policy": policy,
            "conversation_id": talk,
            "source": source,
            "phone": person.phone,
            "nid": person.nid,
            "email": person.email.upper(),
            "reference": reference,
            "updated_after": Timestamp(seconds=1),
            "updated_before": timestamp(datetime.now(UTC) + timedelta(hours=1)),
            "name_prefix": person.name,
            "created_by": "admin",
        }
        differing: dict[str, Any] = {
            "statuses": [pb.LEAD_STATUS_CONVERTED],
            "created_after": matching["created_before"],
            "created_before": matching["created_after"],
            "assignee": "somebody else",
            "interested_policy": "another policy",
            "conversation_id": "another-talk",
            "source": "another ad",
            "phone": "+8801711000999",
            "nid": "nobody0001",
            "email": "nobody@example.com",
            "reference": "LK-0000-0000",
            "updated_after": matching["updated_before"],
            "updated_before": matching["updated_after"],
            "name_prefix": "another",
            "created_by": "another",
        }

        assert admin.listed_ids(**matching) == [lead_id]
        for name, value in differing.items():
            assert admin.listed_ids(**(matching | {name: value})) == [], name

    def test_every_field_of_the_request_but_paging_and_view_is_a_filter_that_is_tested_above(self) -> None:
        others = {"page_size", "page_token", "view", "order_by", "reveal"}
        filters = set(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name) - others

        assert filters == {
            "statuses",
            "created_after",
            "created_before",
            "assignee",
            "interested_policy",
            "conversation_id",
            "source",
            "phone",
            "nid",
            "email",
            "reference",
            "updated_after",
            "updated_before",
            "unassigned",
            "created_by",
            "name_prefix",
        }

    @pytest.mark.parametrize("name", ["phone", "nid"])
    def test_a_masked_caller_cannot_test_guesses(self, connect: Connect, chatbot: Client, name: str) -> None:
        for caller in (connect(scopes={Scope.READ}), chatbot):
            with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
                caller.list_leads(**{name: "+8801711000000"})
            assert refusal.metadata == {"scope": f"leads:unmask:{name}"}

    def test_who_may_unmask_but_reads_only_its_own_finds_only_its_own_phone(
        self, connect: Connect, admin: Client
    ) -> None:
        person = somebody()
        admin.create(person)

        own = connect(subject="own-unmasked", scopes={Scope.READ_OWN, Scope.UNMASK})

        assert own.listed_ids(phone=person.phone) == []

    def test_filters_that_no_lead_could_have_are_violations_all_at_once(self, admin: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(
                phone="12",
                nid="!",
                conversation_id="a b",
                assignee="x" * 201,
                created_by=" bot",
                name_prefix="x",
                unassigned=True,
            )

        named = {"phone", "nid", "conversation_id", "assignee", "created_by", "name_prefix"}
        assert set(refusal.violations) == named


class TestOrders:
    def test_by_moment_of_creation_both_ways(self, admin: Client) -> None:
        policy = some_policy()
        made = people(admin, 3, interested_policy=policy)

        assert admin.listed_ids(interested_policy=policy) == made[::-1]
        assert admin.listed_ids(interested_policy=policy, order_by=pb.LEAD_ORDER_CREATED_ASC) == made

    def test_by_the_last_change_of_any_kind_both_ways(self, admin: Client) -> None:
        policy = some_policy()
        one, two, three, four = people(admin, 4, interested_policy=policy)
        admin.move(two, pb.LEAD_STATUS_CONTACTED)
        admin.assign(one, "Sam")
        admin.correct(three, address="2 Hill St")
        changed = [four, two, one, three]

        assert admin.listed_ids(interested_policy=policy, order_by=pb.LEAD_ORDER_UPDATED_ASC) == changed
        assert admin.listed_ids(interested_policy=policy, order_by=pb.LEAD_ORDER_UPDATED_DESC) == changed[::-1]

    def test_by_the_last_resubmission_both_ways_and_only_leads_that_have_one(self, admin: Client) -> None:
        policy = some_policy()
        one, two, three, _never = people(admin, 4, interested_policy=policy)
        for lead_id in (one, two, three, one):
            come_again(admin, lead_id)

        found = admin.listed_ids(interested_policy=policy, order_by=pb.LEAD_ORDER_RESUBMITTED_ASC)
        assert found == [two, three, one]
        assert admin.listed_ids(interested_policy=policy, order_by=pb.LEAD_ORDER_RESUBMITTED_DESC) == found[::-1]

    def test_an_unknown_order_is_refused(self, admin: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            admin.list_leads(order_by=99)

        assert list(refusal.violations) == ["order_by"]

    def test_a_lead_that_changes_takes_another_place(self, admin: Client) -> None:
        policy = some_policy()
        one, two, three = people(admin, 3, interested_policy=policy)
        of_order = {"interested_policy": policy, "page_size": 1, "order_by": pb.LEAD_ORDER_UPDATED_ASC}
        first = admin.list_leads(**of_order)
        admin.move(one, pb.LEAD_STATUS_CONTACTED)

        rest = admin.listed_ids(**(of_order | {"page_size": 9}), page_token=first.next_page_token)

        assert ([lead.id for lead in first.leads], rest) == ([one], [two, three, one])
