"""Values that people, platforms and spreadsheets really send: each is read right, or refused with its reason."""

from __future__ import annotations

import pytest

from service.errors import LeadValidationError
from service.lead import REQUIRED_FIELDS
from service.validation import ValidationService

PERSON = {
    "name": "Rahima",
    "phone": "+8801712345678",
    "nid": "1990123456789",
    "address": "1 Lake Road",
    "interested_policy": "Term",
}


def refusal(name: str, value: str, *, region: str | None = None) -> str:
    service = ValidationService(default_region=region)
    with pytest.raises(LeadValidationError) as refused:
        service.submission({**PERSON, name: value})
    [violation] = refused.value.violations
    assert violation.field == f"lead.{name}"
    return violation.description


@pytest.mark.parametrize("name", ["phone", "nid"])
@pytest.mark.parametrize(
    "value", ["8801712345678.0", "8801712345678.00", "8.8E+12", "1.2E12", "8,8e+12", "8801712345678,0", "880,171,234"]
)
def test_a_number_that_a_spreadsheet_has_rewritten_is_refused_as_such(name: str, value: str) -> None:
    assert refusal(name, value).startswith("was rewritten by a spreadsheet")


@pytest.mark.parametrize("value", ["+8801712345678.0", "+1.201.555.0147.0", "+1234567890.0"])
def test_decimals_of_a_number_with_its_plus_are_a_spreadsheets_too(value: str) -> None:
    assert refusal("phone", value).startswith("was rewritten by a spreadsheet")


@pytest.mark.parametrize("region", [None, "BD"])
@pytest.mark.parametrize(
    "value",
    [
        "+8801712345601 (1)",
        "+12015550123 / 24",
        "+12015550151 24/7",
        "+49 30 123456-0",
        "+47 22 12 34 56 / 57",
        "+47 22123456 / 3457",
        "+1234567890 (2)",
        "+1234567890/24",
        "+1234567890-0",
        "+8801712345678.5",
        "+8801712345601 2",
        "+8801712345601（1）",  # as a Chinese keyboard types them
    ],
)
def test_what_follows_a_phone_number_is_no_part_of_it(value: str, region: str | None) -> None:
    assert refusal("phone", value, region=region).startswith("holds more than one phone number")


@pytest.mark.parametrize("region", [None, "BD"])
@pytest.mark.parametrize("between", [" ", "/", " / ", "-", "\n", ", ", ";", " or ", " অথবা ", "|", " & "])
@pytest.mark.parametrize(
    ("one", "other"),
    [("01712345678", "01812345678"), ("+8801712345678", "8801812345678"), ("+8801712345678", "+12015550123")],
)
def test_two_phone_numbers_are_said_to_be_two(one: str, other: str, between: str, region: str | None) -> None:
    with pytest.raises(LeadValidationError) as refused:
        ValidationService(default_region=region).submission({**PERSON, "phone": one + between + other})
    is_read_alone = one.startswith("+") or region is not None or between.strip() not in {"", "/", "-"}
    assert refused.value.violations[0].reason == ("MORE_THAN_ONE" if is_read_alone else "NO_COUNTRY_CODE")


@pytest.mark.parametrize(
    "value",
    [
        "1234567890 (1)",
        "1234567890 / 24",
        "1234567890/17",
        "1234567890x12",
        "1990123456789.5",
        "1990123456789 / 1234567890",
        "1990-1234-56789 / 12345-67890",
        "1990123456789 1234567890",
        "1990123456789\n1234567890",
        "1990123456789 or 1234567890",
        "1990123456789 (old)",
        "A12345678 (পাসপোর্ট)",
    ],
)
def test_what_follows_a_national_id_is_no_part_of_it(value: str) -> None:
    assert refusal("nid", value).startswith("holds more than a national ID")


@pytest.mark.parametrize(
    "value",
    [
        "NID: 1990123456789",
        "NID 1990123456789",
        "nid-1990123456789",
        "My NID is 1990123456789",
        "National ID No. 1990123456789",
        "passport A1234567",
        "DNI: 12345678Z",
        "এনআইডি： ১৯৯০১২৩৪৫৬৭৮৯",
        "身份证: 11010519491231002X",
    ],
)
def test_what_a_national_id_is_called_is_no_part_of_it(value: str) -> None:
    assert refusal("nid", value).startswith("holds more than a national ID")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("GHA-123456789-0", "GHA1234567890"),
        ("RSS MRA 85T10 A562S", "RSSMRA85T10A562S"),
        ("12/OUKAMA(NAING)123456", "12OUKAMANAING123456"),
        ("ABC 1234567", "ABC1234567"),
        ("123456/78/1", "123456781"),
        ("1234567(8)", "12345678"),
        ("19900517-1234", "199005171234"),
        ("HEGG560427MVZRRX04", "HEGG560427MVZRRX04"),
        ("X1234567L", "X1234567L"),
    ],
)
def test_a_national_id_that_looks_odd_to_strangers_is_kept(value: str, kept: str) -> None:
    assert ValidationService().submission({**PERSON, "nid": value}).fields.nid == kept


@pytest.mark.parametrize("name", ["phone", "nid"])
@pytest.mark.parametrize(
    "value",
    ["1990-05-17", "17/05/1990", "5.17.1990", "১৯৯০-০৫-১৭", "1990-05-17 00:00:00", "1990-05-17T00:00:00.0Z", "5/7/90"],
)
def test_a_date_is_no_number_of_a_person(name: str, value: str) -> None:
    assert refusal(name, value, region="DE").startswith("is a date, not a")


@pytest.mark.parametrize("value", ["XXXX XXXX 9012", "xxx-xx-1234", "XXXXXX123V", "ABXXXXXX4F"])
def test_a_national_id_that_another_program_masked_is_a_placeholder(value: str) -> None:
    assert refusal("nid", value).startswith("is a placeholder, not a national ID")


# Full-width and Bengali zeros among them.
PLACEHOLDERS = """none|NULL|nil|undefined|unknown|not provided|Not provided.|N/A|N/A N/A|#N/A|\\N|
NaN|skip|-|?|xxxx|true|
no tengo|sin DNI|no aplica|ninguno|desconocido|não tenho|não informado|aucun|néant|inconnu|keine Angabe|unbekannt|
nessuno|geen|onbekend|brak|nie mam|yok|bilinmiyor|нет|не указан|немає|tidak ada|belum ada|không có|wala|hakuna|ingen|
নাই|নেই|জানি না|नहीं|पता नहीं|உங்களுக்கு இல்லை|لا يوجد|غير معروف|نہیں|ندارم|אין|ไม่มี|なし|不明|没有|未知|없음|
0000000000|1111111111|000-00-0000|9999999999999|\uff10\uff10\uff10\uff10\uff10\uff10\uff10|০০০০০০০০০০"""


@pytest.mark.parametrize("name", ["phone", "nid"])
@pytest.mark.parametrize("value", [each.strip() for each in PLACEHOLDERS.split("|")])
def test_a_placeholder_of_any_language_is_refused_as_such(name: str, value: str) -> None:
    assert refusal(name, value).startswith("is a placeholder, not a")


@pytest.mark.parametrize(
    "value", ["+11111111111", "+1 0000000000", "+8800000000000", "+880 1111111111", "+77777777777"]
)
def test_a_phone_number_of_one_repeated_digit_is_a_placeholder(value: str) -> None:
    assert refusal("phone", value).startswith("is a placeholder, not a phone number")


@pytest.mark.parametrize("value", ["447911123456", "14155551234", "919876543210"])
def test_digits_of_another_country_get_no_country_code_of_the_region(value: str) -> None:
    service = ValidationService(default_region="BD")

    assert "send phone_region 001" in refusal("phone", value, region="BD")
    assert service.submission({**PERSON, "phone": value}, phone_region="001").fields.phone == f"+{value}"


@pytest.mark.parametrize("region", [None, "BD", "US"])
def test_the_region_of_a_call_comes_before_the_services_own(region: str | None) -> None:
    service = ValidationService(default_region=region)

    assert service.submission({**PERSON, "phone": "07911 123456"}, phone_region="gb").fields.phone == "+447911123456"
    assert service.correction({"phone": "8801712345678"}, phone_region="001") == {"phone": "+8801712345678"}


@pytest.mark.parametrize("value", ["XX", "0", "1", "BDX", "BD\x00"])
def test_a_region_that_is_none_is_refused_alone(value: str) -> None:
    with pytest.raises(LeadValidationError) as refused:
        ValidationService().submission({**PERSON, "phone": "01712345678"}, phone_region=value)

    assert [violation.field for violation in refused.value.violations] == ["phone_region"]


@pytest.mark.parametrize(
    "value",
    [
        "tel:+8801712345678",
        "TEL:+880-1712-345678",
        "sms:+8801712345678",
        "whatsapp:+8801712345678",
        "whatsapp:8801712345678",
        "8801712345678@c.us",
        "8801712345678@s.whatsapp.net",
        "8801712345678:12@s.whatsapp.net",
        "wa.me/8801712345678",
        "https://wa.me/8801712345678?text=hello%20there",
        "https://api.whatsapp.com/send/?phone=%2B8801712345678&text=hi",
        "whatsapp://send?phone=8801712345678",
        "\u202atel:+8801712345678\u202c",
    ],
)
@pytest.mark.parametrize("region", [None, "US"])
def test_an_address_of_a_phone_is_read(value: str, region: str | None) -> None:
    service = ValidationService(default_region=region)

    assert service.submission({**PERSON, "phone": value}).fields.phone == "+8801712345678"


@pytest.mark.parametrize("rule", ["e164", "valid"])
@pytest.mark.parametrize(
    ("region", "wa_id", "today"), [("MX", "5215512345678", "+525512345678"), ("BR", "558299448232", "+5582999448232")]
)
def test_whatsapps_form_of_a_number_is_read_by_every_rule_and_in_its_own_region(
    region: str, wa_id: str, today: str, rule: str
) -> None:
    own = ValidationService(default_region=region, phone_rule=rule)
    for value in (wa_id, f"+{wa_id}", f"{wa_id}@c.us"):
        assert own.submission({**PERSON, "phone": value}).fields.phone == f"+{wa_id}"
    index_rule = own.index_rules[own.normaliser_identity]
    assert index_rule.phone_key(f"+{wa_id}") == index_rule.phone_key(today)
    elsewhere = ValidationService(default_region="BD", phone_rule=rule)
    with pytest.raises(LeadValidationError):
        elsewhere.submission({**PERSON, "phone": wa_id})


@pytest.mark.parametrize(("region", "value"), [("MX", "14482065814"), ("BR", "3593600229")])
def test_a_former_form_is_read_behind_its_country_code_only(region: str, value: str) -> None:
    assert "region" in refusal("phone", value, region=region)


@pytest.mark.parametrize("value", ["+5205512345678", "+558212345678", "+55829944823"])
def test_what_no_country_ever_handed_out_is_refused_by_the_strict_rule(value: str) -> None:
    with pytest.raises(LeadValidationError) as refused:
        ValidationService(phone_rule="valid").submission({**PERSON, "phone": value})
    assert refused.value.violations[0].reason == "UNKNOWN_NUMBER"


@pytest.mark.parametrize("value", ["N/A", "\\N", "NULL", "-", "j@x.", "mailto:j@example.com", "a@b c", "a\x00@b.com"])
def test_an_email_that_cannot_be_read_costs_no_lead_and_no_stored_email(value: str) -> None:
    service = ValidationService()

    fields, ignored, _ = service.submission({**PERSON, "email": value})

    assert (fields.email, ignored) == (None, ("email",))
    with pytest.raises(LeadValidationError):
        service.correction({"email": value})


def test_every_optional_field_may_be_left_out_and_is_named() -> None:
    unreadable = {"email": "?", "preferred_contact_time": "a\x00b", "notes": "x" * 4001, "conversation_id": "a b"}
    unreadable["source"] = "x" * 101

    fields, ignored, _ = ValidationService().submission({**PERSON, **unreadable})

    assert set(ignored) == set(unreadable)
    assert {name: getattr(fields, name) for name in unreadable} == dict.fromkeys(unreadable)


def test_a_lead_that_is_refused_names_its_optional_faults_too() -> None:
    with pytest.raises(LeadValidationError) as refused:
        ValidationService().submission({**PERSON, "name": " ", "email": "?"})

    assert [violation.field for violation in refused.value.violations] == ["lead.name", "lead.email"]


@pytest.mark.parametrize(("nid", "ignored"), [("", ()), (" \u200b", ()), ("none", ("nid",)), ("0000000000", ("nid",))])
def test_a_placeholder_is_no_fault_where_a_national_id_is_optional(nid: str, ignored: tuple[str, ...]) -> None:
    service = ValidationService(required=REQUIRED_FIELDS - {"nid"})

    submission = service.submission({**PERSON, "nid": nid})

    assert (submission.fields.nid, submission.ignored) == (None, ignored)


def test_a_policy_that_is_not_on_offer_costs_no_lead_where_it_is_optional() -> None:
    offer = ValidationService(policies=["Term Life"], required=REQUIRED_FIELDS - {"interested_policy"})

    submission = offer.submission({**PERSON, "interested_policy": "Whole Life"})

    assert (submission.fields.interested_policy, submission.ignored) == (None, ("interested_policy",))


@pytest.mark.parametrize("nid", ["123", "12#34", "1234567890.0", "1990•••"])
def test_a_misspelt_national_id_is_refused_where_it_is_optional(nid: str) -> None:
    with pytest.raises(LeadValidationError):
        ValidationService(required=REQUIRED_FIELDS - {"nid"}).submission({**PERSON, "nid": nid})


@pytest.mark.parametrize(
    "value",
    ["a..b@docomo.ne.jp", "a.@docomo.ne.jp", "a..@ezweb.ne.jp", "A.b...c.@DOCOMO.ne.jp", "x-_..y/z.@softbank.ne.jp"],
)
def test_an_email_address_of_a_japanese_carrier_is_kept(value: str) -> None:
    local, _, domain = value.partition("@")

    assert ValidationService().submission({**PERSON, "email": value}).fields.email == f"{local}@{domain.lower()}"


@pytest.mark.parametrize("name", ["name", "address", "notes", "interested_policy", "email", "preferred_contact_time"])
@pytest.mark.parametrize("mark", [*"\u200b\u200e\u200f\u202a\u202e\u2066\u2069\ufeff", "\u202a\u200b \u200d"])
def test_an_invisible_mark_around_a_text_is_taken_off(name: str, mark: str) -> None:
    value = "j@example.com"

    kept = ValidationService().submission({**PERSON, name: f"{mark}{value}\u202c{mark}"})

    assert (getattr(kept.fields, name), kept.ignored) == (value, ())


@pytest.mark.parametrize("name", ["name", "address", "notes", "interested_policy", "preferred_contact_time"])
@pytest.mark.parametrize("mark", "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_a_mark_that_only_sets_the_direction_is_taken_out_of_a_text(name: str, mark: str) -> None:
    kept = ValidationService().submission({**PERSON, name: f"محمد{mark} شريف"})

    assert getattr(kept.fields, name) == "محمد شريف"


def test_a_mask_is_recognised_behind_marks() -> None:
    assert "masked" in refusal("name", "a•\u202e••")


@pytest.mark.parametrize("text", ["می\u200cخواهم", "ക്\u200dഷ", "രാജന്\u200d", "क्\u200dष", "👩\u200d👩\u200d👧"])
def test_a_joiner_that_is_spelling_stays(text: str) -> None:
    kept = ValidationService().submission({**PERSON, "name": f" {text}\u200b", "notes": f"{text} {text}"}).fields

    assert (kept.name, kept.notes) == (text, f"{text} {text}")


def test_a_joiner_that_joins_nothing_is_taken_off() -> None:
    assert ValidationService().submission({**PERSON, "name": "\u200dJohn\u200c"}).fields.name == "John"


def test_an_identifier_loses_marks_at_its_ends_and_is_refused_with_one_inside() -> None:
    service = ValidationService()

    assert service.text("conversation_id", "\u202achat-1\u202c\u200d") == "chat-1"
    with pytest.raises(LeadValidationError):
        service.text("conversation_id", "chat\u200e-1")


def test_an_address_with_the_line_breaks_of_a_database_is_kept_in_lines() -> None:
    kept = ValidationService().submission({**PERSON, "address": "1 Test St\vDhaka\x85BD"}).fields

    assert kept.address == "1 Test St\nDhaka\nBD"
