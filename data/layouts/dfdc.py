"""The layout ``dfdc``: the Deepfake Detection Challenge (Dolhansky et al., 2020), as on Kaggle."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from data.layouts.source import FAKE, REAL, VIDEO_SUFFIXES, Source, corpus_json, media
from parsing import shown
from stage import StageError, some_of

PERSONS_NOTE = (
    "DFDC does not name its actors: its splits share no source video, but the same person may be in several splits."
)


def _is_video_name(name: str) -> bool:
    """Tell whether text is a plain video file name: no path, and no characters that a name cannot have (NUL)."""
    plain = name.isprintable() and name == PurePath(name).name
    return plain and PurePath(name).suffix.lower() in VIDEO_SUFFIXES


def _source(part: Path, root: Path, video: str, entry: Any) -> Source:
    """Return the source of one entry of ``part/metadata.json``, even if its file is missing.

    Raises StageError for an entry of another form.
    """
    match entry:
        case {"label": "REAL"}:
            label, method, original = REAL, "DFDC-original", video
        case {"label": "FAKE", "original": str(original)}:
            label, method = FAKE, "DFDC"
        case _:
            original = ""
    if not (_is_video_name(video) and _is_video_name(original)):
        raise StageError(
            f"{part / 'metadata.json'}: entry {video!r} is not of the form "
            '"a.mp4": {"label": "FAKE", "original": "b.mp4"} or "b.mp4": {"label": "REAL"}: mend or remove it, or give '
            "--layout or --label if this is not DFDC"
        )
    path = part / video
    return Source(path, shown(path.relative_to(root)), label, method, (PurePath(original).stem,))


def _entries(part: Path) -> dict[str, Any]:
    entries = corpus_json(part / "metadata.json")
    if not isinstance(entries, dict):
        raise StageError(f"{part / 'metadata.json'} is not an object of videos: mend it or download it again")
    return entries


def dfdc_layout(root: Path) -> list[Source]:
    """Return the videos that ``metadata.json`` lists, in ``root`` or its sub-folders (``dfdc_train_part_0``, ...).

    The identity is the source video, which may lie in another part. The ``split`` of every entry is "train": it is
    not used. Raises StageError if there is no ``metadata.json`` or one is malformed.
    """
    parts = [file.parent for pattern in ("", "*/") for file in sorted(root.glob(f"{pattern}metadata.json"))]
    if not parts:
        raise StageError(f"{root} has no metadata.json in itself or its sub-folders: give the folder of DFDC's parts")
    return [_source(part, root, video, entry) for part in parts for video, entry in _entries(part).items()]


def dfdc_notes(root: Path, sources: Sequence[Source]) -> list[str]:
    """Return DFDC's notes for reports: splits are by source video; and the files that no metadata.json lists."""
    listed = {os.path.realpath(source.path) for source in sources}  # a part may be a link to a folder beside it
    unlisted = [name for path, name in media(root) if os.path.realpath(path) not in listed]
    if not unlisted:
        return [PERSONS_NOTE]
    return [
        PERSONS_NOTE,
        f"DFDC: {len(unlisted)} videos that no metadata.json lists were left out: {some_of(unlisted)}.",
    ]
