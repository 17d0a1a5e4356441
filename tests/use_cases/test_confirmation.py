from __future__ import annotations

import string
from pathlib import Path
from uuid import UUID

import pytest

from service.errors import StartRefusedError
from service.use_cases.confirmation import Confirmation, ConfirmationService
from service.validation.reference import reference_of

LEAD_ID = UUID("01a20a63-8ee1-744a-afa5-abde66ecd311")
SHIPPED = Path(__file__).parents[2] / "service" / "use_cases" / "locales"

FRENCH = """
[saved]
text = "Merci, {name}. {reference}"
[[saved.next_steps]]
text = "Nous vous appelons."
with_contact_time = "Nous vous appelons : {preferred_contact_time}"
"""


def confirm(
    service: ConfirmationService | None = None,
    *,
    name: str = "John Doe",
    locales: str = "en",
    preferred_contact_time: str | None = None,
) -> Confirmation:
    return (service or ConfirmationService()).confirm(
        lead_id=LEAD_ID, name=name, locales=locales, preferred_contact_time=preferred_contact_time
    )


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def refusal(folder: Path, content: str, file: str = "fr.toml") -> str:
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(StartRefusedError) as refused:
        ConfirmationService(override_dir=folder)
    return str(refused.value)


def test_the_customer_is_thanked_by_name_and_given_the_reference() -> None:
    assert confirm().text == (
        "Thank you for your interest, John Doe. We have your request; its reference is LK-VSKE-SMRH."
    )


def test_the_steps_say_what_happens_and_when() -> None:
    assert "We call you within one business day." in confirm().next_steps


def test_a_preferred_contact_time_is_repeated_in_the_steps() -> None:
    steps = confirm(preferred_contact_time="evenings").next_steps

    assert steps[1] == "We call you at the time you prefer, starting with the next business day: evenings."


def test_an_empty_preferred_contact_time_counts_as_not_given() -> None:
    assert confirm(preferred_contact_time="").next_steps == confirm().next_steps


@pytest.mark.parametrize("locale", ["en", "bn", "es"])
def test_every_shipped_locale_has_three_steps_and_names_the_reference(locale: str) -> None:
    confirmation = confirm(locales=locale, preferred_contact_time="10:00")

    assert confirmation.locale == locale
    assert len(confirmation.next_steps) == 3
    assert "John Doe" in confirmation.text
    assert confirmation.reference in confirmation.text
    assert any("10:00" in step for step in confirmation.next_steps)


@pytest.mark.parametrize("hostile", ["{reference}", "{0}", "{name.__class__}", "}{", "%s", "{", "\\N{BULLET}"])
def test_a_value_with_braces_is_plain_text(hostile: str) -> None:
    confirmation = confirm(name=hostile, preferred_contact_time=hostile)

    assert f"interest, {hostile}." in confirmation.text
    assert confirmation.next_steps[1].endswith(f": {hostile}.")


def test_the_reference_spells_the_last_40_bits_in_crockford_base32() -> None:
    # 0xde66ecd311 in groups of five bits: 27 25 19 14 25 20 24 17
    assert reference_of(LEAD_ID) == "LK-VSKE-SMRH"


@pytest.mark.parametrize(
    ("bits", "reference"), [(0, "LK-0000-0000"), (2**40 - 1, "LK-ZZZZ-ZZZZ"), (2**40, "LK-0000-0000")]
)
def test_the_reference_is_always_of_one_length(bits: int, reference: str) -> None:
    assert reference_of(UUID(int=bits)) == reference


@pytest.mark.parametrize(
    ("locales", "used"),
    [
        ("bn", "bn"),
        ("bn-BD", "bn"),
        ("bn_BD", "bn"),
        ("bn_BD.UTF-8", "bn"),
        ("es_ES@euro", "es"),
        ("bn_BD@calendar=gregorian;numbers=latn", "bn"),
        ("es_US_#Latn", "es"),
        ("en;q=0.5, bn_BD.utf8;q=0.8", "bn"),
        ("BN-bd", "bn"),
        (" es ", "es"),
        ("es-419-x-private", "es"),
        ("bn-Beng-x-a-b", "bn"),
        ("bn-BD,bn;q=0.9,en;q=0.5", "bn"),
        ("en;q=0.5, es;q=0.8", "es"),
        ("fr-FR,fr;q=0.9,es;q=0.8", "es"),
        ("es;q=0,bn;q=0.1", "bn"),
        ("es; Q=0.3,bn;q=0.2", "es"),
        ("*,es;q=0.5", "es"),
        ("es;q=0.5,bn;q=0.5", "es"),
    ],
)
def test_the_best_locale_is_looked_up(locales: str, used: str) -> None:
    assert confirm(locales=locales).locale == used


@pytest.mark.parametrize(
    "locales",
    [
        "",
        "*",
        "fr",
        "x-bn",
        "b",
        "-bn",
        "bn-",
        ",;,",
        "bn;q=2",
        "bn;q=",
        "bn;level=1",
        "bn;q=1;q=1",
        "../bn",
        "bn\x00",
        "\udc80",
        "বাংলা",
        "bn," * 67,
    ],
)
def test_anything_else_leads_to_the_default_locale(locales: str) -> None:
    assert confirm(locales=locales).locale == "en"


@pytest.mark.parametrize(
    "there", ["zh-hant-cn-x-private1-private2", "zh-hant-cn-x-private1", "zh-hant-cn", "zh-hant", "zh"]
)
def test_a_range_is_widened_as_in_the_example_of_rfc_4647(tmp_path: Path, there: str) -> None:
    for name in {there, "zh"}:
        (tmp_path / f"{name}.toml").write_text(FRENCH)

    confirmed = confirm(ConfirmationService(override_dir=tmp_path), locales="zh-hant-cn-x-private1-private2")

    assert confirmed.locale == there


def test_the_default_locale_can_be_chosen() -> None:
    assert confirm(ConfirmationService(default_locale="bn"), locales="fr").locale == "bn"


def test_a_default_locale_without_texts_stops_the_start() -> None:
    with pytest.raises(StartRefusedError, match="there are texts for: bn, en, es"):
        ConfirmationService(default_locale="fr")


def test_an_operator_adds_a_locale(tmp_path: Path) -> None:
    (tmp_path / "fr.toml").write_text(FRENCH, encoding="utf-8")

    confirmation = confirm(ConfirmationService(override_dir=tmp_path), locales="fr-CA")

    assert confirmation.text == f"Merci, John Doe. {confirmation.reference}"


def test_an_operators_file_replaces_the_whole_locale(tmp_path: Path) -> None:
    (tmp_path / "en.toml").write_text(FRENCH, encoding="utf-8")

    assert confirm(ConfirmationService(override_dir=tmp_path)).next_steps == ("Nous vous appelons.",)


def test_the_locale_is_answered_as_its_file_spells_it(tmp_path: Path) -> None:
    (tmp_path / "pt_BR.toml").write_text(FRENCH, encoding="utf-8")

    assert confirm(ConfirmationService(override_dir=tmp_path), locales="PT-br").locale == "pt-BR"


def test_other_files_of_the_operators_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not TOML", encoding="utf-8")

    assert confirm(ConfirmationService(override_dir=tmp_path)).locale == "en"


@pytest.mark.parametrize(
    ("old", "new", "key", "fault"),
    [
        ("Merci, {name}.", "Merci.", "saved.text", "{name} must stand"),
        ("{reference}", "", "saved.text", "{reference} must stand"),
        ("Merci", "{phone}", "saved.text", "only {name} and {reference}"),
        ("Merci", "{}", "saved.text", "only {name} and {reference}"),
        ("Merci", "{name.__class__}", "saved.text", "only {name} and {reference}"),
        ("Merci", "{name!r}", "saved.text", "only {name} and {reference}"),
        ("Merci", "{name:>9999999}", "saved.text", "only {name} and {reference}"),
        ("Merci", "Merci {", "saved.text", "brace"),
        ("Nous vous appelons.", "{preferred_contact_time}", "saved.next_steps.0.text", "only {name} and"),
        ("Nous vous appelons.", " ", "saved.next_steps.0.text", "empty"),
        ("{preferred_contact_time}", "", "saved.next_steps.0.with_contact_time", "must stand"),
        ("with_contact_time", "with_contact_tyme", "saved.next_steps.0.with_contact_tyme", "not permitted"),
        ("[saved]", "[save]", "save", "not permitted"),
        ('"Merci, {name}. {reference}"', "7", "saved.text", "string"),
    ],
)
def test_a_broken_text_stops_the_start_with_file_key_and_fault(
    tmp_path: Path, old: str, new: str, key: str, fault: str
) -> None:
    text = refusal(tmp_path, FRENCH.replace(old, new, 1))

    assert any(line.startswith(f"{tmp_path / 'fr.toml'}: {key}: ") and fault in line for line in text.splitlines())


def test_every_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    broken = FRENCH.replace("{name}", "").replace("Nous vous appelons.", "")

    assert len(refusal(tmp_path, broken).splitlines()) == 2


def test_a_locale_without_steps_stops_the_start(tmp_path: Path) -> None:
    assert "saved.next_steps" in refusal(tmp_path, '[saved]\ntext = "{name} {reference}"\nnext_steps = []')


def test_a_file_that_is_no_toml_stops_the_start(tmp_path: Path) -> None:
    assert "cannot be read as TOML" in refusal(tmp_path, "saved =")


def test_a_file_that_is_not_utf_8_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "fr.toml").write_bytes(FRENCH.replace("Merci", "é").encode("latin-1"))

    with pytest.raises(StartRefusedError, match="cannot be read as TOML"):
        ConfirmationService(override_dir=tmp_path)


def test_a_file_that_names_no_language_stops_the_start(tmp_path: Path) -> None:
    assert "such as fr.toml" in refusal(tmp_path, FRENCH, file="texts (1).toml")


def test_two_files_for_one_locale_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "pt-BR.toml").write_text(FRENCH, encoding="utf-8")

    assert "same locale" in refusal(tmp_path, FRENCH, file="pt_br.toml")


def test_a_missing_folder_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="does not exist"):
        ConfirmationService(override_dir=tmp_path / "absent")


def test_the_shipped_locales_use_the_same_placeholders() -> None:
    used = {
        path.stem: placeholders(path.read_text(encoding="utf-8").split("[saved]")[1].split("[failed]")[0])
        for path in SHIPPED.glob("*.toml")
    }

    assert set(used) == {"en", "bn", "es"}
    assert all(names == {"name", "reference", "preferred_contact_time"} for names in used.values())


# Delayed


def delayed(service: ConfirmationService, locales: str, preferred_contact_time: str | None = None) -> Confirmation:
    return service.confirm(
        lead_id=LEAD_ID, name="Ada", locales=locales, preferred_contact_time=preferred_contact_time, delayed=True
    )


@pytest.mark.parametrize("locale", ["en", "bn", "es"])
def test_every_shipped_locale_tells_of_a_delay_in_words_of_its_own(locale: str) -> None:
    service = ConfirmationService()
    told, usual = (
        delayed(service, locale),
        service.confirm(lead_id=LEAD_ID, name="Ada", locales=locale, preferred_contact_time=None),
    )
    assert told.locale == locale
    assert (told.reference, "Ada" in told.text, told.reference in told.text) == (usual.reference, True, True)
    assert told.text != usual.text
    assert told.next_steps != usual.next_steps


def test_a_delay_keeps_to_the_time_that_the_customer_prefers() -> None:
    assert any("after 5 pm" in step for step in delayed(ConfirmationService(), "en", "after 5 pm").next_steps)


OWN = '[saved]\ntext = "{name} {reference}"\n[[saved.next_steps]]\ntext = "soon"\n'


@pytest.mark.parametrize(("file", "locale"), [("bn-BD", "bn"), ("en", "en"), ("fr", "en")])
def test_own_texts_without_a_delay_leave_that_to_the_shipped_ones(tmp_path: Path, file: str, locale: str) -> None:
    (tmp_path / f"{file}.toml").write_text(OWN)
    service = ConfirmationService(override_dir=tmp_path)
    assert delayed(service, file) == delayed(ConfirmationService(), locale)


def test_own_texts_may_tell_of_a_delay(tmp_path: Path) -> None:
    (tmp_path / "fr.toml").write_text(OWN + OWN.replace("saved", "delayed").replace("soon", "plus tard"))
    told = delayed(ConfirmationService(override_dir=tmp_path), "fr")
    assert (told.locale, told.next_steps) == ("fr", ("plus tard",))
