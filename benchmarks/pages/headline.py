"""The report in two or three sentences: the gains and the losses of the best artifact."""

from benchmarks.pages.columns import COLUMNS, fixed, percent, times
from benchmarks.schema import Report, Row, machine_of
from stage import counted

NO_INT8 = "No int8 artifact was measured for both latency and accuracy."


def _fastest(report: Report, int8: bool) -> Row | None:
    """Return the fastest artifact with a measured accuracy at the fewest threads.

    Those that take a whole clip come last, as where clips overlap they take longer per frame than was measured, and
    those that take several samples at once after the others. Of one artifact on one machine, a row with a speedup comes
    first: several reports may hold it. ``int8``: among the int8 schemes, else among all others. None if there is none.
    """
    candidates = sorted(
        (row.threads, row.whole_clip, row.batch, row.latency_ms.p50, row.bytes, index)
        for index, row in enumerate(report.rows)
        if (row.kind, row.status) == ("artifact", "measured") and row.scheme.startswith("int8") == int8
        if row.latency_ms and row.auc is not None
    )
    rows = [report.rows[index] for *_, index in candidates]
    same = (row for row in rows if row.speedup is not None and _artifact_of(row) == _artifact_of(rows[0]))
    return next(same, rows[0]) if rows else None


def _artifact_of(row: Row) -> tuple[object, ...]:
    """Return the key that an artifact's rows share if they were timed alike on one machine."""
    return row.name, row.sha256, machine_of(row.machine), row.device, row.threads


def _teacher(best: Row, report: Report) -> Row | None:
    """Return the teacher's row to which the speedup of ``best`` refers, if any."""
    key = (best.machine, best.threads, "run", "fp32")
    teachers = [row for row in report.rows if (row.machine, row.threads, row.kind, row.scheme) == key]
    return next((row for row in teachers if row.as_teacher == best.speedup_over), None)


def _cost(best: Row, where: str) -> str:
    """Return the sentence on latency and size; ``where``: the device, with its machine if there are several."""
    text = {title: column.text(best) for title, column in COLUMNS.items()}
    place = where if best.own_threads else f"{where}, {counted(best.threads, 'thread')}"
    cost = f"{best.name} ({text['Runtime']}, {best.scheme}, {place})"
    at_once = f", {best.batch} samples at once" if best.batch > 1 else ""
    at_once += ", more where clips overlap" if best.whole_clip else ""
    at_once += "," if at_once else ""
    cost += f" takes {text['p50, ms']} ms per frame{at_once} and {text['Size, MB']} MB ({best.bytes:,} bytes)"
    if best.speedup is not None:
        cost += f": {text['Speedup']} as fast as the fp32 teacher {best.speedup_over}"
        cost += f" on {counted(best.threads, 'thread')}" if best.own_threads else ""
    if best.size_ratio is not None:
        smaller = best.size_ratio >= 1
        cost += (
            f" and {times(best.size_ratio if smaller else 1 / best.size_ratio)} {'smaller' if smaller else 'larger'}"
        )
    return f"{cost}."


def _accuracy(best: Row, report: Report) -> str:
    """Return the sentence on AUC and verdicts, against the reference and the fp32 run that it was made from."""
    reference = report.reference
    sentence = f"The AUC of {best.name} is {fixed(best.auc)}"
    sentence += f"; the reference's ({reference.run}, {reference.backbone}) is {fixed(reference.auc)}"
    fp32_key = (best.machine, best.student, "fp32")
    for fp32_run in [row for row in report.rows if (row.machine, row.name, row.scheme) == fp32_key][:1]:
        sentence += f" and the fp32 run's {fixed(fp32_run.auc)}"
    if best.verdict_flips is not None:
        sentence += f"; {percent(best.verdict_flips)} of its verdicts differ from the fp32 run's"
    return f"{sentence}."


def headline(report: Report) -> str:
    """Return sentences on the cost and accuracy of the fastest int8 artifact, or of the fastest if none is int8."""
    int8 = _fastest(report, int8=True)
    best = int8 or _fastest(report, int8=False)
    if best is None:
        return f"{NO_INT8} Neither was one of another scheme."
    sentences = [] if int8 else [f"{NO_INT8} The fastest of the others:"]
    sentences += [_cost(best, best.device if len(report.sessions) < 2 else f"{best.device} of {best.machine}")]
    teacher = _teacher(best, report)
    sentences += [_accuracy(best, report)]
    for owner, row in ((best.name, best), ("the teacher", teacher)):
        if row and row.unstable:
            apart = f"medians at different times lie {percent(row.spread)} apart"
            sentences += [f"The latency of {owner} is unstable: {apart}."]
    if teacher and teacher.auc is None:
        sentences += [f"{teacher.name} has no AUC to compare with: {teacher.reason or teacher.status}."]
    return " ".join(sentences)
