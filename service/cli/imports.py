"""`leadkeep import`: leads that come in as files."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from service import factories
from service.cli.command import (
    MANY_SHARING_ONE,
    NOT_ALL_IMPORTED,
    AsJson,
    DryRun,
    ProgressLine,
    echo,
    end_interrupted,
    print_json,
    stop_requested,
)
from service.cli.database import refusal_of, with_database
from service.config import Settings, load_settings
from service.errors import LeadkeepError, StartRefusedError
from service.files.daily_file import DailyFileError, content_of, read_header, read_lines
from service.importing.csv_file import CsvFile
from service.importing.json_file import JsonFile
from service.importing.pipeline import Pipeline, pool
from service.importing.reports import Report, Result
from service.importing.source import ImportRefusedError, Kind, explicit_mapping, kind_of, names_of
from service.keys.encryption import EncryptionService
from service.storage.database.database import Database
from service.storage.database.failures import StorageFaultError
from service.storage.keys.canary import confirm_canary, plan_of
from service.storage.leads.import_export import hand_over_indexes


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to import, where its results and rejects go, and its rows; None for a daily file."""

    path: Path
    results: Path
    rejects: Path
    rows: CsvFile | JsonFile | None


def _delimiter(written: str) -> str:
    """The parser of --delimiter. Raises typer.BadParameter."""
    delimiter = {"tab": "\t", "\\t": "\t"}.get(written.lower(), written)
    if len(delimiter) != 1 or delimiter in "\"'\r\n " or delimiter.isalnum():
        raise typer.BadParameter("is one character such as , ; | or tab")
    return delimiter


def import_files(
    files: Annotated[list[Path], typer.Argument(help="Daily files, JSON or CSV.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help='"Their header=field", "A+B=field" to join two, "#2=field"; may be repeated.'),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(parser=_delimiter, help="Separator of cells, such as ';' or tab; default: found.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Such as cp1252; default: UTF-8, or UTF-16 by its mark.")] = None,
    results: Annotated[Path | None, typer.Option(help="For the result of each row; default: FILE.results.csv.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="For invalid rows; default: FILE.rejects.csv or .jsonl.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Import leads: daily files as they were, foreign files by their headers. Safe to repeat.

    Exit code 4 if rows could not be imported, 6 if many rows of a file match one lead by its phone or nid alone, 130 if
    it was interrupted.
    """
    settings = load_settings()
    if len(files) > 1 and (results or rejects):
        raise typer.BadParameter("with several files each has its own", param_hint="--results, --rejects")
    # Every file is looked at before the database is: a wrong name must not leave half of an import.
    read = partial(
        _source,
        results=results,
        rejects=rejects,
        mapping=explicit_mapping(mapping or []),
        required=factories.validation_of(settings).required,
        encoding=encoding,
        delimiter=delimiter,
    )
    sources = list(map(read, files))

    async def work(_url: str, database: Database, encryption: EncryptionService) -> tuple[list[Any], bool]:
        return await _import_all(settings, database, encryption, sources, dry_run=dry_run, quiet=as_json)

    done, interrupted = with_database(settings, work, may_be_new=not dry_run)
    if as_json:
        print_json(done)
    if interrupted:
        end_interrupted()
    if any(each["invalid"] + each["failed"] + each["older here"] for each in done):
        raise typer.Exit(NOT_ALL_IMPORTED)
    if any(each["shared_by_many"] for each in done):
        raise typer.Exit(MANY_SHARING_ONE)


async def _import_all(
    settings: Settings,
    database: Database,
    encryption: EncryptionService,
    sources: list[_Source],
    *,
    dry_run: bool,
    quiet: bool,
) -> tuple[list[dict[str, Any]], bool]:
    """Import files; the summaries of those that were begun, and whether the operator interrupted it."""
    stopped = stop_requested()
    validation = factories.validation_of(settings)
    if not dry_run:
        state = await confirm_canary(database, encryption, validation.normaliser_identity)
        encryption.plan = plan_of(state, encryption)
    workers = pool(encryption, validation)
    pipeline = Pipeline(database=database, workers=workers, new_id=factories.new_id, dry_run=dry_run, stopped=stopped)
    done: list[dict[str, Any]] = []
    try:
        for source in sources:
            summary = await _import_one(pipeline, source, encryption) | {"dry_run": dry_run}
            done.append(summary)
            if not quiet:
                _print_summary(summary)
            if stopped.is_set():
                break
        else:
            if not dry_run:
                await hand_over_indexes(database)
    finally:
        workers.shutdown(cancel_futures=True)
    return done, stopped.is_set()


def _source(
    path: Path,
    *,
    results: Path | None,
    rejects: Path | None,
    mapping: dict[str, str],
    required: Collection[str],
    encoding: str | None,
    delimiter: str | None,
) -> _Source:
    """A file that can be imported. `required`: the fields without which there is no lead. Raises ImportRefusedError."""
    kind = kind_of(path, encoding)
    suffix = ".rejects.csv" if kind is Kind.CSV else ".rejects.jsonl"
    results_path = results or path.with_name(path.name + ".results.csv")
    rejects_path = rejects or path.with_name(path.name + suffix)
    if len({each.resolve() for each in (path, results_path, rejects_path)}) < 3:  # one of them is another one
        raise ImportRefusedError("--results and --rejects must be files of their own")
    if kind is Kind.DAILY and (mapping or encoding or delimiter or rejects):
        raise ImportRefusedError(
            f"{path} is a daily file: it goes without --map, --encoding, --delimiter and --rejects"
        )
    if kind is Kind.JSON and delimiter:
        raise ImportRefusedError(f"{path} is JSON: it goes without --delimiter")
    rows: CsvFile | JsonFile | None = None
    if kind is Kind.CSV:
        rows = CsvFile(path, mapping, required, encoding=encoding, delimiter=delimiter)
    elif kind is Kind.JSON:
        rows = JsonFile(path, mapping, required, encoding=encoding)
    return _Source(path, results_path, rejects_path, rows)


async def _import_one(pipeline: Pipeline, source: _Source, encryption: EncryptionService) -> dict[str, Any]:
    path, results, rows = source.path, source.results, source.rows
    if rows is None:
        _require_whole(path, encryption)
        report = Report(results, None)
    else:
        mark = rows.text.encoding != "utf-8"
        headers, delimiter = (rows.headers, rows.delimiter) if isinstance(rows, CsvFile) else (None, ",")
        report = Report(results, source.rejects, headers=headers, delimiter=delimiter, mark=mark)
        if rows.ignored:
            echo(f"{path}: these columns are not imported: {names_of(rows.ignored)}", err=True)
    began = time.monotonic()
    try:
        with closing(report), ProgressLine() as progress:

            def show(done: int) -> None:
                progress.show(f"{path.name}: {done} rows")

            if rows is None:
                await pipeline.import_lines(read_lines(path), report, show)
            else:
                await pipeline.import_rows(rows, report, show)
    except LeadkeepError as error:
        raise StartRefusedError(f"{error.text} ({report.rows} rows are done): run the same command again") from None
    except StorageFaultError as fault:
        raise StartRefusedError(f"{refusal_of(fault)} ({report.rows} rows are done)") from None
    except (OSError, DailyFileError) as error:
        raise StartRefusedError(f"{path} cannot be read on: {error} ({report.rows} rows are done)") from None
    return {
        "file": str(path),
        "rows": report.rows,
        **{result.value: report.counts[result] for result in Result},
        "shared_by_many": report.shared_by_many,
        "seconds": round(time.monotonic() - began, 2),
        "results": str(results),
        "rejects": str(source.rejects) if rows is not None and report.counts[Result.INVALID] else None,
    }


def _require_whole(path: Path, encryption: EncryptionService) -> None:
    """Refuse a daily file that is damaged, or that this keyring cannot open, before anything is imported."""
    try:
        header = read_header(path)
        count = content_of(path).lead_count
    except DailyFileError as error:
        raise ImportRefusedError(f"{path} is not a whole daily file: {error}") from None
    if count != header.lead_count:
        raise ImportRefusedError(f"{path} is damaged: it holds {count} leads, its header names {header.lead_count}")
    if missing := [key_id for key_id in header.key_ids if not encryption.opens_with(key_id)]:
        raise ImportRefusedError(
            f"{path} was sealed with keys that this keyring does not have ({', '.join(missing)}): point "
            "LEADKEEP_KEYRING to the keyring that it was rendered with"
        )


def _print_summary(summary: dict[str, Any]) -> None:
    counted = ", ".join(f"{summary[result]} {result}" for result in Result if summary[result])
    would = " (dry run: nothing was changed)" if summary["dry_run"] else ""
    echo(f"{summary['file']}: {summary['rows']} rows{': ' if counted else ''}{counted}{would}")
    for lead, rows in summary["shared_by_many"].items():
        echo(
            f"  {rows} rows share only the phone or only the nid of lead {lead}: a placeholder, or somebody else's? "
            "They are no leads; they are kept as its resubmissions"
        )
    echo(f"  each row: {summary['results']}")
    if summary["rejects"]:
        echo(f"  to correct and import again: {summary['rejects']}")
