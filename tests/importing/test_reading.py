"""Foreign files, read row by row."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from service.importing.csv_file import LONGEST_RECORD, CsvFile
from service.importing.json_file import DEEPEST, MOST_UNREADABLE, JsonFile
from service.importing.source import ImportRefusedError, Kind, Row, explicit_mapping, kind_of, resolve
from service.validation import ValidationService

HEADER = "name,phone,nid,address,interested_policy"
GOOD = "Rahima,+8801712345678,1990,1 Lake Road,Term"


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "leads"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_rows(folder: Path, content: str | bytes) -> list[Row]:
    return list(CsvFile(written(folder, content), {}))


def json_rows(folder: Path, content: str | bytes) -> list[Row]:
    return list(JsonFile(written(folder, content), {}))


# Which file is it


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"format":"leadkeep-daily-file","version":1', Kind.DAILY),
        ('  {\n "format" : "leadkeep-daily-file"', Kind.DAILY),
        ("[]", Kind.JSON),
        ('\ufeff[{"name": "x"}]', Kind.JSON),
        ('{"name": "x"}\n{"name": "y"}', Kind.JSON),
        (HEADER, Kind.CSV),
        ("\ufeff" + HEADER, Kind.CSV),
    ],
)
def test_a_file_is_known_by_its_content(content: str, kind: Kind, tmp_path: Path) -> None:
    assert kind_of(written(tmp_path, content)) is kind


def test_what_cannot_be_read_twice_is_refused() -> None:
    with pytest.raises(ImportRefusedError, match="a pipe will not do"):
        kind_of(Path("/dev/null"))


@pytest.mark.parametrize("content", [b"", b"  \n", HEADER.encode("utf-16-le"), b"PK\x03\x04\0\0"])
def test_what_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"empty|UTF-8"):
        kind_of(written(tmp_path, content))


# Columns


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("name", "name"),
        ("[name]", "name"),
        ("\ufeffName:", "name"),
        ("National ID *", "nid"),
        ("Full Name", "name"),
        ("PHONE", "phone"),
        ("Mobile-Number", "phone"),
        ("National ID", "nid"),
        ("Policy", "interested_policy"),
        ("interested policy", "interested_policy"),
        ("E-mail", "email"),
        (" Preferred_Contact Time ", "preferred_contact_time"),
        ("Conversation ID", "conversation_id"),
        ("shoe size", None),
        ("leadkeep_reason", None),
    ],
)
def test_a_header_is_known_in_any_spelling(header: str, field: str | None) -> None:
    assert resolve([header], {}) == ({} if field is None else {field: (0,)})


def test_the_operators_mapping_wins() -> None:
    mapping = explicit_mapping(["Customer no.=nid", "Kontakt=phone"])
    assert resolve(["customer no.", "Kontakt", "Phone"], mapping) == {"nid": (0,), "phone": (1,)}


@pytest.mark.parametrize("pair", ["nid", "=nid", "x=nobody", "x="])
def test_a_mapping_that_says_nothing_is_refused(pair: str) -> None:
    with pytest.raises(ImportRefusedError, match="--map"):
        explicit_mapping([pair])


def test_two_columns_for_one_field_are_refused() -> None:
    with pytest.raises(ImportRefusedError, match="several columns are phone"):
        resolve(["Phone", "Mobile"], {})


def test_a_mapping_of_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(ImportRefusedError, match="does not have"):
        resolve(["Phone"], {"other": "nid"})


def test_a_file_without_a_required_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match="no column for nid"):
        CsvFile(written(tmp_path, "name,phone,address,policy\n"), {})


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_comes_in_many_forms(delimiter: str, line_end: str, mark: str, tmp_path: Path) -> None:
    content = mark + line_end.join([HEADER, GOOD, ""]).replace(",", delimiter)
    (row,) = csv_rows(tmp_path, content)
    assert row.fault is None
    assert row.fields["name"] == "Rahima"
    assert row.fields["interested_policy"] == "Term"


@pytest.mark.parametrize("value", ['a "quoted" name', "two\nlines", "a,b", "back\\slash", "রহিমা", "\U0001f600"])
def test_a_quoted_cell_is_read_whole(value: str, tmp_path: Path) -> None:
    quoted = '"' + value.replace('"', '""') + '"'
    (row, after) = csv_rows(tmp_path, f"{HEADER}\n{quoted},1,2,3,4\n{GOOD}\n")
    assert row.fields["name"] == value
    assert after.fields["name"] == "Rahima"


def test_a_neutralised_cell_is_restored(tmp_path: Path) -> None:
    (row,) = csv_rows(tmp_path, f"{HEADER}\nR,'+8801712345678,1,2,3\n")
    assert row.fields["phone"] == "+8801712345678"


@pytest.mark.parametrize(
    "bad",
    [
        '"never closed,1,2,3,4',
        'never,"closed,1,2,3',
        "too,many,cells,in,this,row",
        'a"b"c,"x"y,1,2,3',
        "x" * (LONGEST_RECORD + 10) + ",1,2,3,4",
        '"' + "x" * (LONGEST_RECORD + 10) + '",1,2,3,4',
    ],
)
def test_a_bad_row_costs_only_itself(bad: str, tmp_path: Path) -> None:
    rows = csv_rows(tmp_path, f"{HEADER}\n{GOOD}\n{bad}\n{GOOD}\n{GOOD}\n")
    assert [row.fault is None for row in rows] == [True, False, True, True]
    assert [row.number for row in rows] == [2, 3, 4, 5]


def test_a_quote_inside_a_cell_is_a_character_like_others(tmp_path: Path) -> None:
    rows = csv_rows(tmp_path, f'{HEADER}\nBob 5",1,2,3,4\n{GOOD}\nEve 6",1,2,3,4\n')
    assert [row.fields["name"] for row in rows] == ['Bob 5"', "Rahima", 'Eve 6"']


@pytest.mark.parametrize(
    ("first", "last"),
    [('"Bob,1,2,3,4', 'Eve,"1,2,3,4'), ('"Bob,1,2,3,4', 'Eve,1,2,3,"'), ('Bob,"1,2,3,4', '"Eve,1,2,3,4')],
)
def test_two_quotes_that_are_not_closed_cost_only_their_own_rows(first: str, last: str, tmp_path: Path) -> None:
    rows = csv_rows(tmp_path, f"{HEADER}\n{first}\n{GOOD}\n{GOOD}\n{last}\n{GOOD}\n")
    assert [row.number for row in rows if row.fault is None] == [3, 4, 6]


def test_a_long_cell_that_looks_like_rows_is_one_cell(tmp_path: Path) -> None:
    (row, _) = csv_rows(tmp_path, f'{HEADER}\n"{GOOD}\n{GOOD}",1,2,3,4\n{GOOD}\n')
    assert row.fields["name"] == f"{GOOD}\n{GOOD}"


def test_a_header_may_come_behind_empty_lines(tmp_path: Path) -> None:
    assert [row.number for row in csv_rows(tmp_path, f"\n \n{HEADER}\n{GOOD}\n")] == [4]


def test_where_utf_8_is_insisted_on_other_bytes_cost_only_their_row(tmp_path: Path) -> None:
    content = f"{HEADER}\n{GOOD}\n".encode() + b"Ren\xe9,1,2,3,4\n" + f"{GOOD}\n".encode()
    rows = list(CsvFile(written(tmp_path, content), {}, encoding="utf8"))
    assert [row.fault for row in rows] == [None, "it is not UTF-8 text", None]


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    assert [row.number for row in csv_rows(tmp_path, f"{HEADER}\n\n{GOOD}\n   \n{GOOD}")] == [3, 5]


# JSON

LEAD = {"name": "Rahima", "phone": "+8801712345678", "nid": "1990", "address": "1 Lake Road", "policy": "Term"}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([LEAD, LEAD]),
        json.dumps([LEAD, LEAD], indent=4),
        json.dumps({"leads": [LEAD, LEAD]}),
        json.dumps({"name": "export", "count": 2, "at": None, "data": [LEAD, LEAD], "more": {"x": 1}}, indent=1),
        f"{json.dumps(LEAD)}\n{json.dumps(LEAD)}\n",
        "\ufeff" + json.dumps([LEAD, LEAD]),
    ],
)
def test_json_comes_in_many_forms(content: str, tmp_path: Path) -> None:
    rows = json_rows(tmp_path, content)
    assert [row.fields["interested_policy"] for row in rows] == ["Term", "Term"]
    assert [row.number for row in rows] == [1, 2]


def test_a_long_file_is_read_to_its_end(tmp_path: Path) -> None:
    content = json.dumps([LEAD | {"notes": "x" * (number % 3000)} for number in range(1000)], indent=1)
    rows = json_rows(tmp_path, content)
    assert [len(row.fields["notes"]) for row in rows] == [number % 3000 for number in range(1000)]


def test_an_integer_is_read_as_it_is_written_and_null_is_not_given(tmp_path: Path) -> None:
    (row,) = json_rows(tmp_path, json.dumps([LEAD | {"conversation_id": 1990123456789, "email": None}]))
    assert row.fields["conversation_id"] == "1990123456789"
    assert "email" not in row.fields


@pytest.mark.parametrize("name", ["phone", "nid"])
@pytest.mark.parametrize("number", ["1990123456789", "1.2e12", "123.0"])
def test_a_number_in_the_place_of_digits_is_refused(name: str, number: str, tmp_path: Path) -> None:
    (row,) = json_rows(tmp_path, json.dumps([LEAD | {name: "?"}]).replace('"?"', number))
    assert row.fault is not None
    assert "must be a string, in quotes" in row.fault


def test_an_optional_value_that_is_no_text_costs_no_lead(tmp_path: Path) -> None:
    (row,) = json_rows(tmp_path, json.dumps([LEAD | {"notes": ["x"]}]))
    fields, ignored, _ = ValidationService().submission(row.fields)
    assert (fields.notes, ignored) == (None, ("notes",))


@pytest.mark.parametrize("bad", ["[1, 2]", "17", '"text"', '{"name": ["x"]}', '{"name": 1.5}', '{"name": "\\ud800"}'])
def test_a_value_that_is_no_lead_costs_only_itself(bad: str, tmp_path: Path) -> None:
    rows = json_rows(tmp_path, f"[{json.dumps(LEAD)},{bad},{json.dumps(LEAD)}]")
    assert [row.fault is None for row in rows] == [True, False, True]


def test_a_lead_with_a_list_of_its_own_wraps_nothing(tmp_path: Path) -> None:
    lead = json.dumps(LEAD | {"items": [{"name": "shoe"}]})
    assert [row.fields["name"] for row in json_rows(tmp_path, f"{lead}\n{lead}")] == ["Rahima", "Rahima"]


@pytest.mark.parametrize("bad", ["{broken}", "[" * 100_000, '{"nid": ' + "9" * 5000 + "}"])
def test_what_is_no_json_in_a_list_on_one_line_costs_only_itself(bad: str, tmp_path: Path) -> None:
    rows = json_rows(tmp_path, f"[{json.dumps(LEAD)},{bad},{json.dumps(LEAD)},{json.dumps(LEAD)}]".replace("[,", "["))
    assert [row.fault is None for row in rows][:2] == [True, False]
    assert [row.fault is None for row in rows].count(True) >= 2


@pytest.mark.parametrize("end", ["", ",", ", "])
def test_a_list_that_was_cut_off_is_told(end: str, tmp_path: Path) -> None:
    rows = json_rows(tmp_path, f"[{json.dumps(LEAD)}{end}")
    assert [row.fault for row in rows] == [None, "the file ends before its list does: it was cut off"]


def test_what_follows_a_list_is_told(tmp_path: Path) -> None:
    rows = json_rows(tmp_path, f"[{json.dumps(LEAD)}]\n[{json.dumps(LEAD)}]")
    assert [row.fault for row in rows] == [None, "it is not an object"]


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    assert json_rows(tmp_path, "[]") == []


@pytest.mark.parametrize("bad", ["{broken}", '{"name": "x"', "nonsense", '{"name": "' + "x" * 300_000 + "}"])
def test_a_line_that_is_no_json_costs_only_itself(bad: str, tmp_path: Path) -> None:
    rows = json_rows(tmp_path, f"{json.dumps(LEAD)}\n{bad}\n{json.dumps(LEAD)}\n")
    assert [row.fault is None for row in rows] == [True, False, True]


@pytest.mark.parametrize(
    "content",
    [
        '{"a":\n' * 100_000,
        '{"a":' * 100_000,
        '[{"a":[\n' * 100_000,
        '{"a\n' * 100_000,
        '{"a":]\n' * 100_000,
        '[{"name": "ok"},\n' + '{"a":[{}],\n' * 100_000,
    ],
)
def test_a_file_that_is_no_json_is_not_read_to_its_end(content: str, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text('{"name": "first"}\n' + content)
    rows = list(JsonFile(path, {}))
    assert rows[0].fault is None
    assert len(rows) < MOST_UNREADABLE + 10
    assert sum(row.fault is None for row in rows) <= 2


OBJECT = '{"name": "good"}'


@pytest.mark.parametrize(
    "content",
    [
        "[" + "1," * 60_000 + OBJECT + "]",
        OBJECT + "\n" + "null\n" * 60_000,
        "{" + '\\"' * 100_000,
        "[" + OBJECT + ",{" + '\\"' * 100_000,
        "{" + " " * 199_000 + "@",
        '{"leads"' + "\t" * 190_000 + "@",
        OBJECT + "\n{x" + "\n" * 190_000 + "@",
        "[" + OBJECT + ",{x" + "\n " * 100_000 + "@",
        "{" + ",".join(f'"{dash * n}tel{dash * m}": 1' for dash in " -_./" for n in range(60) for m in range(60)) + "}",
    ],
    ids=range(9),
)
def test_no_text_costs_more_than_its_length(content: str, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text(content)
    began = time.process_time()
    with suppress(ImportRefusedError):
        assert sum(1 for _ in JsonFile(path, {})) > 0
    assert time.process_time() - began < 5


def test_a_value_that_is_cut_by_the_end_of_what_was_read_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    lead = json.dumps({"name": "x", "notes": "[" * 150_000})
    path.write_text("\n".join([OBJECT] * 6000 + [lead, OBJECT]))
    assert [row.fault for row in JsonFile(path, {})] == [None] * 6002


@pytest.mark.parametrize("header", ["tel," * 24_000 + "name", "a," * 49_000])
def test_a_fault_of_thousands_of_columns_is_told_in_few_words(header: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(ImportRefusedError) as refused:
        csv_rows(tmp_path, header + "\n")
    assert len(str(refused.value)) < 1000
    assert time.process_time() - began < 5


def test_a_short_row_costs_no_more_for_thousands_of_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "name," + "b," * 40_000 + "\n" + "x\n" * 20_000)
    began = time.process_time()
    rows = list(CsvFile(path, {}, ["name"]))
    assert time.process_time() - began < 5
    assert (len(rows), rows[0].original) == (20_000, ["x"])


def test_broken_lines_among_good_ones_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text('{"name": "good"}\n{"name":\n' * 3000)
    assert sum(row.fault is None for row in JsonFile(path, {})) == 3000


@pytest.mark.parametrize(("depth", "fault"), [(DEEPEST - 2, None), (DEEPEST + 1, "it is not JSON, or too long")])
def test_an_object_is_nested_to_a_bound(depth: int, fault: str | None, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text('{"name": "x", "more": ' + "[" * depth + "]" * depth + "}\n" + '{"name": "y"}\n')
    assert [row.fault for row in JsonFile(path, {})] == [fault, None]


@pytest.mark.parametrize("twice", ['{"name": "x", "name": "y"}', '{"name": "x", "more": 1, "name": null}'])
def test_an_object_in_which_a_name_stands_twice_is_refused(twice: str, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text(f'[{{"name": "before"}}, {twice}, {{"name": "after"}}]')
    assert [row.fault for row in JsonFile(path, {})] == [None, "a name stands twice in it", None]


def test_brackets_within_text_are_no_nesting(tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text(json.dumps([{"name": "[{" * 50 + '\\"[', "notes": "]"}]))
    assert [row.fault for row in JsonFile(path, {})] == [None]
