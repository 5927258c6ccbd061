"""Reports for the tests of their pages: every kind of row and section, and names that mean harm."""

import re
from html.parser import HTMLParser
from typing import Any

from benchmarks.figures import Budget, ClipStep, Latency, MethodFigures, Operation, Peak, Profile, Robustness, Sustained
from benchmarks.schema import ReferenceSummary, Report, Row, Session
from compress.fidelity import Diagnosis, LayerNoise

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
BREAKOUT = '"><script>alert(1)</script>'
CLOSING = "</script></style></svg>$x^{$"
NO_ACCURACY = "the split has no real clips"
MACHINE = "a processor, 2 cores"
PHONE = "a phone, 8 cores"

DIAGNOSIS = Diagnosis(
    samples=64,
    per="frame",
    logit_snr_db=24.25,
    observers={"minmax": 14.0, "histogram": 23.5},
    float_layers=["stem"],
    islands={"gelu": 27, "sigmoid": 10},
    layers=[
        LayerNoise(layer="stem", snr_db=35.5, logit_noise=0.0035),
        LayerNoise(layer="<b>odd</b>", snr_db=21.0, logit_noise=0.00025),
        LayerNoise(layer="head", snr_db=18.0, logit_noise=0.0),
    ],
)


def measured(name: str, p50: float, size: int, **changes: Any) -> Row:
    """Return a row with the figures that every timed artifact has."""
    figures: dict[str, Any] = {
        "kind": "artifact",
        "model": "repvit_m0_9",
        "runtime": "executorch",
        "scheme": "fp32",
        "machine": MACHINE,
        "device": "cpu",
        "threads": 1,
        "input_size": 224,
        "status": "measured",
        "load_ms": 31.25,
        "latency_ms": Latency(p50=p50, p90=1.1 * p50, p99=1.4 * p50),
        "repeats": 200,
        "throughput": 1000 / p50,
        "peak_memory_mb": 142.0,
        "auc": 0.9745,
        "control_auc": 0.51,
        "speedup_over": "runs/dino (vit_base_patch14_dinov2, torch fp32)",
        "speedup": 600 / p50,
        "size_ratio": 346e6 / size,
    }
    return Row(name=name, bytes=size, **figures | changes)


def missing(name: str, **changes: Any) -> Row:
    """Return a row without any figure."""
    figures = ("load_ms", "latency_ms", "throughput", "peak_memory_mb", "auc", "control_auc", "speedup", "size_ratio")
    return measured(name, 1.0, 9_900_000, **dict.fromkeys(figures), repeats=0, **changes)


def plain_report() -> Report:
    """Return a report of one machine in which nothing was measured that an option brings."""
    int8 = {
        "scheme": "int8",
        "auc": 0.9712,
        "auc_interval": (0.9513, 0.9836),
        "delta_auc": -0.01,
        "student": "student-fp32.pte",
        "verdict_flips": 0.0125,
        "equal_error_flips": 0.025,
        "earned": True,
        "earned_because": "3x as fast as fp32, AUC -0.0033",
    }
    return Report(
        sessions=[
            Session(
                machine=MACHINE,
                created="2025-11-21T23:40:00+00:00",
                command="pocketproof bench bundle --out report",
                environment={
                    "processor": "a processor",
                    "versions": {"torch": "2.14.1", "coremltools": None},
                    "devices": ["cpu"],
                },
                peaks=[Peak(threads=1, fp32_gmacs=54.25, int8_gmacs=455.0, drift=0.0125)],
            )
        ],
        fingerprint="0123abcd",
        split="test",
        clips={"real": 40, "fake": 39},
        control_clips=38,
        reference=ReferenceSummary(
            run="runs/dino",
            sha256="ab" * 32,
            backbone="vit_base_patch14_dinov2",
            device="cuda:0",
            precision="fp32",
            clips=79,
            auc=0.9812,
            latency_ms=Latency(p50=6.5, p90=7.5, p99=8.5),
            throughput=820.0,
            best_batch=32,
            tf32=False,
            peak_memory_mb=1512.0,
            device_memory_mb=640.0,
            notes=["measured elsewhere"],
        ),
        diagnoses={"student-int8": DIAGNOSIS},
        notes=["Random weights | <b>no pretraining</b>."],
        rows=[
            measured("runs/dino", 600.0, 346_000_000, kind="run", model="vit_base_patch14_dinov2", runtime="torch"),
            measured("student-fp32.pte", 12.0, 19_300_000),
            measured("student-int8.pte", 4.0, 5_300_000, **int8),
            measured("student-int8.pte", 2.5, 5_300_000, threads=2, **int8),
            measured("student-int8.onnx", 6.0, 5_600_000, runtime="onnxruntime", **int8),
            measured("fast|but_.onnx", 3.0, 5_500_000, scheme="int8", auc=None, reason=NO_ACCURACY),
            missing("student.mlpackage", runtime="coreml", status="not measured", reason="needs macOS"),
            missing("broken.pte", status="failed", reason="killed by signal 9"),
            measured(HOSTILE, 21.5, 5_600_000, runtime="onnxruntime"),
        ],
    )


def _stages(**milliseconds: float) -> list[ClipStep]:
    return [
        ClipStep.model_validate({"name": name, "ms": ms, "peak_memory_mb": 300.0 + 10 * place})
        for place, (name, ms) in enumerate(milliseconds.items())
    ]


def _budgets() -> list[Budget]:
    shared: dict[str, Any] = {
        "machine": MACHINE,
        "threads": 1,
        "frames": 20,
        "video": HOSTILE,
        "picture": (1280, 720),
        "repeats": 3,
    }
    slow = _stages(decode=100.0, faces=300.0, crop=20.0, depth=3000.0, embed=11900.0, score=80.0)
    fast = _stages(decode=100.0, faces=300.0, crop=20.0, score=80.0)
    dino: dict[str, Any] = {"row": "runs/dino", "runtime": "torch", "scheme": "fp32", "teacher": True}
    int8: dict[str, Any] = {"row": "student-int8.pte", "runtime": "executorch", "scheme": "int8", "teacher": False}
    return [
        Budget(**dino, **shared, stages=slow, notes=["depth by the weights <b>random</b>"]),
        Budget(**int8, **shared, stages=fast),
        Budget(**int8 | {"row": BREAKOUT}, **shared, stages=[], reason="no face is seen in 20 frames"),
    ]


def _fill_row(row: Row) -> None:
    row.methods = {
        "Deepfakes": MethodFigures(fake=20, auc=0.9815, auc_interval=(0.96, 0.995)),
        HOSTILE: MethodFigures(fake=19, auc=0.9512, auc_interval=None),
    }
    row.video_auc, row.frame_auc, row.eer, row.ap, row.accuracy = 0.9876, 0.9654, 0.083, 0.9723, 0.9115
    row.tpr_at_fpr = {"0.01": None, "0.05": 0.875}
    row.medians_ms, row.spread, row.cores = [4.0, 4.1, 4.04], 0.025, [1]
    row.macs, row.peak_fraction, row.runtime_bytes = 830_000_000, 0.31, 12_500_000
    row.peak_memory_over_idle_mb, row.delegated_fraction, row.threshold = 61.5, 0.97, 0.4321
    row.first_run_ms, row.frame_verdict_flips = 9.25, 0.015


def full_report() -> Report:
    """Return a report with every section: what each option of ``bench`` brings, a second machine, and hostile names."""
    report = plain_report()
    for row in report.rows[:5]:
        _fill_row(row)
    dino, fp32, int8, _, onnx = report.rows[:5]
    onnx.medians_ms, onnx.spread = [6.0, 6.6, 5.9], 0.1167
    dino.sustained = Sustained(
        seconds=4.5,
        frames_per_second=[1.7, 1.6, 1.5, 1.2],
        drop=0.294,
        joules_per_frame=12.5,
        energy="intel-rapl:0, all that the processor did",
    )
    int8.sustained = Sustained(
        seconds=4.0,
        frames_per_second=[250.0, 251.0, 249.0, 240.0],
        drop=0.04,
        joules_per_frame=None,
        energy="not known: <u>no counters</u>",
    )
    int8.profile = Profile(
        profiler="ExecuTorch's tracer",
        runs=20,
        operations=[
            Operation(name=BREAKOUT, kind="Conv", ms=2.5, share=0.625),
            Operation(name="gelu_3", kind="Gelu", ms=0.5, share=0.125),
        ],
        others_ms=1.0,
    )
    for row in (dino, fp32):
        row.profile = Profile(profiler="", runs=0, operations=[], others_ms=0.0, reason=f"no tracer for {CLOSING}")
    int8.robustness = [
        Robustness(perturbation="unchanged", clips=79, auc=0.9712, delta_auc=0.0, verdict_flips=0.0,
                   equal_error_flips=0.0),
        Robustness(perturbation="cut 10 % wider", clips=79, auc=0.9612, delta_auc=-0.01, verdict_flips=0.038,
                   equal_error_flips=None),
    ]  # fmt: skip
    report.rows.append(measured(CLOSING, 33.0, 7_000_000, machine=PHONE, threads=4, model=BREAKOUT))
    phone = report.sessions[0].model_copy(update={"machine": PHONE, "peaks": [], "command": BREAKOUT})
    report.sessions.append(phone)
    report.budgets = _budgets()
    return report


class Page(HTMLParser):
    """The tables' cells as a browser reads them, every tag, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        """Read a page."""
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and begin a line or a cell."""
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("td", "th", "script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """End a cell."""
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        """Add to the text, and to the cell that is open."""
        inside = self._open[-1] if self._open else ""
        if inside not in ("script", "style"):
            self.text += data
        if inside in ("td", "th"):
            self.rows[-1][-1] += data


def cells_of_markdown(page: str) -> list[list[str]]:
    """Split table lines at the pipes that are not escaped, as GitHub does."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
