"""The command ``pocketproof``: one sub-command per stage, and ``demo``, which runs the whole chain."""

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stage import Seed, StageError, call, say

STAGES = {
    "demo": ("pocketproof", "Run the whole chain on data it makes itself, without a network."),
    "prepare": ("data.prepare", "Turn videos into clips of one tracked face."),
    "inspect": ("data.inspect", "Count what is in a ClipStore and draw a contact sheet."),
    "teach": ("compress.teach", "Fine-tune a teacher."),
    "distill": ("compress.distill", "Distill a teacher into a student small enough for a phone."),
    "quantize": ("compress.quantize", "Turn a run into one that computes in fewer bits."),
    "evaluate": ("export.evaluate", "Measure a run or an artifact on any corpus, also on recompressed crops."),
    "export": ("export.export", "Write runs as artifacts for phones, each checked on real crops."),
    "verify": ("export.verify", "Check that a bundle is whole and gives what it gave; needs no torch."),
    "reference": ("benchmarks.reference", "Measure a teacher: scores, latency, memory."),
    "bench": ("benchmarks.bench", "Measure every artifact and run and write the report."),
    "report": ("benchmarks.merging", "Put the reports of several machines into one."),
    "detect": ("export.detect", "Score videos exactly as the phone app would."),
    "doctor": ("benchmarks.machine", "Say what this machine can do."),
}
"""Sub-command to its module, which has a function of the same name, and one line of help."""

RENDERS, CONTROLS, FRAMES, SIZE = 80, 12, 4, 168
RATIOS = "0.65,0.1,0.25"
TEACHER, STUDENT, LARGE_TEACHER = "repvit_m1_0", "repvit_m0_9", "vit_base_patch14_dinov2"


def _run_step(name: str, made: Path, step: Callable[[], object]) -> float:
    """Run one step of the demo unless an earlier, interrupted demo has made its result; return its seconds."""
    started = time.perf_counter()
    if made.exists():
        say(f"== {name}: kept {made}")
    else:
        say(f"== {name}")
        step()
    return time.perf_counter() - started


def demo(
    out: Annotated[Path, typer.Option(help="The folder for everything that the demo makes.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """Run the whole chain on videos that it renders itself: no network, a few minutes on two cores.

    A second call goes on after what an interrupted one has made, and shows the figures again.

    Example: **pocketproof demo --out demo**
    """
    # Imported here, so that the other commands start without them.
    from benchmarks.bench import bench
    from benchmarks.reference import reference
    from benchmarks.render import table_text
    from benchmarks.report import read_report
    from compress.distill import distill
    from compress.quantize import quantize
    from compress.teach import teach
    from data.demo import render_corpora
    from data.prepare import prepare
    from export.export import export

    workers = os.cpu_count() or 1
    store, control_store, runs = out / "store", out / "control-store", out / "runs"
    teacher, student, int8 = runs / "teacher", runs / "student", runs / "student-int8"
    large, ref, bundle, report = runs / "dinov2-base-random", out / "reference.json", out / "bundle", out / "report"
    prepared: dict[str, Any] = {"frames": FRAMES, "size": SIZE, "workers": workers, "seed": seed}
    scratch: dict[str, Any] = {"random_weights": True, "unfreeze": "all", "learning_rate": 2e-3, "seed": seed}
    steps: dict[str, tuple[Path, Callable[[], object]]] = {
        "render videos": (store, lambda: render_corpora(out, RENDERS, CONTROLS, seed, workers)),
        "prepare the corpus": (store, lambda: prepare([out / "corpus"], store, ratios=RATIOS, **prepared)),
        "prepare the control": (
            control_store,
            lambda: prepare([out / "control"], control_store, ratios="0,0,1", **prepared),
        ),
        f"teach {TEACHER} from scratch": (
            teacher,
            lambda: teach("dino", store, teacher, backbone=TEACHER, epochs=1, batch_size=8, **scratch),
        ),
        f"create {LARGE_TEACHER} for its latency": (
            large,
            lambda: teach("dino", store, large, backbone=LARGE_TEACHER, epochs=0, **scratch),
        ),
        f"distill into {STUDENT}": (
            student,
            lambda: distill(store, student, teacher, student=STUDENT, epochs=2, seed=seed),
        ),
        "quantize to int8": (int8, lambda: quantize(student, store, int8, calibration_clips=32, seed=seed)),
        "export to three runtimes": (bundle, lambda: export([student, int8], store, bundle)),
        "measure the reference": (ref, lambda: reference(teacher, store, ref, repeats=30)),
        "measure everything": (
            report,
            lambda: bench([bundle, large, student], store, ref, report, rounds=1, control=control_store),
        ),
    }
    measured_before = report.exists()
    seconds = {name: _run_step(name, made, step) for name, (made, step) in steps.items()}
    if measured_before:
        print(table_text(read_report(report / "report.json")))
    say("seconds: " + ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()))
    say(f"demo finished in {sum(seconds.values()):.0f} s")
    for path in (report / "report.html", report / "report.md", report / "report.json", bundle):
        print(path)


def build_app(chosen: str) -> typer.Typer:
    """Return the command line. Only the chosen stage is imported: others are there for ``--help`` alone."""
    app = typer.Typer(
        name="pocketproof",
        help="Makes big deepfake detectors small enough for a phone and proves what that cost.",
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    for name, (module, summary) in STAGES.items():
        stage: Callable[..., Any] = _stand_in
        if name == chosen:
            stage = demo if name == "demo" else getattr(importlib.import_module(module), name)
        app.command(name, short_help=summary)(stage)
    return app


def _stand_in() -> None:
    raise StageError("this stage was not imported: call it as the first argument")


def main() -> None:
    """Run the command line."""
    chosen = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    call(build_app(chosen))


if __name__ == "__main__":
    main()
