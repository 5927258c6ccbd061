"""Rows against each other: speed against the teacher, verdicts against the fp32 student, schemes against fp32."""

import itertools
from collections.abc import Sequence

import numpy as np

from benchmarks.figures import Peak
from benchmarks.rows import Subject
from compress.auc import auc_change, auc_difference
from compress.metrics import verdict_flips
from stage import STATIC_INT8

MOST_LOST = 0.005
"""AUC that a scheme may cost against fp32."""
LEAST_BOUND = -0.01
"""Where the 95 % interval of that difference may begin."""
MOST_FLIPS = 0.03
"""Share of verdicts that a scheme may turn against fp32, or one runtime against another."""


def compare_rows(subjects: Sequence[Subject]) -> None:
    """Fill in speedup, size ratio, verdict flips and what earned its slot.

    Speedup: against the first fp32 teacher among the rows, at the same number of threads. Flips: against the fp32
    student run that a row was made from.
    """
    students = {s.student: s for s in subjects if s.student_fp32 and s.scores is not None}
    teachers = [s for s in subjects if s.teacher and s.row.scheme == "fp32" and s.row.latency_ms]
    for subject in subjects:
        row = subject.row
        base = next((s.row for s in teachers if s.path == teachers[0].path and s.row.threads == row.threads), None)
        if base and base.latency_ms and not row.simulated:
            row.speedup_over = base.as_teacher
            row.size_ratio = base.bytes / row.bytes
            if row.latency_ms:
                row.speedup = base.latency_ms.p50 / row.latency_ms.p50
        if subject.student in students and subject.scores is not None and not subject.teacher:
            _set_flips(subject, students[subject.student])
        if row.scheme != "fp32":
            row.earned, row.earned_because = _earned(subject, _in_fp32(subject, subjects))


def against_peaks(subjects: Sequence[Subject], peaks: Sequence[Peak]) -> None:
    """Fill in the share that each row reaches of the fastest matrix product in its arithmetic on the same cores."""
    for row in (subject.row for subject in subjects):
        peak = next((peak for peak in peaks if peak.threads == row.threads), None)
        # Of a run in torch int8 is simulated in float32, and autocast's bfloat16 has no peak here. Core ML chooses its
        # own cores, on a GPU or neural engine too.
        has_peak = row.runtime != "coreml" and (row.scheme == "fp32" or row.kind == "artifact")
        if peak and row.latency_ms and row.macs and has_peak:
            fastest = peak.int8_gmacs if row.scheme in STATIC_INT8 else peak.fp32_gmacs
            row.peak_fraction = row.macs / row.latency_ms.p50 / 1e6 / fastest


def _set_flips(subject: Subject, student: Subject) -> None:
    """Fill in the shares of clips and of frames whose verdicts differ; of frames if neither model scores clips."""
    mine, its, row = subject.scores, student.scores, subject.row
    assert mine is not None and its is not None and subject.threshold is not None and student.threshold is not None
    row.student = student.row.name
    row.verdict_flips, *at_equal_error = _flips_at_thresholds(subject, student)
    row.equal_error_flips = at_equal_error[0] if at_equal_error else None
    if mine.frames is not None and its.frames is not None:
        seen = ~np.isnan(its.frames)
        row.frame_verdict_flips = verdict_flips(
            mine.frames[seen], subject.threshold.value, its.frames[seen], student.threshold.value
        )


def _in_fp32(subject: Subject, subjects: Sequence[Subject]) -> Subject | None:
    """Return the same student in fp32, in the same runtime and form on the same device and threads."""
    own = subject.row
    for other in subjects:
        row = other.row
        same = (row.kind, row.runtime, row.device, row.threads) == (own.kind, own.runtime, own.device, own.threads)
        same = same and other.form == subject.form
        if same and row.scheme == "fp32" and other.student == subject.student:
            return other
    return None


def _earned(subject: Subject, base: Subject | None) -> tuple[bool | None, str]:
    """Say whether a scheme is faster than fp32 and as accurate, and by how much; None if it cannot be told."""
    if subject.row.simulated:
        return None, "computed in float32 by torch: its latency says nothing"
    if base is None:
        return None, "no fp32 row of the same student, runtime and device to compare with"
    latency, before = subject.row.latency_ms, base.row.latency_ms
    if latency is None or before is None:
        return None, "not timed here"
    if subject.scores is None or base.scores is None:
        return None, "its accuracy was not measured"
    if len(np.unique(subject.scores.labels)) < 2:
        return None, "accuracy needs both labels"
    speed = before.p50 / latency.p50
    point, interval = auc_difference(subject.scores, base.scores)
    told = f"{speed:.3g}x as fast as fp32, AUC {point:+z.4f}"
    told += f" ({interval[0]:+z.4f} to {interval[1]:+z.4f})" if interval else " (too few persons for an interval)"
    faults = []
    turned = max(_flips_at_thresholds(subject, base))
    varies = max(subject.row.spread or 0, base.row.spread or 0)
    if speed <= 1 + varies:
        faults.append("not faster here" if speed <= 1 else f"by less than these latencies vary, {varies:.1%}")
    if point < -MOST_LOST or (interval and interval[0] < LEAST_BOUND):
        faults.append(f"loses more than {MOST_LOST} AUC" if point < -MOST_LOST else f"may lose {-LEAST_BOUND} AUC")
    if _too_many(turned, subject):
        faults.append(f"turns {turned:.1%} of the verdicts")
    return not faults, "; ".join([told, *faults])


def _too_many(turned: float, subject: Subject) -> bool:
    """Tell whether a share of turned verdicts is more than MOST_FLIPS, and more than one clip."""
    assert subject.scores is not None
    return turned > max(MOST_FLIPS, 1 / len(subject.scores.clips))


def _model_of(subject: Subject) -> tuple[object, ...]:
    """Return what is the same of one run's artifacts in several runtimes."""
    own = subject.artifact
    assert own is not None
    return own.source_run, own.scheme, own.method, own.batch


def _flips_at_thresholds(one: Subject, other: Subject) -> list[float]:
    """Return the shares of clips whose verdicts differ, at the shipped thresholds and, if known, at equal error."""
    mine, its = one.threshold, other.threshold
    assert one.scores is not None and other.scores is not None and mine is not None and its is not None
    pairs = [(mine.value, its.value)]
    if mine.equal_error is not None and its.equal_error is not None:
        pairs.append((mine.equal_error, its.equal_error))
    return [verdict_flips(one.scores.clips, at, other.scores.clips, its_at) for at, its_at in pairs]


def runtimes_apart(subjects: Sequence[Subject]) -> list[str]:
    """Name artifacts of one run that say other things in two runtimes than rounding explains."""
    scored = {s.row.name: s for s in subjects if s.artifact and s.scores is not None}.values()
    notes = []
    for one, other in itertools.combinations(scored, 2):
        same = _model_of(one) == _model_of(other) and one.row.runtime != other.row.runtime
        if not same or one.row.auc is None or other.row.auc is None:
            continue
        apart, turned = abs(auc_change(one.row.auc, other.row.auc)), max(_flips_at_thresholds(one, other))
        if apart > MOST_LOST or _too_many(turned, one):
            notes.append(
                f"{one.row.name} and {other.row.name} are one model in two runtimes, and lie {apart:.4f} AUC and "
                f"{turned:.1%} of the verdicts apart (at most {MOST_LOST} and {MOST_FLIPS:.0%} are expected)."
            )
    return notes
