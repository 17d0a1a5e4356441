"""Files as spreadsheets, CRMs and ad platforms write them: whatever the form, the same leads are read."""

from __future__ import annotations

import codecs
import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.importing.csv_file import CsvFile, neutralised
from service.importing.json_file import JsonFile
from service.importing.source import ImportRefusedError, Kind, explicit_mapping, kind_of

HEADERS = ["name", "phone", "nid", "address", "interested_policy", "email"]
LEAD = dict(
    zip(HEADERS, ["Rahima", "+8801712345678", "0190012345", "1 Lake Road", "Term", "r@example.com"], strict=True)
)
LINE = ",".join(LEAD.values())
TABLE = f"{','.join(HEADERS)}\n{LINE}\n"


def read(
    folder: Path, content: str | bytes, *pairs: str, encoding: str | None = None, delimiter: str | None = None
) -> list[dict[str, str]]:
    """The fields of each row; none may be faulty."""
    path = folder / "leads"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    mapping = explicit_mapping(pairs)
    if kind_of(path, encoding) is Kind.JSON:
        rows = list(JsonFile(path, mapping, encoding=encoding))
    else:
        rows = list(CsvFile(path, mapping, encoding=encoding, delimiter=delimiter))
    assert [row.fault for row in rows] == [None] * len(rows)
    return [dict(row.fields) for row in rows]


# Every form of a table

TEXTS = st.text(
    st.sampled_from(["a", "é", "Ñ", "7", "-", "+", "=", "@", "'", '"', ",", ";", "\t", "|", " ", "\n", "#", ":", "["]),
    min_size=1,
    max_size=8,
).map(lambda text: f"x{text}z")
"""What a cell may hold besides letters, between letters, so that a form may add blanks around it."""

LEADS = st.fixed_dictionaries(
    {
        "name": TEXTS,
        "phone": st.integers(10_000_000, 99_999_999).map(lambda digits: f"+88017{digits}"),
        "nid": st.integers(0, 9_999_999_999).map(lambda digits: f"{digits:010d}"),
        "address": TEXTS,
        "interested_policy": st.just("Term Life"),
        "email": st.sampled_from(["a@example.com", ""]),
    }
)


@st.composite
def files(draw: st.DrawFn, rows: list[dict[str, str]]) -> bytes:
    """A table in one of the forms in which programs write it."""
    delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoting = draw(st.sampled_from(["all", "where needed", "behind blanks", "between blanks"]))
    guard = draw(st.sampled_from(["none", "formulas", "apostrophes", "neutralised"]))
    ragged = draw(st.sampled_from(["as wide", "shorter", "longer"]))
    blank = draw(st.sampled_from([None, "", delimiter * 5, f" {delimiter} ", '""' + delimiter + '""']))
    encoding, marks = draw(
        st.sampled_from(
            [
                ("utf-8", b""),
                ("utf-8", codecs.BOM_UTF8),
                ("utf-8", codecs.BOM_UTF8 * 2),
                ("utf-16-le", codecs.BOM_UTF16_LE),
                ("utf-16-be", codecs.BOM_UTF16_BE),
            ]
        )
    )

    def cell(text: str, *, is_digits: bool) -> str:
        if is_digits and guard == "formulas":
            text = f'="{text}"'
        elif is_digits and guard == "apostrophes":
            text = "'" + text
        elif guard == "neutralised":
            text = neutralised(text)
        if quoting == "where needed" and not any(each in text for each in (delimiter, '"', "\r", "\n")):
            return text
        quoted = '"' + text.replace('"', '""') + '"'
        return {"behind blanks": f"  {quoted}", "between blanks": f" {quoted} "}.get(quoting, quoted)

    lines = [delimiter.join(cell(header, is_digits=False) for header in HEADERS)]
    if draw(st.booleans()):
        lines.insert(0, f"sep={delimiter}")
    for row in rows:
        cells = [cell(row[header], is_digits=header in {"phone", "nid"}) for header in HEADERS]
        if ragged == "shorter" and row["email"] == "":
            cells.pop()
        elif ragged == "longer":
            cells += ["", ""]
        lines.append(delimiter.join(cells))
        if blank is not None:
            lines.append(blank)
    # Within a cell a line break is the program's own.
    return marks + (end.join(lines) + end).encode(encoding)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), rows=st.lists(LEADS, min_size=1, max_size=4))
def test_a_table_reads_the_same_in_every_form(data: st.DataObject, rows: list[dict[str, str]], tmp_path: Path) -> None:
    assert read(tmp_path, data.draw(files(rows))) == rows


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    encoding=st.sampled_from(["cp1252", "iso-8859-15", "latin-1", "utf-16-le", "utf-8"]),
    delimiter=st.sampled_from("~^:#"),
    rows=st.lists(LEADS, min_size=1, max_size=3),
)
def test_what_the_operator_insists_on_is_obeyed(
    encoding: str, delimiter: str, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    lines = [delimiter.join('"' + row[each].replace('"', '""') + '"' for each in HEADERS) for row in rows]
    content = "\n".join([delimiter.join(HEADERS), *lines]).encode(encoding)
    assert read(tmp_path, content, encoding=encoding, delimiter=delimiter) == rows


# Encodings


@pytest.mark.parametrize(
    ("content", "encoding", "line"),
    [
        (f"{','.join(HEADERS)}\n{LINE}\nJosé,1,2,3,4,5\n".encode("cp1252"), None, 3),
        (",".join([*HEADERS, "Teléfono"]).encode("cp1252") + f"\n{LINE},\n".encode(), None, 1),
        (f"{','.join(HEADERS)}\n{LINE}\n".encode() + b"\x81,1,2,3,4,5\n", "cp1252", 3),
        (codecs.BOM_UTF16_LE + f"{','.join(HEADERS)}\n{LINE}\n".encode("utf-16-le")[:-1], None, 3),
        (b'[{"name": "Jos\xe9"}]', None, 1),
        (f"{','.join(HEADERS)}\n".encode() + f"{LINE}\n".encode() * 50_000 + b"\xff", None, 50_002),
    ],
)
def test_a_file_with_bytes_that_are_no_text_is_refused_whole(
    content: bytes, encoding: str | None, line: int, tmp_path: Path
) -> None:
    with pytest.raises(ImportRefusedError, match=rf"first in line {line}: (name its|name another) .*encoding"):
        read(tmp_path, content, encoding=encoding)


@pytest.mark.parametrize("encoding", ["rot13", "hex", "klingon", "undefined", "", "\0"])
def test_what_is_no_encoding_of_text_is_refused(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match="--encoding names no encoding"):
        read(tmp_path, f"{','.join(HEADERS)}\n{LINE}\n", encoding=encoding)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (TABLE.encode("utf-16-le"), "--encoding utf-16-le"),
        (TABLE.encode("utf-16-be"), "--encoding utf-16-be"),
        (TABLE.replace("Rahima", "রহিমা বেগম" * 20).encode("utf-16-be"), "--encoding utf-16-be"),
        (TABLE.replace("Lake", "La\0ke").encode(), "NUL bytes: save it .* only the rows with such bytes"),
        (gzip.compress(TABLE.encode()), "gunzip"),
        (b"PK\x03\x04\x14\0\x06\0\x08\0[Content_Types].xml", "workbook of a spreadsheet.* save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old spreadsheet: save it as CSV"),
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "a PDF: save it as CSV"),
    ],
)
def test_what_is_no_utf_8_is_refused_with_what_to_do(content: bytes, advice: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=advice):
        read(tmp_path, content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf16", "UTF-32"])
def test_the_order_of_bytes_has_to_be_named_where_no_mark_names_it(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"name the order, utf-\d\d-le or utf-\d\d-be"):
        read(tmp_path, TABLE.encode("utf-16-le"), encoding=encoding)
    assert read(tmp_path, TABLE.encode("utf-16"), encoding="utf-16") == [LEAD]


def test_nul_bytes_cost_only_their_rows_where_utf_8_is_insisted_on(tmp_path: Path) -> None:
    content = f"{TABLE}{LINE.replace('Rahima', chr(0))}\n{LINE}\n"
    assert [lead["name"] for lead in read(tmp_path, content, encoding="utf-8")] == ["Rahima", "\0", "Rahima"]


def test_a_byte_order_mark_counts_before_what_is_insisted_on(tmp_path: Path) -> None:
    content = f"\ufeff{','.join(HEADERS)}\nJosé,1,2,3,4,5\n"
    assert read(tmp_path, content, encoding="cp1252")[0]["name"] == "José"


def test_headers_with_accents_are_mapped_in_either_composition(tmp_path: Path) -> None:
    content = f"{','.join(HEADERS[:-1])},Corre\u0301o\n{LINE}\n"
    assert read(tmp_path, content, "CORRÉO=email") == [LEAD]


def test_json_is_read_in_utf_16_too(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps([LEAD]).encode("utf-16")) == [LEAD]


# Delimiters


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_commas_in_a_header_do_not_count_as_columns(delimiter: str, tmp_path: Path) -> None:
    question = "what, when, where, why, how, who, and for how much?"
    for asked in (question, f'"{question}"', f'"{question}\n, and why?"'):
        header = delimiter.join([*HEADERS, asked])
        content = f"{header}\n{delimiter.join([*LEAD.values(), 'yes'])}\n"
        assert read(tmp_path, content) == [LEAD], asked


def test_a_hint_does_not_beat_what_is_insisted_on(tmp_path: Path) -> None:
    assert read(tmp_path, f"sep=;\n{','.join(HEADERS)}\n{LINE}\n", delimiter=",") == [LEAD]


# Cells


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('="0123"', "0123"),
        ("'0123", "0123"),
        ("'+880 17", "+880 17"),
        ("'t Hooft", "'t Hooft"),
        ("''0123", "'0123"),
        ('\'="0123"', '="0123"'),
        ("'80s music", "'80s music"),
        ('=HYPERLINK("x")', '=HYPERLINK("x")'),
        ('"=""a """"b"""""""', 'a "b"'),
    ],
)
def test_a_guard_is_taken_off_and_nothing_else(cell: str, value: str, tmp_path: Path) -> None:
    content = f"{','.join(HEADERS)}\n{cell},+8801712345678,1990,1 Lake Road,Term,\n"
    assert read(tmp_path, content)[0]["name"] == value


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ("p:+8801712345678", "phone", "+8801712345678"),
        ("'p:+8801712345678", "phone", "+8801712345678"),
        ("P:8801712345678", "phone", "8801712345678"),
        ("'AB1990", "nid", "AB1990"),
        ("l:12345678900", "conversation_id", "12345678900"),
        ("l:abc", "conversation_id", "l:abc"),
        ("z:1207", "address", "1207"),
    ],
)
def test_the_marks_of_ad_platforms_are_no_part_of_a_value(written: str, field: str, value: str, tmp_path: Path) -> None:
    lead = LEAD | {field: written}
    content = f"{','.join(lead)}\n{','.join(lead.values())}\n"
    assert read(tmp_path, content)[0][field] == value
    assert read(tmp_path, json.dumps([lead]))[0][field] == value


def test_the_end_mark_of_old_programs_is_no_row(tmp_path: Path) -> None:
    assert read(tmp_path, TABLE + "\x1a") == [LEAD]


def test_a_value_beyond_the_last_column_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "leads.csv"
    path.write_text(f"{','.join(HEADERS)}\n{LINE},,surplus\n{LINE},,\n")
    assert [row.fault for row in CsvFile(path, {})] == ["it has 8 cells, the header has 6", None]


# Columns


def test_a_field_may_be_joined_from_several_columns_in_any_order(tmp_path: Path) -> None:
    header = "Last Name,Phone,National ID,Street,City,Zip,Policy,First Name"
    row = "Khatun,+8801712345678,1990,1 Lake Road,,z:1207,Term, Rahima "
    (lead,) = read(tmp_path, f"{header}\n{row}\n", "first name + LAST_NAME=name", "Street+City+Zip=address")
    assert (lead["name"], lead["address"]) == ("Rahima Khatun", "1 Lake Road, 1207")


def test_json_fields_may_be_joined_too_and_one_part_may_lack(tmp_path: Path) -> None:
    rest = {name: value for name, value in LEAD.items() if name != "name"}
    content = json.dumps([rest | {"first": "Rahima", "last": "Khatun"}, rest | {"first": "Only"}])
    assert [lead["name"] for lead in read(tmp_path, content, "first+last=name")] == ["Rahima Khatun", "Only"]


def test_a_header_with_a_plus_is_found_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, f"Name+Title,{','.join(HEADERS[1:])}\n{LINE}\n", "Name+Title=name") == [LEAD]


@pytest.mark.parametrize("pairs", [(), ("phone=phone",)])
def test_the_advice_about_a_header_that_stands_twice_works(pairs: tuple[str, ...], tmp_path: Path) -> None:
    content = f"name,phone,phone,{','.join(HEADERS[2:])}\nRahima,,{','.join(list(LEAD.values())[1:])}\n"
    with pytest.raises(ImportRefusedError, match=r'#2 phone, #3 phone\): choose one .* --map "#2=phone"'):
        read(tmp_path, content, *pairs)
    assert read(tmp_path, content, "#3=phone") == [LEAD]
    rejects = "\n".join(f"leadkeep_reason,{line}" for line in content.splitlines())
    assert read(tmp_path, rejects, "#3=phone") == [LEAD]


@pytest.mark.parametrize("pair", ["#0=phone", "#7=phone", "First+Last=name", "Teléfono=phone"])
def test_a_column_that_is_not_there_is_named_as_it_was_written(pair: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=f"does not have: {pair.partition('=')[0].partition('+')[0]}"):
        read(tmp_path, f"{','.join(HEADERS)}\n{LINE}\n", pair)


def test_one_field_named_twice_is_refused() -> None:
    with pytest.raises(ImportRefusedError, match=r'join two, --map "A\+B=name"'):
        explicit_mapping(["First=name", "Last=name"])


EXPORTS = {
    "Meta lead ads": "id,created_time,ad_id,ad_name,form_id,form_name,is_organic,platform,full_name,phone_number,email,"
    "street_address,national_id,lead_status",
    "Google Ads lead forms": "Lead ID,Form name,Campaign name,Full name,Email,Phone number,Street address,City,"
    "Postal code,National ID,Submission time",
    "HubSpot contacts": "Record ID,First Name,Last Name,Email,Phone Number,Mobile Phone Number,Street Address,City,"
    "Postal Code,Lead Status,National ID,Policy,Create Date",
    "Salesforce leads": "Id,LastName,FirstName,Company,Street,City,PostalCode,Country,Phone,MobilePhone,Email,"
    "LeadSource,Status,Description,National_ID__c,Policy__c",
}
"""The columns of usual exports."""


@pytest.mark.parametrize("export", EXPORTS)
def test_the_documented_options_read_the_usual_exports(export: str, tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "import-export.md").read_text()
    (line,) = (line for line in docs.splitlines() if line.startswith(f"| {export} |"))
    headers = EXPORTS[export].split(",")
    cells = ["p:+8801712345678" if "phone" in header.casefold() else header for header in headers]
    (lead,) = read(tmp_path, f"{','.join(headers)}\n{','.join(cells)}\n", *re.findall(r'--map "([^"]+)"', line))
    assert lead["phone"] == "+8801712345678"
    assert lead.keys() >= {"name", "nid", "address", "interested_policy", "email"}
    assert "First" not in lead["name"] or lead["name"].casefold().replace(" ", "") == "firstnamelastname"


# JSON


@pytest.mark.parametrize(
    "wrapped",
    [
        {"meta": {"total": 1, "fields": ["a"]}, "leads": [LEAD]},
        {"status": "ok", "result": {"leads": [LEAD]}},
        {"account": {"phone": "+1", "name": "x"}, "tags": ["a", {"leads": [1]}], "data": {"Records": [LEAD]}, "x": {}},
        {"data": ["no", "leads"], "contacts": [LEAD]},
        {"description": "x" * 100_000, "leads": [LEAD]},
        {"contacts": [], "leads": [LEAD]},
        {"data": {"rows": []}, "leads": [LEAD]},
    ],
)
def test_a_list_of_leads_is_found_inside_objects(wrapped: object, tmp_path: Path) -> None:
    for indent in (None, 2):
        assert read(tmp_path, json.dumps(wrapped, indent=indent)) == [LEAD]


def test_a_lead_with_a_list_before_or_behind_its_phone_wraps_nothing(tmp_path: Path) -> None:
    lead = LEAD | {"history": {"items": [{"name": "shoe"}]}}
    assert read(tmp_path, json.dumps(lead)) == [LEAD]
    for empty in ('"items": []', '"cart": {"items": []}'):
        line = f"{{{empty}, {json.dumps(LEAD)[1:]}"
        assert read(tmp_path, f"{line}\n{line}\n") == [LEAD, LEAD]
        assert read(tmp_path, line.replace("phone", "Handy"), "handy=phone") == [LEAD]


@pytest.mark.parametrize(
    "content",
    [
        {"value": [LEAD]},
        [{"id": "1", "properties": LEAD}],
        [{"field_data": [{"name": "full_name", "values": ["Rahima"]}]}],
        {"-Nx1": LEAD, "-Nx2": LEAD},
        {"columns": list(LEAD), "rows": [list(LEAD.values())]},
    ],
)
def test_an_object_without_any_field_is_refused_with_what_to_do(content: object, tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    path.write_text(json.dumps(content))
    (row,) = JsonFile(path, {})
    assert "name them with --map" in str(row.fault)
    assert "import these alone" in str(row.fault)


def test_an_empty_list_of_leads_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps({"total": 0, "leads": [], "errors": [{"code": 1}]})) == []


def test_a_second_list_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "leads.json"
    for behind in ({"leads": [LEAD]}, LEAD, {"data": LEAD}):
        path.write_text(json.dumps({"leads": [LEAD], "page": {"n": 1}}) + "\n" + json.dumps(behind))
        assert [row.fault is None for row in JsonFile(path, {})] == [True, False]
