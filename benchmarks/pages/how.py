"""How each figure of a report was measured: one entry for every column that its pages show."""

from collections.abc import Callable

from benchmarks.figures import RUNS_FOR_P90, RUNS_FOR_P99
from benchmarks.schema import LEAST_BOUND, MOST_FLIPS, MOST_LOST, MOST_SPREAD, Report, Row
from compress.bootstrap import FEWEST_PERSONS


def _span(report: Report, count: Callable[[Row], int]) -> str:
    """Return the least and the largest count of the timed rows as text: ``50 to 150``, or ``50`` if all are equal."""
    counts = sorted({count(row) for row in report.rows if row.latency_ms} or {0})
    return " to ".join(str(count) for count in counts[:: max(1, len(counts) - 1)])


def _of_time(report: Report) -> dict[str, str]:
    return {
        "Process": "Each row is measured in fresh processes that load nothing else, one row after another.",
        "p50, ms; p90, ms; p99, ms": "Milliseconds per frame. "
        "Runs before the clock starts warm it up and do not count. "
        f"Percentiles over {_span(report, lambda row: row.repeats)} repeats, as many of each round; "
        f"below {RUNS_FOR_P90} of them p90 is a dash, and below {RUNS_FOR_P99} p99. "
        "A model of whole clips is timed on clips, and each time divided by their frames; a batch's by its frames. "
        "Where clips overlap, as the manifest's do, a file in steps runs score more often, and a whole-clip file all: "
        "a note says how often.",
        "Spread; Medians, ms; Verdict": "A round is a fresh process of each row, one round of all rows after another. "
        "Spread is the largest less the smallest of the rounds' medians, as a share of their median; of a single "
        f"round, of the three thirds of its one process. Above {MOST_SPREAD:.0%} a row is unstable: its latency is no "
        "ground to choose.",
        "Cores": "Processors that a process was bound to while it was timed, by number: those of the highest clock, "
        "one of each core; a dash where the system has no way to do it.",
        "Load, ms; First run, ms": "From the file on disk to a model that is ready to run, once its runtime is "
        "imported; and its first run, before any warm-up, per frame. Runs in torch are hashed, fused, and converted to "
        "their scheme while they load, and the peak of memory has that in it. These figures and memory are the first "
        "round's.",
        "Frames/s; Repeats": "Frames a second over the timed runs, and how many runs these were.",
        "Speedup; Size ratio": _speedup(report),
    }


def _speedup(report: Report) -> str:
    teachers: dict[str, list[str]] = {}
    for row in report.rows:
        if row.speedup_over:
            teachers.setdefault(row.speedup_over, []).append(row.machine)
    named = [
        name if len(teachers) == 1 else f"{name} on {', '.join(dict.fromkeys(machines))}"
        for name, machines in sorted(teachers.items())
    ]
    return (
        "Median latency and bytes of the fp32 teacher divided by the row's, on the same machine and for the same "
        "number of threads (Core ML chooses its own: the teacher's are the fewest that were asked for). The fp32 "
        f"teacher is {'; '.join(named) or 'missing, so there are none'}."
    )


def _of_size() -> dict[str, str]:
    return {
        "Size, MB": "Bytes of the artifact, or of the run's weights. An MB of a file has 10^6 bytes.",
        "Peak, MB; Over idle, MB": "Peak is the largest resident set of the whole process up to the end of the timing. "
        "Over idle is the same less a process with the runtime imported and nothing loaded. The peak of a .pte has "
        "torch in it, which ExecuTorch's Python package needs, and an app does not. An MB of memory has 2^20 bytes.",
        "Runtime, MB": "Shared libraries of the runtime that the process had loaded on this machine, in 10^6 bytes; 0 "
        "where the system brings them. An app ships a build for its phone, which is of another size.",
        "MACs, G": "10^9 multiply-accumulates a frame, counted in the graph; of a model of clips, a clip's divided by "
        "its frames. A dash where nothing counts them.",
        "Of peak": "Multiply-accumulates a second in the median run, as a share of the fastest matrix product (1024 by "
        "1024, ONNX Runtime) that was measured on the same cores before and after the rows: in bytes for static int8, "
        "in float32 for all else. Runs in torch have it in float32 alone, and Core ML, which chooses its own cores, "
        "not at all. The environments tell these peaks.",
        "Delegated": "Of ExecuTorch, the share of operations that its accelerated backend runs; of Core ML on a Mac, "
        "the share that it prefers to run off the CPU. ONNX Runtime and torch do not say.",
        "Model; Runtime; Scheme; Machine; Device; Threads; Batch; Input, px": "What was measured and where: the "
        "backbone, what runs it, how numbers are stored and computed, the session, what computes, on how many threads, "
        "how many crops or clips at once, and the side of the crop. Core ML chooses its own number of threads: "
        "none is told.",
        "Row; Status": "The artifact's file or the run's folder. Evaluated: scored by something in the runtime's "
        "place, and not timed. What was not measured, or failed, says why.",
    }


def _of_phones() -> dict[str, str]:
    return {
        "Rows of a phone": "A runner that was copied to the phone is called once a round and times the model on "
        "inputs that it makes up. p50 is the median of the calls' medians, p90 and p99 of theirs, where each call made "
        "enough runs; a single call has no spread. A reason says where a runner tells a mean alone, and where "
        "its first, slower runs are in it. A clip "
        "student's two programs are called one by one: the time to load is the sum of both calls', and percentiles and "
        "the first run of a clip are not known.",
    }


def _of_accuracy(report: Report) -> dict[str, str]:
    clips = " and ".join(f"{count} {label}" for label, count in report.clips.items())
    return {
        "AUC; AUC, 95%": f"Area under the ROC curve over the clips of the split {report.split} ({clips}). "
        f"95% is its bootstrap interval, which draws persons anew; it needs {FEWEST_PERSONS} of each label (and is "
        "a dash where all draws agree, as at an AUC of 1), and is too short for few persons and for an AUC near 1. "
        "Bars in the pictures are the same interval.",
        "Video AUC; Frame AUC": "AUC of videos, each the mean over its valid frames, of clip models over "
        "its clips; and of each frame alone, which models of "
        "whole clips do not score.",
        "EER; AP": "Equal error rate and average precision, over the same clips.",
        "Accuracy; Threshold": "Share of right verdicts at the row's own threshold, which was set on its own scores of "
        "validation clips. A run has a threshold of the scored store where its artifacts, or another run of its "
        "student, have theirs from there; autocast of a run whose threshold is of another store has that of the run.",
        "TPR at 1% FPR; TPR at 5% FPR": "Share of fakes found where that share of reals is called fake; a dash where "
        "the split has too few reals to tell.",
        "By method of forgery": "The AUC of one method's fake clips against all real ones, with its interval of 95%.",
        "Delta AUC": f"AUC less that of the reference {report.reference.run} ({report.reference.backbone}) on the "
        "same clips.",
        "Control AUC": f"AUC on forgeries with the identity transform ({report.control_clips or 'no'} clips): 0.5 when "
        "the forgery was learned, higher when traces of how the file was made were. Of artifacts that were timed; a "
        "dash for runs in torch, for what was only evaluated, and in reports without --control.",
    }


def _of_verdicts(report: Report) -> dict[str, str]:
    fp32_runs = ", ".join(sorted({row.student for row in report.rows if row.student}))
    return {
        "Verdict flips; Flips at EER; Frame flips": "Share of clips whose verdict differs from that of the fp32 "
        "run that a row was made from, each at its own threshold; at EER: each at the equal-error threshold of its "
        "own validation clips; and the first by frames. "
        f"Fp32 runs: {fp32_runs or 'none, so there are no flips'}.",
        "Earned its slot": "A scheme has, on this device, if its median latency is below that of fp32 of the same "
        "student in the same runtime by more than the larger spread of the two, and its AUC at most "
        f"{MOST_LOST} lower, with an interval of the difference "
        f"(persons drawn anew) from {LEAST_BOUND} on; where there are too few persons for an interval, the difference "
        f"alone decides. At most {MOST_FLIPS:.0%} of the verdicts may differ from that fp32 row's, at the shipped "
        "thresholds and at those of equal error; one clip always may.",
    }


def _of_more() -> dict[str, str]:
    return {
        "Clip budget": "One clip from the video file to P(fake), step by step in a fresh process: medians of up to "
        "three runs after one to warm up; a step of more than 5 s is run once. Decode and faces go through the video "
        "up to the clip's end, and the clip's share of these frames counts. An artifact in steps embeds each frame and "
        "scores once. In brackets is a step's share of the total. Against teacher is the first teacher's total on the "
        "same machine and threads divided by the row's; Core ML's programs run in threads of its own choice. Peak is "
        "the largest resident set of the process during a step; once a .pte is loaded it has torch in it, which "
        "ExecuTorch's Python package needs, and an app does not.",
        "Sustained speed": "The model runs without a pause, and frames are counted each second, or over each run that "
        "takes longer. Lost is 1 less the median of the last quarter of these figures over that of the first; a dash "
        "where there is one figure alone. Joules are all that the processor used, whatever else ran, divided by "
        "frames.",
        "Slowest operations": "Told by the runtime's own profiler in further runs. The profiler costs time itself, so "
        "that sums exceed the row's latency; a run is one call of the model.",
        "What int8 cost": "Measured on validation crops, in torch. A layer's share is the variance that its rounding "
        "alone adds to the fake-minus-real logit, as a share of that logit's variance (first order).",
        "Crops cut otherwise": "Clips of the same split, cut again from their videos as an app with other habits "
        "would; delta and flips are against the same clips unchanged. Those of unchanged are against the clips as the "
        "store holds them: where prepare --forge made forgeries, these and real clips are compressed anew, with more "
        "around the face, and come out a little otherwise. Moved boxes go in a direction "
        "drawn for each clip. Of another detector's boxes, clips count in which it finds the face.",
    }


def how(report: Report) -> dict[str, str]:
    """Return how each figure was measured, by the columns or the section that show it."""
    on_phones = _of_phones() if any(row.on_phone for row in report.rows) else {}
    return _of_time(report) | on_phones | _of_size() | _of_accuracy(report) | _of_verdicts(report) | _of_more()
