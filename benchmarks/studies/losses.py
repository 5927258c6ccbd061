"""Find the losses that make the best student: ``python -m benchmarks.studies.losses PHOTOS --out DIR``.

RepViT-M0.9 is trained from scratch without a teacher and with each choice of losses: equal steps on the same views,
with several seeds. The teacher is an EfficientNet-Lite0 from ImageNet weights that is first trained on the same photos.
Choices are compared on validation persons; the best one and the student without a teacher are then tested. Intervals
resample persons and seeds, the same ones for both sides of a difference.
"""

import functools
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from benchmarks.machine import describe_machine
from benchmarks.studies.faces import Recipe, train_for
from command import run_as_script
from compress.bootstrap import usable_draws
from compress.distill import distill
from compress.runs import pixel_detector, torch_scorer
from compress.scoring import ClipScores, score_split
from data.store import ClipStore
from models.run import Run
from stage import say, usable_cores

ALONE = "no teacher"
CHOICES = {
    ALONE: "classification",
    "logits, embeddings (KL)": "classification,kl,embedding-kl",
    "logits, embeddings (cosine, orthogonal)": "classification,kl,embedding-cosine",
    "margin, relations": "classification,margin,distance,angle",
    "logits, feature maps": "classification=0.5,kl,dense=2",
}
STUDENT = "repvit_m0_9"


def train_student(loss: str, seed: int, teacher: Path, store: Path, run: Path, views: int) -> Path:
    """Train a student into ``run`` unless it exists; return ``run``."""
    alone = loss == CHOICES[ALONE]
    if not run.exists():
        distill(
            store, run, teacher=None if alone else teacher, student=STUDENT, loss=loss, epochs=1, views=views,
            batch_size=32, learning_rate=1e-3, patience=views, forge=True, live_teacher=not alone, seed=seed,
        )  # fmt: skip
    return run


def train_all(seeds: int, teacher: Path, store: Path, out: Path, views: int) -> dict[str, list[Path]]:
    """Train every choice with every seed, one process per core; return the runs by choice, one per seed."""
    runs = {
        name: [out / f"{store.name}-{views}-views" / f"{loss}-seed-{seed}" for seed in range(seeds)]
        for name, loss in CHOICES.items()
    }
    one_thread = functools.partial(torch.set_num_threads, 1)  # processes with more threads would wait for each other
    with ProcessPoolExecutor(usable_cores(), get_context("spawn"), one_thread) as pool:
        jobs = [
            pool.submit(train_student, loss, seed, teacher, store, runs[name][seed], views)
            for seed in range(seeds)
            for name, loss in CHOICES.items()
        ]
        for job in as_completed(jobs):
            metrics = json.loads((job.result() / "metrics.json").read_text(encoding="utf-8"))
            say(f"{job.result()}: val AUC {metrics['val']['auc']:.3f}")
    return runs


def scores_of(run: Path, store: ClipStore, split: str) -> ClipScores:
    """Return the scores of a run on a split."""
    return score_split(torch_scorer(pixel_detector(Run(run)), torch.device("cpu")), store, split)


def aucs(scores: list[ClipScores], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the AUC of each seed's scores, float64 [seeds]; ``weights``: of the clips, float64 [N]."""
    return np.array([roc_auc_score(seed.labels, seed.clips, sample_weight=weights) for seed in scores])


def interval(own: list[ClipScores], other: list[ClipScores]) -> tuple[float, float]:
    """Return the 95 % interval of the mean AUC of ``own`` less that of ``other``, one item per seed in both."""
    rng = np.random.default_rng(0)
    differences = []
    for weights in usable_draws(own[0].labels, own[0].identities):
        seeds = rng.integers(len(own), size=len(own))
        differences.append(float((aucs(own, weights) - aucs(other, weights))[seeds].mean()))
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


def summary(scores: list[ClipScores], alone: list[ClipScores]) -> dict[str, Any]:
    """Return AUC (mean over seeds), its spread, and its gain over ``alone``, the student without a teacher."""
    seed_aucs = aucs(scores)
    return {
        "auc": float(seed_aucs.mean()),
        "spread": float(seed_aucs.std(ddof=1)),
        "gain": float((seed_aucs - aucs(alone)).mean()),
        "interval": interval(scores, alone),
    }


def show(found: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print one line per choice of losses; ``found``: its ``summary`` by name."""
    table = Table("losses", "AUC", "spread", "gain", "95 %", title=title)
    for name, row in found.items():
        low, high = row["interval"]
        table.add_row(
            name, f"{row['auc']:.3f}", f"{row['spread']:.3f}", f"{row['gain']:+.3f}", f"{low:+.3f} to {high:+.3f}"
        )
    Console(width=110).print(table)


def losses(
    photos: Annotated[Path, typer.Argument(help="Photos of real faces; the person is pNNN at the start of a name.")],
    out: Annotated[Path, typer.Option(help="Folder for the store and the runs; a second call goes on with it.")],
    views: Annotated[int, typer.Option(help="Views of each photo, each seen once: 36 are about 600 steps.")] = 36,
    seeds: Annotated[int, typer.Option(help="Trainings of each choice.", min=2)] = 3,
    size: Annotated[int, typer.Option(help="Pixels of a crop.")] = 128,
    teacher_minutes: Annotated[float, typer.Option(help="Training time of the teacher.")] = 5.0,
) -> None:
    """Compare losses of distillation on validation persons, then test the best.

    Example: **python -m benchmarks.studies.losses ../shared/data/faces --out studies/losses**
    """
    recipe = Recipe(f"EfficientNet-Lite0, {size} px", "tf_efficientnet_lite0", size, 5e-4)
    teacher_run = out / f"teacher-{size}-{teacher_minutes:g}-minutes"
    teacher = train_for(teacher_minutes, recipe, photos, out, teacher_run)
    store = ClipStore(out / f"store-{size}")
    runs = train_all(seeds, teacher_run, store.path, out / teacher_run.name, views)
    val = {name: [scores_of(run, store, "val") for run in seed_runs] for name, seed_runs in runs.items()}
    compared = {name: summary(scores, val[ALONE]) for name, scores in val.items()}
    show(compared, f"validation persons; teacher {teacher['val']['auc']:.3f}")
    best = max((name for name in compared if name != ALONE), key=lambda name: compared[name]["auc"])
    test = {name: [scores_of(run, store, "test") for run in runs[name]] for name in (ALONE, best)}
    tested = {name: summary(scores, test[ALONE]) for name, scores in test.items()}
    show(tested, f"test persons; teacher {teacher['test']['auc']:.3f}")
    report = {
        "teacher": {"val": teacher["val"]["auc"], "test": teacher["test"]["auc"], "minutes": teacher["minutes"]},
        "val": compared,
        "test": tested,
        "best": CHOICES[best],
        "views": views,
        "size": size,
        "machine": describe_machine().model_dump(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    run_as_script(losses)
