"""The gate against regressions: a new report held against an earlier one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pages.columns import threads_of
from benchmarks.schema import Report, Row, machine_of, read_report
from compress.auc import auc_change
from stage import StageError, WrongArgument

Key = tuple[object, ...]


def parse_share(text: str, option: str) -> float:
    """Return 0.1 of ``10%`` or ``0.1``. Raises StageError for anything else, and for ``10``, which is not ten times."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if not found or (float(found[1]) >= 1 and not found[2]):
        raise WrongArgument(f"{option} {text}: give a share, as 10% or 0.1")
    return float(found[1]) / (100 if found[2] else 1)


@dataclass(frozen=True)
class BaselineOptions:
    """What a new report is held against: options of ``bench``."""

    baseline: Annotated[
        Path | None, typer.Option(help="An earlier report.json: exit with 1 where a row is worse than allowed.")
    ] = None
    max_slower: Annotated[str, typer.Option(help="With --baseline: latency that a row may gain.")] = "10%"
    max_auc_drop: Annotated[float, typer.Option(help="With --baseline: AUC that a row may lose.", min=0)] = 0.005

    def read(self, place: str, fingerprint: str) -> "Baseline | None":
        """Read the report, if there is one. ``place``: the machine, or phone, of the new one.

        Raises StageError if it cannot be read, or has no row of that place or store.
        """
        if self.baseline is None:
            return None
        before = Baseline.read(self.baseline, self.max_slower, self.max_auc_drop)
        before.check_comparable(place, fingerprint)
        return before


@dataclass(frozen=True)
class Baseline:
    """An earlier report, and by how much rows may be worse than in it."""

    path: Path
    report: Report
    max_slower: float
    """Of the median latency, as a share of the earlier one."""
    max_auc_drop: float

    @classmethod
    def read(cls, path: Path, max_slower: str, max_auc_drop: float) -> "Baseline":
        """Read the report to hold a new one against. Raises StageError if it cannot be read, or holds no row."""
        share = parse_share(max_slower, "--max-slower")
        report = read_report(path)
        if not report.rows:
            raise StageError(f"--baseline {path} has no rows: there is nothing to hold the new report against")
        return cls(path, report, share, max_auc_drop)

    def check_comparable(self, place: str, fingerprint: str) -> None:
        """Raise StageError if no row's latency, or if accuracy, was measured on this machine or phone, or store."""
        known = sorted({_place(row) for row in self.report.rows})
        if place not in known:
            raise StageError(
                f"--baseline {self.path} was measured on {', '.join(known)}, and this is {place}: latency of two "
                "machines says nothing; measure the baseline here"
            )
        if self.report.fingerprint != fingerprint:
            raise StageError(f"--baseline {self.path} was measured on another store: measure it again on this one")

    def regressions(self, rows: Iterable[Row]) -> list[str]:
        """Return a sentence for each row that is worse than the baseline allows, is gone, or has lost a figure."""
        now = {_key(row): row for row in rows}
        places = {(_place(row), row.device) for row in now.values()}
        return [
            said
            for before in self.report.rows
            if (_place(before), before.device) in places
            for said in self._worse(before, now.get(_key(before)))
        ]

    def _worse(self, before: Row, now: Row | None) -> Iterable[str]:
        name = f"{before.name} ({before.runtime} {before.scheme}, {before.device}, {threads_of(before.threads)})"
        if now is None:
            yield f"{name} is not measured any more"
            return
        if before.latency_ms:
            if now.latency_ms is None:
                yield f"{name} has no latency any more ({now.reason or now.status})"
            elif (slower := now.latency_ms.p50 / before.latency_ms.p50 - 1) > self.max_slower:
                shaky = ", though it is unstable" if now.unstable or before.unstable else ""
                yield (
                    f"{name} is {slower:.1%} slower: {before.latency_ms.p50:.3g} to {now.latency_ms.p50:.3g} ms, "
                    f"and {self.max_slower:.1%} is allowed{shaky}"
                )
        if before.auc is not None:
            if now.auc is None:
                yield f"{name} has no AUC any more ({now.reason or now.status})"
            elif (lost := -auc_change(now.auc, before.auc)) > self.max_auc_drop:
                yield f"{name} loses {lost:.4f} AUC: {before.auc:.4f} to {now.auc:.4f}"


def _place(row: Row) -> str:
    """Return where a row was timed: on a phone, whatever machine it hung on, or on the machine of its session."""
    return row.device if row.on_phone else machine_of(row.machine)


def _key(row: Row) -> Key:
    return _place(row), row.kind, row.name, row.runtime, row.scheme, row.device, row.threads, row.batch
