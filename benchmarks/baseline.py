"""The gate against regressions: compares a new report with an earlier one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.schema import Report, Row, machine_of, read_report
from compress.auc import auc_change
from stage import StageError, WrongArgument, counted

Key = tuple[object, ...]
MAX_SLOWER, MAX_AUC_DROP = "10%", 0.005


def parse_max_slower(text: str) -> float:
    """Return 0.1 for ``10%`` or ``0.1``. Raises WrongArgument for other texts, also ``10``, which might mean 10%."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if not match or (float(match[1]) >= 1 and not match[2]):
        raise WrongArgument(f"--max-slower {text}: give a share, as 10% or 0.1")
    return float(match[1]) / (100 if match[2] else 1)


@dataclass(frozen=True)
class BaselineOptions:
    """The baseline of a new report, and how much worse its rows may be: options of ``bench``."""

    baseline: Annotated[
        Path | None, typer.Option(help="An earlier report.json: exit with 1 where a row is worse than allowed.")
    ] = None
    max_slower: Annotated[str, typer.Option(help="With --baseline: latency that a row may gain.")] = MAX_SLOWER
    max_auc_drop: Annotated[float, typer.Option(help="With --baseline: AUC that a row may lose.", min=0)] = MAX_AUC_DROP

    def read(self, place: str, fingerprint: str) -> "Baseline | None":
        """Return the baseline, None without ``--baseline``.

        ``place``: machine or phone of the new report; ``fingerprint``: of its store. Raises StageError if the baseline
        cannot be read, or was measured at another place or on another store, WrongArgument for limits without one.
        """
        if self.baseline is None:
            if (self.max_slower, self.max_auc_drop) != (MAX_SLOWER, MAX_AUC_DROP):
                raise WrongArgument("--max-slower and --max-auc-drop are limits against --baseline: give it too")
            return None
        baseline = Baseline.read(self.baseline, self.max_slower, self.max_auc_drop)
        baseline.check_comparable(place, fingerprint)
        return baseline


@dataclass(frozen=True)
class Baseline:
    """An earlier report, and how much worse the rows of a new one may be."""

    path: Path
    report: Report
    max_slower: float
    """Allowed increase of the median latency, as a share of the earlier one."""
    max_auc_drop: float
    """Allowed loss of AUC."""

    @classmethod
    def read(cls, path: Path, max_slower: str, max_auc_drop: float) -> "Baseline":
        """Read an earlier report. Raises StageError if it cannot be read, has no row, or ``max_slower`` is no share."""
        share = parse_max_slower(max_slower)
        report = read_report(path)
        if not report.rows:
            raise StageError(f"--baseline {path} has no rows: there is nothing to hold the new report against")
        return cls(path, report, share, max_auc_drop)

    def check_comparable(self, place: str, fingerprint: str) -> None:
        """Raise StageError if no row was timed at ``place``, or if another store was scored."""
        places = sorted({_timed_on(row) for row in self.report.rows})
        if place not in places:
            raise StageError(
                f"--baseline {self.path} was measured on {', '.join(places)}, and this is {place}: latency of two "
                "machines says nothing; measure the baseline here"
            )
        if self.report.fingerprint != fingerprint:
            raise StageError(f"--baseline {self.path} was measured on another store: measure it again on this one")

    def regressions(self, rows: Iterable[Row]) -> list[str]:
        """Return a sentence for each row of the baseline that is worse than allowed, missing, or without a figure."""
        rows = list(rows)
        current = {_key(row): row for row in rows}
        same_files = {_key(row, row.sha256): row for row in rows if row.sha256}
        places = {(_timed_on(row), row.device) for row in current.values()}
        return [
            sentence
            for before in self.report.rows
            if (_timed_on(before), before.device) in places
            for sentence in self._regressions_of(
                before, current.get(_key(before)) or same_files.get(_key(before, before.sha256))
            )
        ]

    def _regressions_of(self, before: Row, now: Row | None) -> Iterable[str]:
        name = f"{before.name} ({before.runtime} {before.scheme}, {before.device}, {counted(before.threads, 'thread')})"
        if now is None:
            if before.latency_ms or before.auc is not None:
                yield f"{name} is not measured any more"
            return
        if before.latency_ms:
            if now.latency_ms is None:
                yield f"{name} has no latency any more ({now.reason or now.status})"
            elif (slower := now.latency_ms.p50 / before.latency_ms.p50 - 1) > self.max_slower:
                caveat = ", though it is unstable" if now.unstable or before.unstable else ""
                yield (
                    f"{name} is {slower:.1%} slower: {before.latency_ms.p50:.3g} to {now.latency_ms.p50:.3g} ms, "
                    f"and {self.max_slower:.1%} is allowed{caveat}"
                )
        if before.auc is not None:
            if now.auc is None:
                yield f"{name} has no AUC any more ({now.reason or now.status})"
            elif (lost := -auc_change(now.auc, before.auc)) > self.max_auc_drop:
                yield f"{name} loses {lost:.4f} AUC: {before.auc:.4f} to {now.auc:.4f}"


def _timed_on(row: Row) -> str:
    """Return where a row was timed, whatever the session."""
    return row.place if row.on_phone else machine_of(row.machine)


def _key(row: Row, file: str | None = None) -> Key:
    """Return the fields by which a row is found in another report; ``file``: its hash, in place of the row's name.

    Beside another bundle with a file of that name, a row is named with its bundle.
    """
    return _timed_on(row), row.kind, file or row.name, row.runtime, row.scheme, row.device, row.threads, row.batch
