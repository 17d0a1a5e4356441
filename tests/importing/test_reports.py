"""What a report counts, however long the file is."""

from __future__ import annotations

from pathlib import Path

from service.importing.reports import MANY_SHARING, Report, Result, RowResult


def test_a_lead_that_many_rows_share_stands_out_among_ever_new_duplicates(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.csv", None)
    for number in range(30_000):
        lead = "shared" if number % 100 == 0 else f"lead {number}"
        report.add(RowResult(number, Result.DUPLICATE, lead, "nid", (lead,)))
    report.close()
    (lead, rows), *others = report.shared_by_many.items()
    assert (lead, others) == ("shared", [])
    assert 290 < rows <= 300


def test_a_few_rows_that_share_a_lead_are_not_many(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.csv", None)
    for number in range(MANY_SHARING - 1):
        report.add(RowResult(number, Result.DUPLICATE, "lead", "nid", ("lead",)))
    assert report.shared_by_many == {}
    report.add(RowResult(MANY_SHARING, Result.DUPLICATE, "lead", "nid", ("lead",)))
    report.close()
    assert report.shared_by_many == {"lead": MANY_SHARING}
