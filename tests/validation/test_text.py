from __future__ import annotations

import sys
import time
import unicodedata

import pytest

from service.validation.text import TextRule, ValueRefusedError

LINE = TextRule(limit=200)
LINES = TextRule(limit=4000, lines=True)


def refusal(rule: TextRule, value: str) -> str:
    with pytest.raises(ValueRefusedError) as refused:
        rule.normalise(value)
    return refused.value.description


def test_text_is_kept_in_nfc() -> None:
    assert LINE.normalise("Jose\u0301") == "Jos\u00e9"


def test_every_unicode_whitespace_is_trimmed() -> None:
    whitespace = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))

    assert LINE.normalise(f"{whitespace}A B{whitespace}") == "A B"
    assert LINES.normalise(f"{whitespace}\u00c5{whitespace}") == "\u00c5"


def test_the_limit_counts_characters_after_normalisation() -> None:
    assert LINE.normalise("e\u0301" * 200) == "\u00e9" * 200
    assert LINE.normalise(f"  {'x' * 200}  ") == "x" * 200
    assert LINE.normalise("😀" * 200) == "😀" * 200
    assert refusal(LINE, "x" * 201) == "is too long: at most 200 characters"
    assert refusal(LINE, "é" * 201) == "is too long: at most 200 characters"


def test_input_that_composing_and_line_ends_shrink_most_still_fits() -> None:
    omega = "\u1fa7"  # decomposes into four characters
    assert LINE.normalise(unicodedata.normalize("NFD", omega * 200)) == omega * 200
    assert LINES.normalise("a\r\n" * 1999 + "ab") == "a\n" * 1999 + "ab"


@pytest.mark.parametrize(
    "text",
    [
        "রহিম উদ্দিন",
        "क्\u200dष",
        "می\u200cخواهم",  # noqa: RUF001 # Persian, where the non-joiner is spelling
        "👩\u200d👩\u200d👧",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "O'Neil; DROP TABLE leads --",
        "\ue000",  # private use
        "\u0378",  # unassigned in Unicode 15
    ],
)
def test_real_names_of_every_script_pass(text: str) -> None:
    assert LINE.normalise(text) == text


@pytest.mark.parametrize("line_break", ["\r\n", "\r", "\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_every_line_break_becomes_a_newline_where_lines_belong(line_break: str) -> None:
    assert LINES.normalise(f"a{line_break}b\tc") == "a\nb\tc"
    assert refusal(LINE, f"a{line_break}b") == "must be one line, without line breaks"


@pytest.mark.parametrize(
    ("character", "why"),
    [
        ("\x00", "contains the control character U+0000"),
        ("\x1b", "contains the control character U+001B"),
        ("\x84", "contains the control character U+0084"),
        ("\ud800", "is not valid Unicode: it contains half of a surrogate pair"),
        ("\ufffe", "contains U+FFFE, which is not a character"),
        ("\U0010ffff", "contains U+10FFFF, which is not a character"),
        ("\ufdd0", "contains U+FDD0, which is not a character"),
    ],
)
def test_what_can_harm_a_store_or_a_screen_is_refused(character: str, why: str) -> None:
    assert refusal(LINE, f"a{character}b") == why
    assert refusal(LINES, f"a{character}b") == why


def test_a_tab_belongs_into_lines_only() -> None:
    assert refusal(LINE, "a\tb") == "must not contain a tab"


def test_piled_marks_are_refused_before_they_cost_time() -> None:
    started = time.process_time()

    assert refusal(LINES, "a" + "\u0301\u0323" * 16_000) == "has more than 30 combining marks in a row"

    assert time.process_time() - started < 0.5  # normalising it costs 1 s


def test_thirty_marks_on_a_letter_pass() -> None:
    assert LINE.normalise("q" + "\u0301" * 30) == "q" + "\u0301" * 30
