"""SummarizeLeads: how many leads were created within a span, by one of five groups."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.conftest import StartService
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused
from tests.rpc.conftest import Connect

DAY = timedelta(days=1)
_years = count(2000)


@pytest.fixture
def start() -> datetime:
    """The first of January of a year in which no other test has leads."""
    return datetime(next(_years), 1, 1, tzinfo=UTC)


def at(service: RunningService, lead_id: str, moment: datetime) -> None:
    """Let a lead have been created at another moment."""
    execute(service, "UPDATE lead SET created_at = %(at)s WHERE id = %(id)s", at=moment, id=lead_id)


def created(service: RunningService, client: Client, moment: datetime, **fields: str) -> str:
    """A lead of that moment."""
    lead_id = client.create(somebody(**fields)).id
    at(service, lead_id, moment)
    return lead_id


def summary(client: Client, group: int, start: datetime, **more: Any) -> pb.SummarizeLeadsResponse:
    """A summary, of the year's January if no end is given."""
    request: dict[str, Any] = {"created_after": start, "created_before": start + 31 * DAY, "group_by": group} | more
    answer: pb.SummarizeLeadsResponse = client.call("SummarizeLeads", pb.SummarizeLeadsRequest(**request))
    assert answer.total == sum(each.count for each in answer.groups)
    return answer


def counts(answer: pb.SummarizeLeadsResponse) -> list[tuple[str, int]]:
    return [(each.key, each.count) for each in answer.groups]


class TestGroups:
    def test_every_status_is_counted_in_the_contracts_order(
        self, service: RunningService, admin: Client, start: datetime
    ) -> None:
        made = [created(service, admin, start) for _ in range(3)]
        admin.move(made[0], pb.LEAD_STATUS_NOT_INTERESTED)

        assert counts(summary(admin, pb.LEAD_GROUP_STATUS, start)) == [
            ("LEAD_STATUS_NEW", 2),
            ("LEAD_STATUS_CONTACTED", 0),
            ("LEAD_STATUS_CONVERTED", 0),
            ("LEAD_STATUS_NOT_INTERESTED", 1),
        ]

    @pytest.mark.parametrize(
        ("group", "field"), [(pb.LEAD_GROUP_POLICY, "interested_policy"), (pb.LEAD_GROUP_SOURCE, "source")]
    )
    def test_values_come_largest_first(
        self, group: int, field: str, service: RunningService, admin: Client, start: datetime
    ) -> None:
        for value in ("walk-in", "web", "fair", "web"):
            created(service, admin, start, **{field: value})

        assert counts(summary(admin, group, start)) == [("web", 2), ("fair", 1), ("walk-in", 1)]

    @pytest.mark.parametrize("group", [pb.LEAD_GROUP_SOURCE, pb.LEAD_GROUP_ASSIGNEE])
    def test_leads_without_a_value_have_an_empty_key(
        self, group: int, service: RunningService, admin: Client, start: datetime
    ) -> None:
        for _ in range(2):
            created(service, admin, start)
        admin.assign(created(service, admin, start, source="other"), "other")

        answer = summary(admin, group, start)

        assert counts(answer) == [("", 2), ("other", 1)]
        assert not any(each.is_other for each in answer.groups)

    def test_nobody_is_counted_when_there_is_nobody(self, admin: Client, start: datetime) -> None:
        assert summary(admin, pb.LEAD_GROUP_POLICY, start) == pb.SummarizeLeadsResponse()
        assert [each.count for each in summary(admin, pb.LEAD_GROUP_STATUS, start).groups] == [0] * 4

    def test_what_comes_after_a_thousand_groups_is_one(
        self, service: RunningService, admin: Client, start: datetime
    ) -> None:
        """The database copies the lead, once for each of 1,001 sources, and twice for one that is called other."""
        lead_id = created(service, admin, start, source="other")
        columns = "name, phone, nid, address, interested_policy, created_by, content_digest, created_at"
        execute(
            service,
            f"INSERT INTO lead (id, phone_index, nid_index, source, {columns})"
            " SELECT gen_random_uuid(), sha256(('p' || n || id)::bytea), sha256(('n' || n || id)::bytea),"
            f" CASE WHEN n < 3 THEN 'other' ELSE 'source ' || n END, {columns}"
            " FROM lead, generate_series(1, 1003) n WHERE id = %(id)s",
            id=lead_id,
        )

        answer = summary(admin, pb.LEAD_GROUP_SOURCE, start)

        assert (len(answer.groups), answer.total) == (1001, 1004)
        first, last = answer.groups[0], answer.groups[-1]
        assert (first.key, first.count, first.is_other) == ("other", 3, False)
        assert (last.key, last.count, last.is_other) == ("other", 2, True)

    @pytest.mark.parametrize("group", [pb.LEAD_GROUP_UNSPECIFIED, 6])
    def test_other_groups_are_refused(self, group: int, admin: Client, start: datetime) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            summary(admin, group, start)

        assert list(refusal.violations) == ["group_by"]


class TestDays:
    def test_each_day_of_the_span_is_there(self, service: RunningService, admin: Client, start: datetime) -> None:
        for moment in (start, start + DAY - timedelta.resolution, start + 2 * DAY, start + 3 * DAY):
            created(service, admin, moment)

        answer = summary(admin, pb.LEAD_GROUP_DAY, start, created_before=start + 3 * DAY)

        year = start.year
        assert counts(answer) == [(f"{year}-01-01", 2), (f"{year}-01-02", 0), (f"{year}-01-03", 1)]

    @pytest.mark.parametrize(("end", "days"), [(0, 1), (1, 2)])
    def test_a_day_that_the_span_only_touches_is_there(
        self, end: int, days: int, admin: Client, start: datetime
    ) -> None:
        before = start + DAY + end * timedelta.resolution

        answer = summary(admin, pb.LEAD_GROUP_DAY, start + timedelta(hours=7), created_before=before)

        assert len(answer.groups) == days

    @pytest.mark.parametrize(
        ("zone", "first", "moments"),
        [
            ("Asia/Dhaka", "1990-01-31", ["1990-01-30T18:00Z", "1990-01-31T17:59:59.999999Z"]),
            # The clocks go forward: 23 hours; back: 25, with one hour twice.
            ("Europe/Berlin", "1995-03-26", ["1995-03-25T23:00Z", "1995-03-26T21:59Z"]),
            ("Europe/Berlin", "1995-09-24", ["1995-09-23T22:00Z", "1995-09-24T00:30Z", "1995-09-24T22:59Z"]),
            # There is no midnight on this day.
            ("America/Sao_Paulo", "1998-10-11", ["1998-10-11T03:00Z", "1998-10-12T01:59Z"]),
        ],
    )
    def test_days_are_those_of_the_time_zone(
        self, zone: str, first: str, moments: Sequence[str], service: RunningService, admin: Client
    ) -> None:
        day = date.fromisoformat(first)
        inside = [datetime.fromisoformat(moment) for moment in moments]
        around = [inside[0] - timedelta(seconds=1), inside[-1] + timedelta(minutes=1)]
        for moment in (*inside, *around):
            created(service, admin, moment)

        answer = summary(
            admin,
            pb.LEAD_GROUP_DAY,
            inside[0] - timedelta(hours=20),
            created_before=inside[-1] + timedelta(hours=20),
            time_zone=zone,
        )

        assert counts(answer) == [
            ((day - DAY).isoformat(), 1),
            (first, len(inside)),
            ((day + DAY).isoformat(), 1),
        ]

    def test_a_day_that_the_zone_left_out_is_not_there(self, admin: Client) -> None:
        start = datetime(2011, 12, 29, 12, tzinfo=UTC)

        answer = summary(admin, pb.LEAD_GROUP_DAY, start, created_before=start + 2 * DAY, time_zone="Pacific/Apia")

        assert [key for key, _ in counts(answer)] == ["2011-12-29", "2011-12-31", "2012-01-01"]

    def test_without_a_time_zone_a_day_is_one_of_the_daily_files(
        self, start_service: StartService, database: TestDatabase
    ) -> None:
        settings = {"LEADKEEP_FILES_TIMEZONE": "Asia/Dhaka"}
        service = start_service(database_url=database.serve_url, settings=settings)
        with service.channel() as channel:
            client = Client(service, channel)
            start = datetime(2020, 1, 1, 17, tzinfo=UTC)
            created(service, client, start + timedelta(hours=2))

            answer = summary(client, pb.LEAD_GROUP_DAY, start, created_before=start + timedelta(hours=3))

        assert counts(answer) == [("2020-01-01", 0), ("2020-01-02", 1)]

    @pytest.mark.parametrize("zone", ["Mars/Olympus", "../UTC", "Europe", "asia\0dhaka", "x" * 5000])
    @pytest.mark.parametrize("group", [pb.LEAD_GROUP_DAY, pb.LEAD_GROUP_STATUS])
    def test_another_name_of_a_zone_is_refused(self, group: int, zone: str, admin: Client, start: datetime) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            summary(admin, group, start, time_zone=zone)

        assert list(refusal.violations) == ["time_zone"]


class TestSpans:
    def test_a_span_is_half_open(self, service: RunningService, admin: Client, start: datetime) -> None:
        created(service, admin, start)
        created(service, admin, start + DAY)

        assert summary(admin, pb.LEAD_GROUP_POLICY, start, created_before=start + DAY).total == 1

    def test_without_an_end_it_ends_now(self, admin: Client) -> None:
        start = datetime.now(UTC) - 400 * DAY + timedelta(minutes=1)
        before = summary(admin, pb.LEAD_GROUP_DAY, start, created_before=None)
        admin.create(somebody())

        after = summary(admin, pb.LEAD_GROUP_DAY, start, created_before=None)

        assert after.total == before.total + 1
        assert after.groups[-1].count > 0

    @pytest.mark.parametrize("group", [pb.LEAD_GROUP_STATUS, pb.LEAD_GROUP_DAY])
    def test_400_days_are_accepted_and_a_moment_more_is_refused(
        self, group: int, admin: Client, start: datetime
    ) -> None:
        summary(admin, group, start, created_before=start + 400 * DAY)

        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            summary(admin, group, start, created_before=start + 400 * DAY + timedelta.resolution)

        assert "400 days" in refusal.violations["created_after"]

    def test_400_days_of_the_calendar_are_accepted_when_the_clocks_make_them_longer(self, admin: Client) -> None:
        start, end = datetime.fromisoformat("2021-10-01T00:00+02:00"), datetime.fromisoformat("2022-11-05T00:00+01:00")
        assert end - start > 400 * DAY

        answer = summary(admin, pb.LEAD_GROUP_DAY, start, created_before=end, time_zone="Europe/Berlin")

        assert len(answer.groups) == 400

    @pytest.mark.parametrize(
        "span",
        [
            {"created_after": None},
            {"created_after": None, "created_before": None},
            {"created_after": datetime(2030, 1, 2, tzinfo=UTC), "created_before": datetime(2030, 1, 1, tzinfo=UTC)},
            {"created_after": datetime(2030, 1, 1, tzinfo=UTC), "created_before": datetime(2030, 1, 1, tzinfo=UTC)},
            {"created_after": datetime(9000, 1, 1, tzinfo=UTC), "created_before": None},
            {"created_after": datetime(9999, 1, 1, tzinfo=UTC), "created_before": datetime.max.replace(tzinfo=UTC)},
            {"created_after": datetime.min.replace(tzinfo=UTC), "created_before": datetime(1, 1, 2, tzinfo=UTC)},
        ],
    )
    def test_a_span_without_sense_is_refused(self, span: dict[str, Any], admin: Client) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "LEAD_INVALID") as refusal:
            summary(admin, pb.LEAD_GROUP_DAY, datetime.now(UTC), time_zone="America/New_York", **span)

        assert list(refusal.violations) == ["created_after"]


class TestCallers:
    @pytest.mark.parametrize("group", pb.LeadGroup.values()[1:])
    def test_who_may_read_only_its_own_counts_only_its_own(
        self, group: int, service: RunningService, connect: Connect, start: datetime
    ) -> None:
        one, other = connect("chatbot", subject="count-1"), connect("chatbot", subject="count-2")
        created(service, one, start)
        created(service, other, start)

        assert summary(one, group, start).total == 1

    def test_who_may_not_read_is_refused(self, connect: Connect, start: datetime) -> None:
        with refused(StatusCode.PERMISSION_DENIED, "SCOPE_MISSING") as refusal:
            summary(connect(scopes={Scope.CREATE, Scope.UPDATE}), pb.LEAD_GROUP_STATUS, start)

        assert refusal.metadata == {"scope": "leads:read"}


def test_the_json_endpoint_answers_the_same(service: RunningService, admin: Client, start: datetime) -> None:
    created(service, admin, start, source="fair")
    span = {"created_after": f"{start:%Y-%m-%dT00:00:00Z}", "created_before": f"{start.year}-02-01T00:00:00Z"}
    headers = {"authorization": f"Bearer {service.token('agent')}"}

    answer = httpx.get(f"{service.http_url}/api/leads/summary", params={"group_by": "source", **span}, headers=headers)

    assert answer.json() == {"groups": [{"key": "fair", "count": "1", "is_other": False}], "total": "1"}
