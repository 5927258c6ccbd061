"""Turn corpora into sources: recognize the layout of each, list its files, and select the requested ones."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from data.layouts.celebdf import celebdf_layout
from data.layouts.dfdc import dfdc_layout, dfdc_notes
from data.layouts.ffpp import COMPRESSIONS, compression_notes, ffpp_layout, of_compression, with_official_split
from data.layouts.flat import flat_layout
from data.layouts.folder import folder_layout
from data.layouts.labels import label_notes, refuse_other_labels
from data.layouts.notes import corpus_note, named_by_files, overlooked_notes, titled
from data.layouts.source import PHOTO_SUFFIXES, VIDEO_SUFFIXES, Source, folders_below, one_form
from data.layouts.table import csv_layout
from stage import StageError, WrongArgument, some_of

LAYOUTS: dict[str, Callable[[Path], list[Source]]] = {
    "ffpp": ffpp_layout,
    "celebdf": celebdf_layout,
    "folder": folder_layout,
    "dfdc": dfdc_layout,
    "csv": csv_layout,
}
"""For each layout, the function from a corpus's folder (csv: its table) to its sources."""
MARKS = {
    "ffpp": ("original_sequences/", "manipulated_sequences/"),
    "celebdf": ("Celeb-real/", "Celeb-synthesis/", "YouTube-real/"),
    "folder": ("real/", "fake/"),
    "dfdc": ("metadata.json", "*/metadata.json"),
}
"""For each layout, glob patterns of which its folder matches at least one; the first layout that fits is taken."""


@dataclass(frozen=True)
class Selection:
    """Which files to take from the corpora: options of ``prepare``. Raises WrongArgument for illegal values."""

    layout: Annotated[
        Literal["auto", "ffpp", "dfdc", "celebdf", "folder", "csv"], typer.Option(help="How the folders are laid out.")
    ] = "auto"
    label: Annotated[
        Literal["real", "fake"] | None, typer.Option(help="Label of everything in folders of no layout.")
    ] = None
    identity_pattern: Annotated[
        str | None, typer.Option(help="With --label: regular expression whose first group in a path is the identity.")
    ] = None
    methods: Annotated[str | None, typer.Option(help="Only these methods, with commas between.")] = None
    max_videos: Annotated[int | None, typer.Option(help="At most so many videos of each method.", min=1)] = None
    compression: Annotated[
        Literal["c0", "c23", "c40"] | None, typer.Option(help="FaceForensics++: only this compression.")
    ] = None
    official_splits: Annotated[
        Path | None, typer.Option(help="FaceForensics++: folder of its train.json, val.json and test.json.")
    ] = None

    def __post_init__(self) -> None:
        if self.layout not in ("auto", *LAYOUTS):
            raise WrongArgument(f"--layout {self.layout!r} is not known: give auto, {' or '.join(LAYOUTS)}")
        if self.label not in (None, "real", "fake"):
            raise WrongArgument(f"--label {self.label!r} is not known: give real or fake")
        if self.label and self.layout != "auto":
            raise WrongArgument(
                f"--label {self.label} and --layout {self.layout}: a layout has its own labels, give one"
            )
        if self.identity_pattern is not None and not self.label:
            raise WrongArgument(
                "--identity-pattern is for folders with --label: a layout has its own identities; a .csv file "
                "(path,label,identity) names others"
            )
        if self.max_videos is not None and self.max_videos < 1:
            raise WrongArgument(f"--max-videos {self.max_videos}: give at least 1")
        if self.compression not in (None, *COMPRESSIONS):
            raise WrongArgument(f"--compression {self.compression!r} is not known: give {', '.join(COMPRESSIONS)}")


def _layout_of(root: Path, selection: Selection) -> str:
    """Return the name of a corpus's layout: one of LAYOUTS, or ``flat``. Raises StageError if there is none."""
    layout = "flat" if selection.label else selection.layout
    if layout == "auto" and root.suffix.lower() == ".csv" and not root.is_dir():
        layout = "csv"
    if not root.exists():
        raise StageError(f"{root} does not exist: give the folder, or the .csv file, of a corpus")
    if layout == "csv" and not root.is_file():
        raise StageError(f"{root} is not a file: the layout csv takes the .csv file of a corpus")
    if layout != "csv" and not root.is_dir():
        raise StageError(f"{root} is not a folder: give the folder of a corpus (detect scores single files)")
    if layout != "auto":
        return layout
    if known := _marked(root):
        return known
    if misnamed := _named_otherwise(root):
        raise StageError(f"{root} has no known layout: {misnamed}")
    expected = ", ".join(f"{' or '.join(marks)} ({layout})" for layout, marks in MARKS.items())
    within = [f"{folder} ({name})" for folder in sorted(folders_below(root)) if (name := _marked(folder))]
    remedy = f"give what has one, {some_of(within)}" if within else "give --label for a folder of one label"
    above = _marked(root.absolute().parent)
    if not within and above and f"{root.absolute().name}/" in MARKS[above]:
        remedy = f"give the folder above it ({above}), or --label for a folder of one label"
    raise StageError(
        f"{root} has no known layout: expected {expected} or a .csv file; name one with --layout, or {remedy}"
    )


def _named_otherwise(root: Path) -> str:
    """Return how to rename a folder that is named as a layout has it but for capitals; "" if there is none."""
    marks = {
        mark.rstrip("/").lower(): mark.rstrip("/") for marks in MARKS.values() for mark in marks if mark.endswith("/")
    }
    misnamed = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name.lower() in marks)
    return "; ".join(f"{name} must be named {marks[name.lower()]}" for name in misnamed)


def _marked(folder: Path) -> str | None:
    """Return the first layout whose marks a folder has, or None."""
    return next((name for name, marks in MARKS.items() if any(any(folder.glob(mark)) for mark in marks)), None)


def _read(root: Path, layout: str, selection: Selection) -> list[Source]:
    """Return the sources of a corpus. Raises StageError if there is none."""
    if layout == "flat":
        sources = flat_layout(root, selection.label or "", selection.identity_pattern)
        refuse_other_labels(root, sources, selection.label or "")
    else:
        sources = LAYOUTS[layout](root)
    if not sources:
        photos = f" or photo ({', '.join(sorted(PHOTO_SUFFIXES))})" if layout in ("folder", "flat") else ""
        videos = f"video ({', '.join(sorted(VIDEO_SUFFIXES))})"
        raise StageError(f"{root} holds no {videos}{photos} where {titled(layout)} has it")
    if layout == "ffpp" and selection.compression:
        sources = of_compression(sources, selection.compression)
    if layout == "ffpp" and selection.official_splits:
        sources = with_official_split(sources, selection.official_splits)
    return [replace(source, identities=tuple(dict.fromkeys(map(one_form, source.identities)))) for source in sources]


def read_sources(roots: Sequence[Path], selection: Selection) -> tuple[list[Source], list[str]]:
    """Return the sources of all corpora, and notes for reports: the corpora's own, and what was left out.

    Raises StageError for a corpus that is missing, empty or malformed, and for two files of the same name.
    """
    layouts = [_layout_of(root, selection) for root in roots]
    if (selection.compression or selection.official_splits) and "ffpp" not in layouts:
        raise StageError("--compression and --official-splits are for FaceForensics++ (ffpp), and none is given")
    corpora = [(root, layout, _read(root, layout, selection)) for root, layout in zip(roots, layouts, strict=True)]
    all_sources = [source for _, _, sources in corpora for source in sources]
    _refuse_same_names(all_sources)
    selected = _at_most(_of_methods(all_sources, selection.methods), selection.max_videos)
    _refuse_second_names(selected)
    notes = [
        note for root, layout, sources in corpora for note in _notes(root, layout, sources, set(selected), selection)
    ]
    if len(selected) < len(all_sources):
        notes.append(f"{len(selected)} of {len(all_sources)} files were taken ({_asked(selection)}).")
    return selected, list(dict.fromkeys(notes))


def _notes(
    root: Path, layout: str, sources: Sequence[Source], selected: AbstractSet[Source], selection: Selection
) -> list[str]:
    """Return the notes on one corpus; ``selected``: the selected sources of all corpora."""
    note = corpus_note(root.parent if layout == "csv" else root)
    notes = [note] if note else []
    by_name = layout in ("folder", "csv") or (layout == "flat" and selection.identity_pattern is None)
    if by_name and not note:  # a corpus's own note would say whom its files show
        notes += named_by_files(layout, sources, selected)
    if selection.label:
        notes += label_notes(root, sources, selection.label)
    if layout == "ffpp":
        notes += compression_notes([source for source in sources if source in selected])
    if layout == "dfdc":
        notes += dfdc_notes(root, sources)
    elif layout != "csv":  # a table names its files, so that none is overlooked
        # Videos of compressions that were not asked for lie where the layout looks: they are not reported.
        listed = ffpp_layout(root) if layout == "ffpp" and selection.compression else sources
        notes += overlooked_notes(root, listed)
    return notes


def _asked(selection: Selection) -> str:
    options = {"--methods": selection.methods, "--max-videos": selection.max_videos}
    return ", ".join(f"{option} {value}" for option, value in options.items() if value is not None)


def _refuse_same_names(sources: Sequence[Source]) -> None:
    """Raise StageError for two sources of one video_id."""
    video_ids: set[str] = set()
    for source in sources:
        if (video_id := source.video_id) in video_ids:
            raise StageError(
                f"{source.name} is in two of the given sources, or in one under two names that are shown alike: "
                "prepare sources into stores of their own, rename a file, or name all in one csv in a folder above them"
            )
        video_ids.add(video_id)


def _refuse_second_names(sources: Sequence[Source]) -> None:
    """Raise StageError for a file with two names (a link), which could be in two splits."""
    files: dict[str, Source] = {}
    for source in sources:
        if (same := files.setdefault(os.path.realpath(source.path), source)) is not source:
            labels = ", once real and once fake" if same.label != source.label else ""
            raise StageError(f"{same.name} and {source.name} are one file{labels}: leave one of them out")


def _by_method(sources: Sequence[Source]) -> dict[str, list[Source]]:
    groups: dict[str, list[Source]] = defaultdict(list)
    for source in sorted(sources, key=lambda source: source.name):
        groups[source.method].append(source)
    return groups


def _of_methods(sources: list[Source], methods: str | None) -> list[Source]:
    """Return the sources of the named methods. Raises WrongArgument for a method that no source has."""
    if methods is None:
        return sources
    present = _by_method(sources)
    wanted = [method.strip() for method in methods.split(",")]
    for method in wanted:
        if method not in present:
            counts = ", ".join(f"{name} ({len(group)})" for name, group in sorted(present.items()))
            raise WrongArgument(f"--methods: {method!r} is not there: give some of {counts}")
    return [source for source in sources if source.method in wanted]


def _at_most(sources: list[Source], max_videos: int | None) -> list[Source]:
    """Return at most ``max_videos`` sources of each method, evenly spread over its sorted names.

    FF++'s methods, which number their videos alike, so keep the same pairs, and a small share keeps many actors.
    """
    if max_videos is None:
        return sources
    selected: set[Source] = set()
    for group in _by_method(sources).values():
        indices = np.linspace(0, len(group) - 1, min(max_videos, len(group))).astype(int)
        selected.update(group[index] for index in indices)
    return [source for source in sources if source in selected]
