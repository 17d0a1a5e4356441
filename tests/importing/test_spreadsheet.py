"""Cells that a spreadsheet would execute."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.importing.csv_file import DANGEROUS, UNSEEN, neutralised, restored


@pytest.mark.parametrize(
    "cell",
    [
        *("=1+1", "+880", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "  =1"),
        *("\uff1d1", "\uff0b1", "\ufe661", "\ufe631", "\u22121"),
        *("\u200b=1", "\ufeff=1", "\xa0=1", "\u3000@x", " \u202a+880", "\u2060\u200e\uff1d1", "\u2029-1"),
    ],
)
def test_a_formula_is_neutralised(cell: str) -> None:
    assert neutralised(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["", "Rahima", "1+1", "a=b", "x@y.z", "রহিমা", "O'Neill"])
def test_what_is_no_formula_stays_as_it_is(cell: str) -> None:
    assert neutralised(cell) == cell


@given(st.text(st.sampled_from([*"'= +-@a\u200b\ufeff", *DANGEROUS]), max_size=6) | st.text())
def test_every_cell_comes_back(cell: str) -> None:
    assert restored(neutralised(cell)) == cell
    assert not re.match(f"[{UNSEEN}]*[{re.escape(''.join(DANGEROUS))}]", neutralised(cell))


@pytest.mark.parametrize("cell", ["'t Hooft", "'", "O'Neill"])
def test_a_foreign_apostrophe_is_kept(cell: str) -> None:
    assert restored(cell) == cell
