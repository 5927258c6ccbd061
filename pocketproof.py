"""The command ``pocketproof``: one sub-command per stage, and ``demo``, which runs the whole chain."""

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stage import Seed, StageError, call, say

STAGES = {
    "demo": ("pocketproof", "Run the whole chain on data it makes itself, without a network."),
    "prepare": ("data.prepare", "Turn videos into clips of one tracked face."),
    "teach": ("compress.teach", "Fine-tune a teacher."),
    "distill": ("compress.distill", "Distill a teacher into a student small enough for a phone."),
    "quantize": ("compress.quantize", "Turn a run into an integer one."),
    "export": ("export.export", "Write runs as artifacts for phones, each checked on real crops."),
    "reference": ("benchmarks.reference", "Measure a teacher: scores, latency, memory."),
    "bench": ("benchmarks.bench", "Measure every artifact and run and write the report."),
    "detect": ("export.detect", "Score videos exactly as the phone app would."),
    "doctor": ("benchmarks.machine", "Say what this machine can do."),
}
"""Sub-command to its module, which has a function of the same name, and one line of help."""

RENDERS, CONTROLS, FRAMES, EPOCHS = 80, 12, 4, 2
RATIOS = "0.65,0.1,0.25"
TEACHER, STUDENT, LARGE_TEACHER = "repvit_m1_0", "repvit_m0_9", "vit_base_patch14_dinov2"


@contextmanager
def _step(name: str, made: Path, seconds: dict[str, float]) -> Iterator[bool]:
    """Time one step of the demo; gives False where an earlier, interrupted demo has made its result already."""
    started = time.perf_counter()
    if made.exists():
        say(f"== {name}: kept {made}")
        yield False
    else:
        say(f"== {name}")
        yield True
    seconds[name] = time.perf_counter() - started


def demo(
    out: Annotated[Path, typer.Option(help="The folder for everything that the demo makes.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """Run the whole chain on videos that it renders itself: no network, a few minutes on two cores.

    A second call goes on after what an interrupted one has made.

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

    workers, seconds = os.cpu_count() or 1, dict[str, float]()
    store, control_store, runs = out / "store", out / "control-store", out / "runs"
    teacher, student, int8 = runs / "teacher", runs / "student", runs / "student-int8"
    large, ref, bundle, report = runs / "dinov2-base-random", out / "reference.json", out / "bundle", out / "report"
    with _step("render videos", store, seconds) as todo:
        if todo:
            render_corpora(out, RENDERS, CONTROLS, seed, workers)
    for corpus, made, ratios in (("corpus", store, RATIOS), ("control", control_store, "0,0,1")):
        with _step(f"prepare {corpus}", made, seconds) as todo:
            if todo:
                prepare([out / corpus], made, frames=FRAMES, ratios=ratios, workers=workers, seed=seed)
    with _step(f"teach {TEACHER} from scratch", teacher, seconds) as todo:
        if todo:
            options: dict[str, Any] = {
                "random_weights": True,
                "unfreeze": "all",
                "epochs": EPOCHS,
                "learning_rate": 2e-3,
            }
            teach("dino", store, teacher, backbone=TEACHER, seed=seed, **options)
    with _step(f"create {LARGE_TEACHER} for its latency", large, seconds) as todo:
        if todo:
            teach("dino", store, large, backbone=LARGE_TEACHER, random_weights=True, epochs=0, seed=seed)
    with _step(f"distill into {STUDENT}", student, seconds) as todo:
        if todo:
            distill(teacher, store, student, student=STUDENT, epochs=EPOCHS, seed=seed)
    with _step("quantize to int8", int8, seconds) as todo:
        if todo:
            quantize(student, store, int8, calibration_clips=128, seed=seed)
    with _step("export to three runtimes", bundle, seconds) as todo:
        if todo:
            export([student, int8], store, bundle)
    with _step("measure the reference", ref, seconds) as todo:
        if todo:
            reference(teacher, store, ref, repeats=30)
    with _step("measure everything", report, seconds) as todo:
        if todo:
            bench([bundle, large, student], store, ref, report, repeats=50, control=control_store)
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
