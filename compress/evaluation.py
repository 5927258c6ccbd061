"""Evaluates a detector on any store: all figures by frames, clips, videos and methods, also after recompression."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compress.metrics import RATES, Figures, Metrics
from compress.provenance import crops_notes, seen_note
from compress.runs import check_store, own_threshold, pixel_detector, takes, torch_scorer
from compress.scoring import PictureSource, Takes, probability, score_clip_list
from data.recompress import RecompressedStore, Recompression, depth_of
from data.store import ClipStore
from files import check_output, require_writable, written_whole
from models.origin import DataSource, Parent
from models.run import Run
from parsing import parse_json
from stage import Scorer, StageError, WrongArgument, heed_quota, printable, refuse_tf32, say, some_of

COLUMNS = {
    "AUC": "auc",
    "EER": "eer",
    "AP": "ap",
    "accuracy": "accuracy",
    "F1": "f1",
    **{f"TPR at {rate:.0%} FPR": f"tpr_at_fpr {rate}" for rate in RATES},
}
"""From column titles to names of figures in ``Figures``."""


@dataclass(frozen=True)
class Evaluated:
    """A run or an artifact to evaluate."""

    name: str
    sha256: str
    scorer: Scorer
    takes: Takes
    threshold: float
    device: str
    """The device on which it computes."""
    folder: Path
    """The folder in which its evaluations, and no other model's, are saved unless another is asked for."""
    data: DataSource
    """On what it was trained."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, path: Path, store: ClipStore) -> "Evaluated":
        """Load a run of any scheme, on a GPU if there is one; integer programs run on the CPU.

        Raises StageError if its scores mean nothing, or if the store does not hold inputs that it takes.
        """
        run = Run(path)
        if reason := run.info.meaningless:
            raise StageError(f"{path} cannot be evaluated: {reason}")
        check_store(run, store)
        threshold = own_threshold(run).value
        on_gpu = torch.cuda.is_available() and not (run.info.integer or run.info.scheme == "int8-dynamic")
        device = torch.device("cuda" if on_gpu else "cpu")
        refuse_tf32()
        heed_quota()
        scorer = torch_scorer(pixel_detector(run).to(device), device)
        folder = path / "evaluations"
        return cls(run.name, run.sha256, scorer, takes(run.info), threshold, str(device), folder, run.info.data)


class Evaluation(BaseModel):
    """``evaluations/*.json``: a run or an artifact on a split of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    model: Parent
    """The evaluated run or artifact."""
    store: str
    """Name of the store's folder."""
    fingerprint: str
    split: str
    recompression: str | None
    """Codec and level with which the crops were recompressed, as ``h264-23``; None for the store's own crops."""
    device: str
    notes: list[str]
    """The store's notes, and what computed the scores if not the model's own runtime."""
    metrics: Metrics


def _cell(figures: Figures, name: str) -> str:
    """Return the text of a figure, with its interval on a second line."""
    kind, _, rate = name.partition(" ")
    figure = figures.tpr_at_fpr[rate] if rate else getattr(figures, kind)
    span = figures.intervals.get(name)
    return ("–" if figure is None else f"{figure:.3f}") + (f"\n{span[0]:.3f}–{span[1]:.3f}" if span else "")


def _levels(metrics: Metrics) -> dict[str, Figures]:
    """Return the figures of each row of the table: frames if they have scores, clips, videos, and each method."""
    frames = {"frames": metrics.frame} if metrics.frame else {}
    methods = {f"clips of {method}": figures for method, figures in metrics.methods.items()}
    return frames | {"clips": metrics.clip, "videos": metrics.video} | methods


def _reasons(levels: dict[str, Figures]) -> Iterator[str]:
    """Yield a line for each reason why figures are missing, with the figures and the levels concerned."""
    levels_without: dict[tuple[str, str], list[str]] = {}
    for level, figures in levels.items():
        by_reason: dict[str, list[str]] = {}
        for figure, reason in figures.unsupported.items():
            by_reason.setdefault(reason, []).append(figure)
        for reason, names in by_reason.items():
            levels_without.setdefault((", ".join(names), reason), []).append(level)
    for (names_text, reason), affected in levels_without.items():
        yield f"not given for {', '.join(affected)}: {names_text}: {reason}"


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the figures as a table with intervals below them, then the missing figures with the reasons, then notes."""
    levels = _levels(evaluation.metrics)
    how = evaluation.recompression or "crops as they are"
    print(printable(f"{evaluation.model.name} on the {evaluation.split} split of {evaluation.store}, {how}:"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("", "real", "fake", *COLUMNS):
        table.add_column(title, justify="right" if title else "left")
    for level, figures in levels.items():
        figure_cells = [_cell(figures, name) for name in COLUMNS.values()]
        cells = [printable(level), str(figures.real), str(figures.fake), *figure_cells]
        table.add_row(*map(Text, cells))  # in plain text, brackets are no markup
    Console(width=150, color_system=None).print(table)
    by_persons = "; 95 % intervals by persons" if any(figures.intervals for figures in levels.values()) else ""
    print(f"accuracy and F1 at its own threshold, {probability(evaluation.metrics.threshold)}{by_persons}")
    for line in [*_reasons(levels), *(f"note: {note}" for note in evaluation.notes)]:
        print(printable(line))


def _sources(
    store: ClipStore, inputs: Takes, recompressions: Sequence[Recompression], weights: Path | None
) -> list[tuple[str | None, PictureSource]]:
    """Return the store itself, named None, and the requested recompressions of it by name.

    Raises WrongArgument if depth weights are not needed, or if flow would have to be recomputed.
    """
    if weights and not (recompressions and "depth" in inputs.modalities):
        raise WrongArgument("--depth-weights is for --recompress and runs that look at depth: leave it out")
    if recompressions and "flow" in inputs.modalities:
        names = ", ".join(map(str, recompressions))
        raise WrongArgument(f"--recompress {names}: flow cannot be computed from such crops; evaluate without it")
    depth = depth_of(store, weights) if recompressions and "depth" in inputs.modalities else None
    recompressed = [(str(entry), RecompressedStore(store, entry, depth)) for entry in recompressions]
    return [(None, store), *recompressed]


def _name(store: ClipStore, split: str, recompression: str | None) -> str:
    """Return the name of a model's evaluation that distinguishes it from its others."""
    return "-".join(filter(None, (store.name, store.info.fingerprint[:8], split, recompression)))


def _refuse_another_models(target: Path, model: Evaluated) -> None:
    """Raise StageError if there is a file at ``target`` that is no evaluation of this very model."""
    if not target.exists():
        return
    try:
        sha256 = parse_json(target.read_bytes())["model"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        sha256 = None
    if sha256 != model.sha256:
        raise StageError(f"{target} is not of {model.name} as it is now: remove it or give another --out")


def _save(target: Path, evaluation: Evaluation) -> None:
    with written_whole(target) as aside:
        aside.write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")


def evaluations(
    model: Evaluated,
    store: ClipStore,
    split: Literal["train", "val", "test"] = "test",
    recompressions: Sequence[Recompression] = (),
    depth_weights: Path | None = None,
    out: Path | None = None,
) -> Iterator[Evaluation]:
    """Save and yield a model's evaluation on a split of any store, then on each recompression of it.

    ``accuracy`` and ``f1`` are at the model's own threshold. ``out``: the folder to save in; None for the model's own.
    Raises StageError, before anything is scored, if nothing can be saved there, or if ``out`` holds another model's
    evaluation under that name.
    """
    clips = store.clips(split, both=False)
    seen = set(model.data.persons)
    if model.data.fingerprint == store.info.fingerprint and split != "test":  # on its own store, on purpose
        told_apart = model.data.validation_persons is not None
        seen = model.data.training_persons if split == "val" and told_apart else set()
    seen_notes = seen_note([model.name], seen, clips, split)
    of_crops = crops_notes([model.name], model.data.crops, model.takes.modalities, store)
    notes = [*store.info.notes, *model.notes, *of_crops, *seen_notes]
    if lost := [file.name for file in store.lost_files(split)]:
        notes.append(f"{len(lost)} files of the {split} split are missing or damaged: {some_of(lost)}.")
    sources = _sources(store, model.takes, recompressions, depth_weights)
    targets = [(out or model.folder) / f"{_name(store, split, name)}.json" for name, _ in sources]
    for target in targets:
        check_output(target)
        if out:
            _refuse_another_models(target, model)
    require_writable(targets[0], "--out")
    for (name, pictures), target in zip(sources, targets, strict=True):
        description = f"score {split}{f', {name}' if name else ''}"
        scores = score_clip_list(model.scorer, pictures, clips, description, model.takes)
        evaluation = Evaluation(
            model=Parent(name=model.name, sha256=model.sha256),
            store=store.name,
            fingerprint=store.info.fingerprint,
            split=split,
            recompression=name,
            device=model.device,
            notes=notes,
            metrics=scores.metrics(model.threshold),
        )
        try:
            _save(target, evaluation)  # first: whoever prints it may find standard output closed or full
        except StageError:
            yield evaluation
            raise
        yield evaluation
        say(f"saved {target}")
