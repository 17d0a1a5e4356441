"""`leadkeep person`: what is kept of a person, for who answers "what do you have on me?" and "forget me"."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import typer
from leadkeep.v1 import lead_service_pb2 as pb

from service.cli.client import LARGEST_PAGE, Call, as_object, connected, kept_lines, pages, word
from service.cli.command import (
    AsJson,
    Force,
    Output,
    ReasonToLook,
    aligned,
    check_output,
    customers_option,
    echo,
    output_file,
    report,
)
from service.config import load_settings
from service.errors import StartRefusedError
from service.scopes import UNMASK_SCOPES, Scope

EXPORT_FORMAT = "leadkeep-person-export/1"
"""Of the document, see docs/person-export.schema.json."""

Phone = Annotated[str, customers_option("With this phone")]
Nid = Annotated[str, customers_option("With this national ID")]
Email = Annotated[str, customers_option("With this e-mail address")]
Chosen = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CHOSEN]...", help="Numbers of the list that find prints, as 2 or 1,3-5, or ids, which stay."
    ),
]
_NUMBERS = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*")
All = Annotated[bool, typer.Option("--all", help="Everything in the list.")]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing; for scripts.")]


def find(
    phone: Phone = "", nid: Nid = "", email: Email = "", reason: ReasonToLook = "", as_json: AsJson = False
) -> None:
    """List what carries a phone, a national ID or an e-mail address, masked. The search is recorded."""
    wanted = _wanted(phone, nid, email)
    with connected(load_settings(), *_scopes(wanted), reason=reason) as call:
        matches, unanswered = _found(call, wanted)
    shown = {"matches": [as_object(match) for match in matches], "unanswered_replicas": unanswered}
    report(shown, _lines(matches), as_json=as_json)
    _warn(unanswered)


def export(
    chosen: Chosen = None,
    phone: Phone = "",
    nid: Nid = "",
    email: Email = "",
    everything: All = False,
    yes: Yes = False,
    reason: ReasonToLook = "",
    output: Output = None,
    force: Force = False,
) -> None:
    """Write everything about what is chosen as one JSON document, values in clear. Each look is recorded."""
    check_output(output, force=force)
    wanted = _wanted(phone, nid, email)
    with connected(load_settings(), *_scopes(wanted), Scope.UNMASK, reason=reason) as call:
        matches, unanswered = _chosen(call, wanted, chosen or [], everything=everything, yes=yes, what="Export")
        document = _exported(call, matches) | {"asked": wanted, "reason": reason}
    document["unanswered_replicas"] = sorted({*document["unanswered_replicas"], *unanswered})
    with output_file(output) as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")
    _warn(document["unanswered_replicas"])


def erase(
    chosen: Chosen = None,
    phone: Phone = "",
    nid: Nid = "",
    email: Email = "",
    everything: All = False,
    yes: Yes = False,
    reason: Annotated[str, typer.Option(help="Why; kept with the record and the tombstones. No customer data.")] = "",
    as_json: AsJson = False,
) -> None:
    """Erase what is chosen; only tombstones stay. Cannot be undone. Safe to repeat."""
    wanted = _wanted(phone, nid, email)
    with connected(load_settings(), *_scopes(wanted), Scope.ERASE, reason=reason) as call:
        matches, unanswered = _chosen(call, wanted, chosen or [], everything=everything, yes=yes, what="Erase")
        done = pb.ErasePersonResponse()
        for refs in _batches(matches):
            done.MergeFrom(call("ErasePerson", pb.ErasePersonRequest(refs=refs, reason=reason)))
    left = sorted({*done.unanswered_replicas, *unanswered})
    lines = [f"Erased: {len(done.erased)}. Tombstones stay; the daily files follow."]
    lines += [f"Not found any more: {each.id}." for each in done.not_found]
    lines += kept_lines(done.kept_ids)
    report(as_object(done) | {"unanswered_replicas": left}, lines, as_json=as_json)
    _warn(left)


def _wanted(phone: str, nid: str, email: str) -> dict[str, str]:
    wanted = {name: value for name, value in (("phone", phone), ("nid", nid), ("email", email)) if value}
    if not wanted:
        raise typer.BadParameter("give one of --phone, --nid, --email", param_hint="--phone")
    return wanted


def _scopes(wanted: dict[str, str]) -> list[Scope]:
    return [Scope.PERSON, *(UNMASK_SCOPES[name] for name in wanted)]


def _found(call: Call, wanted: dict[str, str]) -> tuple[list[pb.PersonMatch], list[str]]:
    """Every match, and the replicas that did not answer."""
    found = list(pages(call, "FindPerson", pb.FindPersonRequest(**wanted)))
    unanswered = {replica for page in found for replica in page.unanswered_replicas}
    return [match for page in found for match in page.matches], sorted(unanswered)


def _chosen(
    call: Call, wanted: dict[str, str], chosen: Sequence[str], *, everything: bool, yes: bool, what: str
) -> tuple[list[pb.PersonMatch], list[str]]:
    """The matches that are chosen and confirmed, and the replicas that did not answer the search.

    Raises typer.BadParameter, StartRefusedError, typer.Exit.
    """
    if bool(chosen) == everything:
        raise typer.BadParameter("give numbers, ids, or --all", param_hint="CHOSEN")
    if not yes and not sys.stdin.isatty():
        raise StartRefusedError("nobody can be asked here: choose by id, or --all, and confirm with --yes")
    matches, unanswered = _found(call, wanted)
    if not matches:
        raise StartRefusedError("nothing was found" + (", but not every replica has answered" if unanswered else ""))
    every = range(1, 1 + len(matches))
    numbers = list(every) if everything else sorted({each for text in chosen for each in _numbers(text, matches)})
    if not yes:
        for line in _lines(matches):
            echo(line, err=True)
        listed = ", ".join(map(str, numbers))
        if not typer.confirm(f"{what} {len(numbers)} of {len(matches)}: {listed}?", err=True):
            raise typer.Exit(1)
    return [matches[number - 1] for number in numbers], unanswered


def _numbers(text: str, matches: Sequence[pb.PersonMatch]) -> list[int]:
    """The numbers of matches that an argument names: `2`, `1,3-5`, or an id."""
    found: list[int] = []
    if _NUMBERS.fullmatch(text):
        for part in text.split(","):
            first, _, last = part.partition("-")
            span = range(int(first), 1 + int(last or first))
            if not span or span[0] < 1 or span[-1] > len(matches):
                raise _not_found(part)
            found += span
        return found
    try:
        wanted = str(UUID(text))
    except ValueError:
        raise typer.BadParameter("must be numbers of the list, as 2 or 1,3-5, or an id", param_hint="CHOSEN") from None
    found += (number for number, match in enumerate(matches, start=1) if match.id == wanted)
    if not found:
        raise _not_found(text)
    return found


def _not_found(text: str) -> StartRefusedError:
    return StartRefusedError(f"the search does not find {text}: leadkeep person find lists what it finds")


def _exported(call: Call, matches: Sequence[pb.PersonMatch]) -> dict[str, Any]:
    """The document of what is chosen, joined from all pages."""
    whole = pb.ExportPersonResponse()
    for refs in _batches(matches):
        for page in pages(call, "ExportPerson", pb.ExportPersonRequest(refs=refs)):
            whole.MergeFrom(page)
    shown = as_object(whole)
    return {
        "format": EXPORT_FORMAT,
        "exported_at": shown["exported_at"],
        "exported_by": whole.exported_by,
        "chosen": [as_object(match) for match in matches],
        **{name: shown.get(name, []) for name in ("records", "not_found", "unanswered_replicas")},
    }


def _batches(matches: Sequence[pb.PersonMatch]) -> list[list[pb.PersonRef]]:
    refs = list({(each.kind, each.id): pb.PersonRef(kind=each.kind, id=each.id) for each in matches}.values())
    return [refs[start : start + LARGEST_PAGE] for start in range(0, len(refs), LARGEST_PAGE)]


def _lines(matches: Sequence[pb.PersonMatch]) -> list[str]:
    rows = [("", "kind", "id", "lead", "has", "name", "phone")]
    for number, match in enumerate(matches, start=1):
        lead_id = match.lead_id if match.lead_id != match.id else ""
        kind, fields = word(pb.PersonMatchKind, match.kind), ",".join(match.matched_fields)
        rows.append(
            (str(number), kind, match.id, lead_id or "-", fields, match.lead.name or "-", match.lead.phone or "-")
        )
    return list(aligned(rows))


def _warn(unanswered: Sequence[str]) -> None:
    for each in unanswered:
        echo(f"leadkeep: the replica {each} has not answered: something may wait in its spool; ask again", err=True)
