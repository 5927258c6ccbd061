"""Rows against each other: speed against the teacher, verdicts against the fp32 run, schemes against fp32."""

import itertools
from collections.abc import Sequence

import numpy as np

from benchmarks.figures import Peak
from benchmarks.rows import Subject
from benchmarks.schema import LEAST_BOUND, MOST_FLIPS, MOST_LOST
from compress.auc import auc_change, auc_difference
from compress.metrics import verdict_flips
from stage import STATIC_INT8


def share_thresholds(subjects: Sequence[Subject], fingerprint: str) -> None:
    """Let rows that are compared have thresholds of one store: those of two would turn verdicts that rounding does not.

    A run gets one on the scored store in place of that of its own store, and its row says so, if an artifact of the
    same student has its own from there, or, without any artifact, another run of it. A row under autocast gets the
    threshold of its fp32 run, if that is of another store, as a store of test clips alone has none to give.
    ``fingerprint``: of the scored store, where all other rows get theirs.
    """
    stores_of_artifacts: dict[str | None, set[str | None]] = {}
    for subject in (subject for subject in subjects if subject.artifact):
        stores_of_artifacts.setdefault(subject.student, set()).add(subject.threshold_store)
    runs_there = {s.student for s in subjects if not s.artifact and s.threshold_store == fingerprint}
    for subject in subjects:
        beside = stores_of_artifacts.get(subject.student, {fingerprint} if subject.student in runs_there else set())
        moved = subject.row.kind == "run" and fingerprint in beside
        if moved and subject.threshold_store not in (None, fingerprint):
            subject.threshold, subject.threshold_store = None, fingerprint
            told = "at a threshold of the scored store's validation clips, as what it is compared with is"
            subject.row.reason = "; ".join(filter(None, (subject.row.reason, told)))
    shipped = {s.path: s for s in subjects if s.row.kind == "run" and s.threshold_store not in (None, fingerprint)}
    for subject in (subject for subject in subjects if subject.threshold is None):
        subject.threshold_store = fingerprint
        if run := shipped.get(subject.path):
            subject.threshold, subject.threshold_store = run.threshold, run.threshold_store
            subject.row.reason = subject.row.reason or "at the threshold of its fp32 run, which is of another store"


def compare_rows(subjects: Sequence[Subject]) -> None:
    """Fill in speedup, size ratio, verdict flips, and whether each scheme earned its slot.

    The speedup refers to the first fp32 teacher among the rows, at the same number of threads; flips refer to the fp32
    run that a row was made from, if both thresholds are of one store.
    """
    fp32_runs = {s.student: s for s in subjects if s.fp32_run and s.scores is not None}
    teachers = [s for s in subjects if s.teacher and s.row.scheme == "fp32" and s.row.latency_ms]
    for subject in subjects:
        row = subject.row
        base = next((s.row for s in teachers if s.path == teachers[0].path and s.row.threads == row.threads), None)
        if base and base.latency_ms and not row.simulated:
            row.speedup_over = base.as_teacher
            row.size_ratio = base.bytes / row.bytes
            if row.latency_ms:
                row.speedup = base.latency_ms.p50 / row.latency_ms.p50
        student = fp32_runs.get(subject.student)
        if has_flips(subject) and student and comparable_verdicts(subject, student):
            _set_flips(subject, student)
        if row.scheme != "fp32":
            row.earned, row.earned_because = _earned(subject, _fp32_counterpart(subject, subjects))


def comparable_verdicts(one: Subject, other: Subject) -> bool:
    """Return whether two models' thresholds are of one store: those of two turn verdicts that rounding does not."""
    return one.threshold_store == other.threshold_store


def has_flips(subject: Subject) -> bool:
    """Return whether verdict flips say something of a row: of one that has scores, and is no teacher in float."""
    return subject.scores is not None and not (subject.teacher and subject.row.scheme in ("fp32", "autocast"))


def against_peaks(subjects: Sequence[Subject], peaks: Sequence[Peak]) -> None:
    """Fill in each row's speed as a share of the fastest matrix product in its arithmetic on the same cores."""
    for row in (subject.row for subject in subjects):
        peak = next((peak for peak in peaks if peak.threads == row.threads), None)
        # torch simulates int8 in float32, and autocast's bfloat16 has no peak here. Core ML chooses its own cores, and
        # may use a GPU or neural engine.
        has_peak = not row.own_threads and (row.scheme == "fp32" or row.kind == "artifact")
        if peak and row.latency_ms and row.macs and has_peak:
            fastest = peak.int8_gmacs if row.scheme in STATIC_INT8 else peak.fp32_gmacs
            row.peak_fraction = row.macs / row.latency_ms.p50 / 1e6 / fastest


def _set_flips(subject: Subject, student: Subject) -> None:
    """Fill in the shares of clips and of frames whose verdicts differ; of frames only if both models score frames."""
    row, scores, student_scores = subject.row, subject.scores, student.scores
    assert scores is not None and student_scores is not None
    assert subject.threshold is not None and student.threshold is not None
    row.student = student.row.name
    row.verdict_flips, *at_equal_error = _flips_at_thresholds(subject, student)
    row.equal_error_flips = at_equal_error[0] if at_equal_error else None
    if scores.frames is not None and student_scores.frames is not None:
        valid = ~np.isnan(student_scores.frames)
        row.frame_verdict_flips = verdict_flips(
            scores.frames[valid], subject.threshold.value, student_scores.frames[valid], student.threshold.value
        )


def _fp32_counterpart(subject: Subject, subjects: Sequence[Subject]) -> Subject | None:
    """Return the same student in fp32, in the same runtime and form and on the same device and threads, if any."""
    row = subject.row
    setting = (row.kind, row.runtime, row.device, row.threads)
    for candidate in subjects:
        other = candidate.row
        same_setting = (other.kind, other.runtime, other.device, other.threads) == setting
        if not same_setting or candidate.form != subject.form:
            continue
        if other.scheme == "fp32" and candidate.student == subject.student:
            return candidate
    return None


def _earned(subject: Subject, base: Subject | None) -> tuple[bool | None, str]:
    """Return whether a scheme is faster than fp32 and as accurate, and the reason; None if it cannot be told."""
    if subject.row.simulated:
        return None, "computed in float32 by torch: its latency and size say nothing"
    if base is None:
        return None, "no fp32 row of the same student, runtime and device to compare with"
    latency, base_latency = subject.row.latency_ms, base.row.latency_ms
    if latency is None or base_latency is None:
        return None, "not timed here"
    if subject.scores is None or base.scores is None:
        return None, "its accuracy was not measured"
    if len(np.unique(subject.scores.labels)) < 2:
        return None, "accuracy needs both labels"
    speedup = base_latency.p50 / latency.p50
    difference, interval = auc_difference(subject.scores, base.scores)
    summary = f"{speedup:.3g}x as fast as fp32, AUC {difference:+z.4f}"
    summary += f" ({interval[0]:+z.4f} to {interval[1]:+z.4f})" if interval else " (too few persons for an interval)"
    flips = max(_flips_at_thresholds(subject, base)) if comparable_verdicts(subject, base) else None
    spread = max(subject.row.spread or 0, base.row.spread or 0)
    faults = []
    if speedup <= 1 + spread:
        faults.append("not faster here" if speedup <= 1 else f"by less than these latencies vary, {spread:.1%}")
    if difference < -MOST_LOST or (interval and interval[0] < LEAST_BOUND):
        faults.append(f"loses more than {MOST_LOST} AUC" if difference < -MOST_LOST else f"may lose {-LEAST_BOUND} AUC")
    if flips is None and not faults:
        return None, f"{summary}; its verdicts cannot be compared: its threshold and fp32's are of two stores"
    if flips is not None and _too_many_flips(flips, subject):
        faults.append(f"turns {flips:.1%} of the verdicts")
    return not faults, "; ".join([summary, *faults])


def _too_many_flips(flips: float, subject: Subject) -> bool:
    """Return whether a share of differing verdicts is more than MOST_FLIPS, and more than one clip."""
    assert subject.scores is not None
    return flips > max(MOST_FLIPS, 1 / len(subject.scores.clips))


def _model_of(subject: Subject) -> tuple[object, ...]:
    """Return the key that one run's artifacts share in all runtimes."""
    artifact = subject.artifact
    assert artifact is not None
    return artifact.source_run, artifact.scheme, artifact.method


def _flips_at_thresholds(one: Subject, other: Subject) -> list[float]:
    """Return the shares of clips whose verdicts differ, at the shipped thresholds and, if known, at equal error."""
    assert one.scores is not None and other.scores is not None
    assert one.threshold is not None and other.threshold is not None
    thresholds = [(one.threshold.value, other.threshold.value)]
    if one.threshold.equal_error is not None and other.threshold.equal_error is not None:
        thresholds.append((one.threshold.equal_error, other.threshold.equal_error))
    return [verdict_flips(one.scores.clips, first, other.scores.clips, second) for first, second in thresholds]


def runtimes_apart(subjects: Sequence[Subject]) -> list[str]:
    """Return a note for each pair of one run's artifacts that differ in two runtimes by more than rounding explains."""
    scored = {s.row.name: s for s in subjects if s.artifact and s.scores is not None}.values()
    notes = []
    for one, other in itertools.combinations(scored, 2):
        comparable = _model_of(one) == _model_of(other) and one.row.runtime != other.row.runtime
        if not comparable or one.row.auc is None or other.row.auc is None:
            continue
        difference = abs(auc_change(one.row.auc, other.row.auc))
        apart = f"{one.row.name} and {other.row.name} are one model in two runtimes, and lie {difference:.4f} AUC"
        if not comparable_verdicts(one, other):
            if difference > MOST_LOST:
                notes.append(f"{apart} apart (at most {MOST_LOST} is expected).")
            continue
        flips = max(_flips_at_thresholds(one, other))
        if difference > MOST_LOST or _too_many_flips(flips, one):
            expected = f"at most {MOST_LOST} and {MOST_FLIPS:.0%} are expected"
            notes.append(f"{apart} and {flips:.1%} of the verdicts apart ({expected}).")
    return notes
