"""Words for the customer: of a saved or delayed lead thanks, the next steps, a reference; else why it was not taken.

Story AC-013.7.

The texts are TOML files, one a locale: the shipped ones in `locales/`, and an operator's own. An operator's
`en.toml` replaces the shipped `en.toml` as a whole, never key by key: half of each could promise two things
that differ. All of them are read and checked once: a broken text stops the start, and never a confirmation.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.errors import (
    DuplicateLeadError,
    LeadkeepError,
    LeadValidationError,
    LocalizedText,
    RequestIdReusedError,
    StartRefusedError,
    Violation,
    ViolationReason,
)
from service.validation.reference import reference_of

T = TypeVar("T")

_SHIPPED = Path(__file__).with_name("locales")

_LONGEST_LOCALES = 200
"""No browser sends a longer list of languages; beyond it is not worth reading."""

_LANGUAGE_TAG = re.compile(r"[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*")
# Behind the language POSIX names an encoding (bn_BD.UTF-8), iOS a calendar (bn_BD@calendar=gregorian), Java a script
# (zh_TW_#Hant): none of them is another language.
_LANGUAGE_RANGE = re.compile(
    r"(?P<tag>[A-Za-z]{1,8}(?:[-_][A-Za-z0-9]{1,8})*)(?:_?[.@#][^,]*?)?\s*"
    r"(?:;\s*[qQ]=(?P<quality>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Confirmation for a customer, ready to be shown as plain text."""

    text: str
    next_steps: tuple[str, ...]
    reference: str
    locale: str
    """The locale of the texts, which may be a wider one than was asked for, or the default."""


def _template(*, must: frozenset[str] = frozenset(), may: frozenset[str]) -> AfterValidator:
    """Check that a text has exactly the placeholders it should have, and that formatting it cannot fail."""

    def check(text: str) -> str:
        if not text.strip():
            raise ValueError("the text is empty")
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{error}; write a brace that is meant as such twice") from None
        fields = [(name, form, conversion) for _, name, form, conversion in parts if name is not None]
        # Exact names only: str.format would follow {name.attribute} into Python objects.
        if any(name not in may or form or conversion for name, form, conversion in fields):
            raise ValueError(f"only {_braced(may) or 'nothing'} can stand in braces here, without anything added")
        if missing := must - {name for name, _, _ in fields}:
            raise ValueError(f"{_braced(missing)} must stand in this text")
        return text

    return AfterValidator(check)


def _braced(names: frozenset[str] | set[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names))


_KNOWN = frozenset({"name", "reference"})
_CONTACT_TIME = frozenset({"preferred_contact_time"})


class _Table(BaseModel):
    # A misspelt key must be a fault: else its text would silently be missing.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _NextStep(_Table):
    text: Annotated[str, _template(may=_KNOWN)]
    with_contact_time: Annotated[str, _template(must=_CONTACT_TIME, may=_KNOWN | _CONTACT_TIME)] | None = None
    """Replaces `text` when the customer gave a contact time."""


class _Message(_Table):
    text: Annotated[str, _template(must=_KNOWN, may=_KNOWN)]
    next_steps: list[_NextStep] = Field(min_length=1)


_Label = Annotated[str, _template(may=frozenset())]
_Fault = Annotated[str, _template(must=frozenset({"field"}), may=frozenset({"field"}))]


def _all_reasons(faults: dict[ViolationReason, str]) -> dict[ViolationReason, str]:
    if missing := sorted(set(get_args(ViolationReason)) - faults.keys()):
        raise ValueError(f"a text is missing for: {', '.join(missing)}")
    return faults


class _Failed(_Table):
    duplicate: _Label
    invalid: _Label
    """Also in place of the text of a fault whose field has no name here: the customer did not fill it in."""
    unavailable: _Label
    fields: dict[str, _Label]
    violations: Annotated[dict[ViolationReason, _Fault], AfterValidator(_all_reasons)]

    def text_of(self, error: LeadkeepError) -> str:
        """Why a request was not taken."""
        if isinstance(error, DuplicateLeadError | RequestIdReusedError):
            return self.duplicate
        return self.invalid if isinstance(error, LeadValidationError) else self.unavailable

    def fault_of(self, violation: Violation) -> str:
        """What is wrong with one field."""
        label = self.fields.get(violation.field.removeprefix("lead."))
        return self.invalid if label is None else self.violations[violation.reason].format(field=label)


class _Texts(_Table):
    """One file. Each table is one occasion, so that another occasion is another table."""

    saved: _Message
    delayed: _Message | None = None
    """For a lead that waits in the spool. A file without it leaves that to the shipped texts of its locale, and where
    there are none, to the shipped English: a delay is reported in a foreign language rather than not at all."""
    failed: _Failed | None = None
    """For a request that was not taken; a file without it leaves that to the shipped texts likewise."""


class ConfirmationService:
    """Words the confirmation in the customer's language, and what failed.

    `override_dir` holds the operator's own files (`fr.toml`, `pt-BR.toml`): new locales, or replacements of
    shipped ones. A text that cannot be used raises StartRefusedError with the file, the key and the fault.
    """

    def __init__(self, *, override_dir: Path | None = None, default_locale: str = "en") -> None:
        shipped = _read_folder(_SHIPPED)
        texts = shipped | (_read_folder(override_dir) if override_dir is not None else {})
        self._texts = {key: (locale, each.saved) for key, (locale, each) in texts.items()}
        self._delayed = {key: _shipped_if_missing(lambda each: each.delayed, key, texts, shipped) for key in texts}
        self._failed = {key: _shipped_if_missing(lambda each: each.failed, key, texts, shipped) for key in texts}
        default = _tag(default_locale).lower()
        if default not in texts:
            raise StartRefusedError(
                "there are no texts for the default locale; there are texts for: "
                + ", ".join(sorted(locale for locale, _ in texts.values()))
            )
        self._default = default

    def confirm(
        self, *, lead_id: UUID, name: str, locales: str, preferred_contact_time: str | None, delayed: bool = False
    ) -> Confirmation:
        """Return the confirmation of a saved lead, or of one that is kept and saved later.

        `locales` is one language tag or a list in the form of an Accept-Language header. What cannot be read
        or is not there leads to the default locale: a confirmation never fails for its language.
        """
        locale, message = (self._delayed if delayed else self._texts)[self._look_up(locales)]
        reference = reference_of(lead_id)
        # Only the template is interpreted, so braces in a customer's words stay braces.
        values = {"name": name, "reference": reference, "preferred_contact_time": preferred_contact_time}
        steps = (
            step.with_contact_time if preferred_contact_time and step.with_contact_time else step.text
            for step in message.next_steps
        )
        return Confirmation(
            text=message.text.format_map(values),
            next_steps=tuple(step.format_map(values) for step in steps),
            reference=reference,
            locale=locale,
        )

    def explain(self, error: LeadkeepError, locales: str) -> None:
        """Add to an error, and to each of its violations, a text for the customer; `locales` as in `confirm`."""
        locale, words = self._failed[self._look_up(locales)]
        error.localized = LocalizedText(words.text_of(error), locale)
        if isinstance(error, LeadValidationError):
            error.violations = self.explained(error.violations, locales)

    def explained(self, violations: Iterable[Violation], locales: str) -> tuple[Violation, ...]:
        """Violations, each with a text for the customer; `locales` as in `confirm`."""
        locale, words = self._failed[self._look_up(locales)]
        return tuple(replace(each, localized=LocalizedText(words.fault_of(each), locale)) for each in violations)

    def _look_up(self, locales: str) -> str:
        """Return the key of the texts that suit best: the look-up of RFC 4647, section 3.4."""
        if len(locales) > _LONGEST_LOCALES:
            return self._default
        candidates = (wider for wanted in _by_preference(locales) for wider in _widening(wanted))
        return next((candidate for candidate in candidates if candidate in self._texts), self._default)


def _shipped_if_missing(
    table_of: Callable[[_Texts], T | None],
    key: str,
    texts: Mapping[str, tuple[str, _Texts]],
    shipped: Mapping[str, tuple[str, _Texts]],
) -> tuple[str, T]:
    candidates = [texts.get(key), *(shipped.get(wider) for wider in _widening(key)), shipped["en"]]
    return next((found[0], table) for found in candidates if found and (table := table_of(found[1])))


def _by_preference(locales: str) -> list[str]:
    """Return the language ranges, the most wanted first; what cannot be read or has q=0 is left out."""
    readable = [match for entry in locales.split(",") if (match := _LANGUAGE_RANGE.fullmatch(entry.strip()))]
    weighted = [(float(match["quality"] or 1), _tag(match["tag"]).lower()) for match in readable]
    weighted.sort(key=lambda entry: -entry[0])  # stable: equals stay in the order they were sent
    return [tag for weight, tag in weighted if weight > 0]


def _widening(language_range: str) -> list[str]:
    """Return a range and its wider ones: bn-bd, bn."""
    subtags = language_range.split("-")
    return ["-".join(subtags[:length]) for length in range(len(subtags), 0, -1)]


def _tag(text: str) -> str:
    return text.strip().replace("_", "-")  # POSIX and Java write bn_BD


def _read_folder(folder: Path) -> dict[str, tuple[str, _Texts]]:
    """Return the texts of a folder by lower-cased locale, each with the locale as its file spells it."""
    if not folder.is_dir():
        raise StartRefusedError(f"{folder}: the folder of the confirmation texts does not exist")
    found: dict[str, tuple[str, _Texts]] = {}
    for path in sorted(folder.glob("*.toml")):
        locale = _tag(path.stem)
        if not _LANGUAGE_TAG.fullmatch(locale):
            raise StartRefusedError(f"{path}: name the file after a language, such as fr.toml or pt-BR.toml")
        if locale.lower() in found:
            raise StartRefusedError(f"{path}: another file of this folder holds the same locale")
        found[locale.lower()] = (locale, _read(path))
    return found


def _read(path: Path) -> _Texts:
    try:
        return _Texts.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as invalid:
        faults = [
            f"{path}: {'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"
            for error in invalid.errors(include_url=False)
        ]
        raise StartRefusedError("\n".join(faults)) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartRefusedError(f"{path}: cannot be read as TOML: {error}") from None
