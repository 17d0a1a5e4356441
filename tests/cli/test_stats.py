"""`leadkeep stats`, as an operator meets it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.harness.faults import execute
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

LONG = "a policy with a name that no table has room for"


@pytest.fixture(scope="module", autouse=True)
def _leads(service: RunningService, service_database: TestDatabase) -> None:
    """Leads of today, four of them assigned, and two of the first of January 2020 in UTC, without a source."""
    with service.channel() as channel:
        client = Client(service, channel)
        for policy, leads in {"Term Life": 8, "Whole Life": 4, LONG: 1}.items():
            made = [client.create(somebody(interested_policy=policy, source="web")).id for _ in range(leads)]
        client.assign(made[0], "other")
        old, older = (client.create(somebody()).id for _ in range(2))
    execute(
        service_database.admin_url,
        f"UPDATE lead SET created_at = '2020-01-01T18:00Z' WHERE id = '{old}'",
        f"UPDATE lead SET created_at = '2020-01-01T17:59Z' WHERE id = '{older}'",
        f"UPDATE lead SET assignee = E'\\x1b[31mred' WHERE id = '{older}'",
    )


def printed(service: RunningService, *arguments: str) -> list[str]:
    done = service.leadkeep_here("stats", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def shown(service: RunningService, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("\n".join(printed(service, "--json", *arguments)))
    return found


def test_a_table_has_a_line_for_each_group_with_a_bar_as_long_as_it_is_large(service: RunningService) -> None:
    assert printed(service, "--by", "policy") == [
        "policy                                    leads",
        f"Term Life                                     8  {'█' * 40}",
        f"Whole Life                                    4  {'█' * 20}",
        f"{LONG[:39]}…      1  {'█' * 5}",
        "total                                        13",
    ]


def test_without_options_it_counts_the_last_31_days_by_status(service: RunningService) -> None:
    lines = printed(service)
    assert [line.split()[:2] for line in lines] == [
        ["status", "leads"],
        ["new", "13"],
        ["contacted", "0"],
        ["converted", "0"],
        ["not_interested", "0"],
        ["total", "13"],
    ]
    found = shown(service)
    assert datetime.fromisoformat(found["from"]).date() == datetime.fromisoformat(found["to"]).date() - timedelta(30)
    assert found["groups"][0] == {"key": "LEAD_STATUS_NEW", "count": 13, "is_other": False}


def test_leads_without_a_value_and_a_value_called_other_keep_apart(service: RunningService) -> None:
    lines = printed(service, "--by", "assignee")
    assert [line.split()[0] for line in lines] == ["assignee", "(none)", "other", "total"]


def test_a_span_is_of_days_of_the_time_zone(service: RunningService) -> None:
    span = ("--by", "day", "--from", "2020-01-01", "--to", "2020-01-02")
    assert [(each["key"], each["count"]) for each in shown(service, *span)["groups"]] == [
        ("2020-01-01", 2),
        ("2020-01-02", 0),
    ]
    found = shown(service, *span, "--zone", "Asia/Dhaka")
    assert (found["from"], found["to"]) == ("2020-01-01T00:00:00+06:00", "2020-01-03T00:00:00+06:00")
    assert [each["count"] for each in found["groups"]] == [1, 1]


def test_a_day_without_dashes_is_that_day_to_its_end(service: RunningService) -> None:
    found = shown(service, "--from", "20200101", "--to", "20200101")
    assert (found["from"], found["to"]) == ("2020-01-01T00:00:00+00:00", "2020-01-02T00:00:00+00:00")


def test_a_span_may_be_of_moments(service: RunningService) -> None:
    assert shown(service, "--from", "2020-01-01T18:00Z", "--to", "2020-01-02T00:00:01+06:00")["total"] == 1
    assert shown(service, "--from", "2020-01-01T23:59", "--to", "2020-01-02", "--zone", "Asia/Dhaka")["total"] == 2


def test_no_value_commands_the_terminal(service: RunningService) -> None:
    lines = printed(service, "--by", "assignee", "--from", "2020-01-01", "--to", "2020-01-01")
    assert "\\u001b[31mred" in lines[2]
    assert all(line.isprintable() for line in lines)


def test_a_span_that_is_too_long_is_refused_by_the_service(service: RunningService) -> None:
    done = service.leadkeep_here("stats", "--from", "2020-01-01")
    assert (done.returncode, done.stdout) == (1, "")
    assert "400 days" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [["--by", "phone"], ["--zone", "Mars/Olympus"], ["--from", "yesterday"], ["--to", "0001-01-01T00:00:00+06:00"]],
)
def test_what_makes_no_sense_is_wrong_usage(wrong: list[str], service: RunningService) -> None:
    assert service.leadkeep_here("stats", *wrong).returncode == 2


def test_an_output_that_knows_no_blocks_gets_plain_bars(service: RunningService) -> None:
    done = service.leadkeep("stats", "--by", "source", env={"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == f"web        13  {'#' * 40}"
    assert done.stdout.isascii()


def test_today_is_counted_to_the_last_lead(service: RunningService) -> None:
    today = str(datetime.now(UTC).date())
    assert shown(service, "--by", "day")["groups"][-1] in (
        {"key": today, "count": 13, "is_other": False},
        {"key": str(datetime.now(UTC).date()), "count": 0, "is_other": False},  # it was midnight
    )
