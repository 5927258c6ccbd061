"""Inspection of a ClipStore: counts by label, method, split and status, and a contact sheet."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from command import run_as_script
from data.layouts import SPLITS
from data.store import FORGED, Clip, ClipStore
from files import check_output, require_writable, written_whole
from stage import StageError, WrongArgument, counted, printable, say, some_of

SHEET_CLIPS, SHEET_FRAMES = 12, 4
TITLE = "Contact sheet of a ClipStore"
"""Title in the PNG's metadata, by which a contact sheet may be overwritten and no other picture."""
WIDTH = 150
"""Width of the printed table in characters, whatever the terminal's width."""
THUMBNAIL, CAPTION = 112, 18
"""Pixels: side of a picture on the sheet, and height of the caption above a clip."""


def count(store: ClipStore) -> dict[str, Any]:
    """Return counts of files and clips by split, label, method and status, and lists of reasons and changed files.

    Forgeries of real files count as clips of 0 files.
    """
    videos = pd.read_parquet(store.path / "videos.parquet")
    videos["label"] = videos["label"].map({0: "real", 1: "fake"})
    groups = videos.groupby(["split", "label", "method", "status"], sort=True)
    table = groups.agg(
        files=("video_id", "count"), clips=("clips", "sum"), forged=("forged_clips", "sum")
    ).reset_index()
    forged = table[table["forged"] > 0].assign(label="fake", method=FORGED, files=0, clips=lambda rows: rows["forged"])
    table["clips"] -= table["forged"]
    table = pd.concat([table, forged], ignore_index=True).drop(columns="forged")
    table = table.groupby(["split", "label", "method", "status"], as_index=False).sum()
    reasons = videos.loc[videos["reason"] != "", "reason"].value_counts()
    info = store.info
    return {
        "store": str(store.path),
        "settings": info.settings.model_dump(mode="json"),
        "notes": info.notes,
        "files": len(videos),
        "status": info.videos,
        "clips": info.clips,
        "groups": table.to_dict("records"),
        "changed": [str(file) for file in store.changed_files()],
        "reasons": {str(reason): int(times) for reason, times in reasons.items()},
    }


def _chosen(store: ClipStore) -> list[tuple[str, Clip]]:
    """Return at most SHEET_CLIPS clips with their splits, taken in turn from each split, label and method."""
    groups: dict[tuple[str, int, str], list[Clip]] = {}
    for split in (split for split in SPLITS if sum(store.info.clips[split].values())):
        for clip in store.clips(split, both=False):
            groups.setdefault((split, clip.label, clip.method), []).append(clip)
    longest = max(map(len, groups.values()))
    in_turn = [
        (split, clips[turn])
        for turn in range(longest)
        for (split, _, _), clips in sorted(groups.items())
        if turn < len(clips)
    ]
    return in_turn[:SHEET_CLIPS]


def contact_sheet(store: ClipStore) -> Image.Image:
    """Return a picture of frames of some clips, one clip per line, their modalities side by side.

    A frame that is not valid is drawn dark. Raises StageError if a clip is damaged.
    """
    chosen, modalities = _chosen(store), store.info.settings.modalities
    frames = np.unique(np.linspace(0, store.frames - 1, SHEET_FRAMES).astype(int)).tolist()
    across = len(frames) * len(modalities)
    sheet = Image.new("RGB", (across * THUMBNAIL, len(chosen) * (THUMBNAIL + CAPTION)), "white")
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for line, (split, clip) in enumerate(chosen):
        top = line * (THUMBNAIL + CAPTION)
        label = "fake" if clip.label else "real"
        canvas.text((4, top + 2), f"{split}  {label}  {clip.method}  {clip.clip_id}", "black", font)
        pictures = {modality: store.pixels(clip, frames, modality) for modality in modalities}
        for column, (frame, modality) in enumerate((f, m) for f in range(len(frames)) for m in modalities):
            thumbnail = _thumbnail(pictures[modality][frame], bool(clip.valid[frames[frame]]))
            sheet.paste(thumbnail, (column * THUMBNAIL, top + CAPTION))
    return sheet


def _thumbnail(picture: NDArray[np.uint8], valid: bool) -> Image.Image:
    small = Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL))
    return small if valid else small.point(lambda value: value // 4)


def _print(counts: dict[str, Any]) -> None:
    table = Table("split", "label", "method", "status", "files", "clips")
    for group in counts["groups"]:
        table.add_row(
            *(Text(printable(str(value))) for value in group.values())
        )  # as rich reads brackets in str as markup
    Console(width=WIDTH, color_system=None).print(table)
    for reason, number in counts["reasons"].items():
        print(f"{counted(number, 'file')}: {printable(reason)}")
    for note in counts["notes"]:
        print(f"note: {printable(note)}")


def _default_sheet(store: Path) -> Path:
    """Return the path STORE.png beside a store, also for a store given as ``.`` or ``a/..``."""
    named_store = store if store.name not in ("", "..") else store.resolve()
    return named_store.with_name(f"{named_store.name}.png")


def _sheet_metadata() -> PngInfo:
    metadata = PngInfo()
    metadata.add_text("Title", TITLE)
    return metadata


def _check_sheet(target: Path) -> None:
    """Raise StageError if a contact sheet cannot be written there, or would overwrite anything but another one.

    Raises WrongArgument for a name that does not end with .png.
    """
    if target.suffix.lower() != ".png":
        raise WrongArgument(f"--sheet {target}: give a name that ends with .png")
    check_output(target)
    if not target.exists():
        return
    try:
        with Image.open(target) as picture:
            is_sheet = picture.info.get("Title") == TITLE
    except (OSError, ValueError, Image.DecompressionBombError):  # a folder, not a picture, or an oversized one
        is_sheet = False
    if not is_sheet:
        raise StageError(f"{target} is no contact sheet: remove it or give another --sheet")


def inspect(
    store: Annotated[Path, typer.Argument(help="The ClipStore.")],
    sheet: Annotated[Path | None, typer.Option(help="The contact sheet to write; STORE.png beside the store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Count what is in a store by label, method, split and status, and draw a contact sheet.

    Example: **pocketproof inspect store**
    """
    opened = ClipStore(store)
    target = sheet or _default_sheet(store)
    _check_sheet(target)
    counts = count(opened)
    if as_json:
        print(json.dumps(counts))
    else:
        _print(counts)
    if changed := counts["changed"]:
        say(f"clip files that are missing or not those that were prepared: {len(changed)} ({some_of(changed)})")
    if not any(sum(clips.values()) for clips in opened.info.clips.values()):
        say(f"{store} holds no clip: there is nothing to draw")
        return
    require_writable(target.parent, "--sheet", "a path")
    picture = contact_sheet(opened)
    with written_whole(target) as aside:
        picture.save(aside, format="PNG", pnginfo=_sheet_metadata())
    say(f"contact sheet: {target}")


if __name__ == "__main__":
    run_as_script(inspect)
