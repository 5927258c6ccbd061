"""The whole chain on videos that it renders itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.bench import bench, check_measured
from benchmarks.pages.render import table_text
from benchmarks.reference import reference
from benchmarks.schema import read_report
from command import run_as_script
from compress.distill import distill
from compress.quantize import quantize
from compress.teach import teach
from data.demo import render_corpora
from data.prepare import prepare
from data.store import ClipStore
from export.bundle import Bundle
from export.export import export
from files import check_output
from stage import Seed, StageError, say, usable_cores

RENDERS, CONTROLS, FRAMES, SIZE = 80, 12, 4, 168
RATIOS = "0.65,0.1,0.25"
TEACHER, STUDENT, LARGE_TEACHER = "repvit_m1_0", "repvit_m0_9", "vit_base_patch14_dinov2"


@dataclass(frozen=True)
class Step:
    """One stage of the chain."""

    name: str
    made: Path
    """File or folder that the step makes; if it exists, the step was done by an earlier call."""
    run: Callable[[], object]

    def seconds(self) -> float:
        """Run the step unless its result exists; return the seconds that this took."""
        started = time.perf_counter()
        if self.made.exists():
            say(f"== {self.name}: kept {self.made}")
        else:
            say(f"== {self.name}")
            self.run()
        return time.perf_counter() - started


def _data_steps(out: Path, seed: int) -> list[Step]:
    """Return the steps that make the stores ``out/store`` and ``out/control-store``."""
    workers, store, control = usable_cores(), out / "store", out / "control-store"
    options: dict[str, Any] = {"frames": FRAMES, "size": SIZE, "workers": workers, "seed": seed}
    return [
        Step("render videos", store, lambda: render_corpora(out, RENDERS, CONTROLS, seed, workers)),
        Step("prepare the corpus", store, lambda: prepare([out / "corpus"], store, ratios=RATIOS, **options)),
        Step("prepare the control", control, lambda: prepare([out / "control"], control, ratios="0,0,1", **options)),
    ]


def _model_steps(out: Path, seed: int) -> list[Step]:
    """Return the steps that make the runs in ``out/runs`` and the bundle ``out/bundle``."""
    store, runs = out / "store", out / "runs"
    teacher, student, int8 = runs / "teacher", runs / "student", runs / "student-int8"
    large, bundle = runs / "dinov2-base-random", out / "bundle"
    scratch: dict[str, Any] = {"random_weights": True, "unfreeze": "all", "learning_rate": 2e-3, "seed": seed}

    def teach_small() -> None:
        teach("dino", store, teacher, backbone=TEACHER, epochs=1, batch_size=8, **scratch)

    def create_large() -> None:
        teach("dino", store, large, backbone=LARGE_TEACHER, epochs=0, **scratch)

    return [
        Step(f"teach {TEACHER} from scratch", teacher, teach_small),
        Step(f"create {LARGE_TEACHER} for its latency", large, create_large),
        Step(
            f"distill into {STUDENT}", student, lambda: distill(store, student, teacher, STUDENT, epochs=2, seed=seed)
        ),
        Step("quantize to int8", int8, lambda: quantize(student, store, int8, calibration_clips=32, seed=seed)),
        Step("export to three runtimes", bundle, lambda: export([student, int8], store, bundle)),
    ]


def _measuring_steps(out: Path) -> list[Step]:
    """Return the steps that make ``out/reference.json`` and ``out/report``."""
    store, runs, ref, report = out / "store", out / "runs", out / "reference.json", out / "report"
    models = [out / "bundle", runs / "dinov2-base-random", runs / "student"]
    return [
        Step("measure the reference", ref, lambda: reference(runs / "teacher", store, ref, repeats=30)),
        Step(
            "measure everything",
            report,
            lambda: bench(models, store, ref, report, rounds=1, control=out / "control-store"),
        ),
    ]


def demo(
    out: Annotated[Path, typer.Option(help="The folder for everything that the demo makes.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """Run the whole chain on videos that it renders itself: no network, a few minutes on two cores.

    A second call goes on after what an interrupted one has made, and shows the figures again.

    Example: **pocketproof demo --out demo**
    """
    store, report = out / "store", out / "report"
    check_output(store)  # before anything is rendered there
    if store.exists() and (first_seed := ClipStore(store).info.settings.seed) != seed:
        raise StageError(f"{out} was begun with --seed {first_seed}: give that, or another --out")
    measured_before = report.exists()
    steps = [*_data_steps(out, seed), *_model_steps(out, seed), *_measuring_steps(out)]
    seconds = {step.name: step.seconds() for step in steps}
    if measured_before:
        earlier = read_report(report / "report.json")
        print(table_text(earlier))
        check_measured(earlier, report)
    if absent := Bundle(out / "bundle").manifest.absent:
        raise StageError(f"{out / 'bundle'} lacks {', '.join(entry.file for entry in absent)}: its manifest says why")
    say("seconds: " + ", ".join(f"{name} {duration:.0f}" for name, duration in seconds.items()))
    say(f"demo finished in {sum(seconds.values()):.0f} s")
    for path in (report / "report.html", report / "report.md", report / "report.json", out / "bundle"):
        print(path)


if __name__ == "__main__":
    run_as_script(demo)
