# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah export-keys` and `sa-asherah import-keys`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TextIO

import click

from sa_asherah.cli.command import Command, Status, database_option, dry_run_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import date_text, print_json, print_line, print_problems
from sa_asherah.copies import export_lines, read_export
from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.escrow import Merge
from sa_asherah.metastore.stored import stored_rows

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from sa_asherah.copies import Export
    from sa_asherah.escrow import MergeReport

__all__ = ["export_keys", "import_keys", "opened_export"]


@click.command(cls=Command)
@click.argument("file", metavar="FILE")
@database_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def export_keys(  # noqa: PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    file: str,
    database: str | None,
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Copy the key records of this service and product to FILE, a new one ("-" for the standard output).

    The keys stay wrapped: without the key service the copy opens nothing, and the command asks none for a key. Make it
    after the dump of the data, never before: so no value in the dump lacks its key.
    """
    with deployment.key_table(database) as keys, keys.engine.connect() as connection:
        lines = export_lines(keys.ids, keys.regions, stored_rows(connection))
        count = _write(file, lines, dry_run=dry_run)
    if file == "-" and not dry_run:
        pass
    elif as_json:
        print_json({"file": file, "records": count, "dry_run": dry_run})
    elif not count:
        print_line(_NOTHING, "bold red")
    else:
        print_line(f"{'Dry run, to export' if dry_run else 'Exported'}: {count} key records to {file}")
    if not count:
        ctx.exit(Status.NOTHING_FOUND)


_NOTHING = "Nothing found: check SERVICE_NAME, PRODUCT_ID, REGION_SUFFIX and the database."


@click.command(cls=Command)
@click.argument("file", metavar="FILE")
@click.option(
    "--as-conflict",
    metavar="FILE",
    help="Write the records in conflict, with the system keys they need, to an export of their own, a new file.",
)
@database_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def import_keys(  # noqa: PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    file: str,
    as_conflict: str | None,
    database: str | None,
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Insert the key records of FILE that the key table lacks; none that is there is changed.

    Each is opened first, so the key service is asked. Where a place in the table holds the same key, nothing is to be
    done; where it holds another one, both are needed by some value: the record is listed, the status is 1, and
    --as-conflict keeps it. Keys of erased owners are left out. Interrupted, start it again.
    """
    if as_conflict is not None:
        _require_new(as_conflict)  # before anything is inserted
    with (
        opened_export(file) as export,
        deployment.key_table(database) as keys,
        deployment.key_service() as kms,
    ):
        merge = Merge(keys.ids, kms, keys.metastore, keys.policy, read_suffixes=keys.read_suffixes, dry_run=dry_run)
        report = merge.run(export)
        if as_conflict is not None and report.conflicts:
            _write(as_conflict, export_lines(keys.ids, keys.regions, merge.conflicts(export)), dry_run=dry_run)
    if as_json:
        print_json({**dataclasses.asdict(report), "complete": report.is_complete})
    else:
        _print(report, file)
    if report.conflicts or report.failed:
        ctx.exit(Status.FAILED)
    ctx.exit(Status.DONE if report.found else Status.NOTHING_FOUND)


def _print(report: MergeReport, file: str) -> None:
    done = "to insert" if report.dry_run else "inserted"
    print_line(
        f"{report.found} key records: {report.inserted} {done}, {report.already} there already, {report.erased} of "
        f"erased owners, {len(report.conflicts)} in conflict, {len(report.failed)} failed"
    )
    print_problems("in conflict", report.conflicts)
    print_problems("failed", report.failed)
    for key_id, created in report.to_revoke:
        print_line(
            f"revoked in the export, not in the table: {key_id} created {created} ({date_text(created)})", "yellow"
        )
    if report.to_revoke:
        print_line(f"Revoke them here, too: sa-asherah revoke --replay {file}", "bold yellow")
    if not report.found:
        print_line("Nothing found: the export holds no record.", "bold red")
    elif report.is_complete:
        print_line("Dry run: nothing was written." if report.dry_run else "Done.", "green")


@contextmanager
def opened_export(file: str) -> Generator[Export]:
    """Open an export of keys.

    Args:
        file: Its name, `-` for the standard input.

    Yields:
        The export, which is read as it is used.

    Raises:
        ConfigurationError: It cannot be read, or is no whole export.
    """
    with ExitStack() as stack:
        yield read_export(_opened(file, stack))


def _opened(file: str, stack: ExitStack) -> TextIO:
    reason = ""
    try:
        if file != "-":
            return stack.enter_context(Path(file).open(encoding="utf-8", newline=""))
        # It is read more than once; no other process sees the copy.
        copy = stack.enter_context(TemporaryFile("w+", encoding="utf-8", newline=""))  # noqa: SIM115 # it is closed
        shutil.copyfileobj(sys.stdin, copy)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except UnicodeDecodeError:
        reason = "it is no text"
    else:
        return copy
    raise ConfigurationError(f"{file} cannot be read: {reason}")


def _write(file: str, lines: Iterable[str], *, dry_run: bool) -> int:
    """Write an export to a new file that nobody else may read; return how many records it has."""
    path, part = Path(file), Path(f"{file}.part")
    _require_new(file)
    if dry_run:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            return _copy(lines, nowhere)
    if file == "-":
        return _copy(lines, sys.stdout)
    reason = ""
    try:
        out = open(part, "x", encoding="utf-8", newline="", opener=_private)  # noqa: SIM115 # Path.open has no opener
        try:
            with out:
                count = _copy(lines, out)
                out.flush()
                os.fsync(out.fileno())
            part.rename(path)  # it has its name only when it is whole
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except FileExistsError:
        reason = "it is there already: another export is being written, or was killed; then remove it"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    else:
        return count
    raise UsageError(f"{part} cannot be written: {reason}")


def _require_new(file: str) -> None:
    if file != "-" and Path(file).exists():
        raise UsageError(f"there is a file {file}; give another name, or move it away")


def _copy(lines: Iterable[str], out: TextIO) -> int:
    count = -2  # the first line and the last one
    for line in lines:
        out.write(line)
        count += 1
    return count


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
