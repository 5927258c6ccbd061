"""ClipStore: clips on disk as Parquet, which pandas, DuckDB, Spark and others read without conversion.

``clips/*.parquet`` holds one row per clip (one file per video), ``videos.parquet`` one row per input file with its
status, ``store.json`` the settings and counts. Pictures are PNG, so that no pixel changes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import median_low
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, field_validator

from data.layouts import FAKE, REAL, SPLITS
from data.parquet import Row, read_rows
from data.png import decode_png
from data.schemas import CLIP_SCHEMA, VIDEO_SCHEMA
from data.settings import StoreSettings
from files import name_of, sha256_of
from parsing import read_json
from stage import Modality, StageError, progress, reason_of, say

SCHEMA_VERSION = 2
Status = Literal["ok", "no_face", "too_short", "unreadable", "left_out"]
"""Outcome for an input file; ``left_out``: it shows persons of two splits and was not opened."""

FORGED = "SelfBlended"
"""Method of the fake clips that ``--forge`` makes from real files."""


class StoreInfo(BaseModel):
    """The content of ``store.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    settings: StoreSettings
    notes: list[str]
    videos: dict[str, NonNegativeInt]
    """Number of input files by status."""
    clips: dict[str, dict[str, NonNegativeInt]]
    """Number of clips by split and label ("real", "fake")."""
    fingerprint: str
    """SHA-256 of videos.parquet, which carries the hash of every clip file."""

    @field_validator("clips")
    @classmethod
    def _of_all_splits(cls, clips: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
        if {split: set(counts) for split, counts in clips.items()} != {split: {"real", "fake"} for split in SPLITS}:
            raise ValueError(f"counts must be of {', '.join(SPLITS)}, real and fake")
        return clips


@dataclass(frozen=True)
class Clip:
    """A clip's row in the store, without its pictures."""

    clip_id: str
    video_id: str
    label: int
    method: str
    identities: tuple[str, ...]
    valid: NDArray[np.bool_]
    """bool [T]: False for frames in a gap without a face that is too long to bridge."""
    boxes: NDArray[np.float32]
    """float32 [T, 4]: face boxes in pixels of the video."""
    row: int
    """Number of its row in the Parquet file of its video, from 0."""
    draw: int = 0
    """Number of this forgery among those of its original clip, from 1; 0 for a clip as its video shows it."""


def _clip(entry: Row, row: int, draw: int, video: Row, frames: int) -> Clip:
    """Return the clip that a row describes. Raises ValueError if the row contradicts ``videos.parquet``."""
    boxes, valid = np.array(entry["boxes"], np.float32), np.array(entry["valid"], np.bool_)
    if boxes.shape != (frames, 4) or valid.shape != (frames,) or not np.isfinite(boxes).all():
        raise ValueError(f"clip {row} has no box for each of {frames} frames")
    identities = tuple(entry["identities"] or ())
    expected = [(video["label"], video["method"])] + [(FAKE, FORGED)] * (video["label"] == REAL)
    of_video = all(entry[name] == video[name] for name in ("video_id", "split", "identities"))
    if not of_video or (entry["label"], entry["method"]) not in expected or not identities or None in identities:
        raise ValueError(f"clip {row} is not of {video['video_id']}")
    if not entry["clip_id"] or not valid.any():
        raise ValueError(f"clip {row} has no name or no frame that counts")
    del entry["split"]
    return Clip(**entry | {"identities": identities, "valid": valid, "boxes": boxes, "row": row, "draw": draw})


def _read_clips(file: Path, video: Row, frames: int) -> list[Clip]:
    """Read the clips of a video from its file. Raises ValueError if it is damaged or not as it was written."""
    columns = ["clip_id", "video_id", "label", "method", "split", "identities", "valid", "boxes"]
    entries = read_rows(file, CLIP_SCHEMA, columns)
    if len(entries) != video["clips"]:
        raise ValueError(f"{len(entries)} of {video['clips']} clips are there")
    clips: list[Clip] = []
    for row, entry in enumerate(entries):
        forged = entry["label"] != video["label"]  # a forgery's row follows that of its real clip
        clips.append(_clip(entry, row, clips[-1].draw + 1 if forged and clips else int(forged), video, frames))
    return clips


def clip_file(store: Path, video_id: str) -> Path:
    """Return the path of the Parquet file with a video's clips in the folder of a store, finished or not."""
    return store / "clips" / f"{video_id}.parquet"


class DamagedClip(StageError):
    """The pictures of a clip are missing or damaged; training can go on without it."""


class ClipStore:
    """A finished store on disk. Raises StageError if it is missing, unfinished or of another version."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, name_of(path)
        missing = f"{path} is not a ClipStore: it has no store.json; make one with pocketproof prepare"
        self.info = read_json(path / "store.json", StoreInfo, SCHEMA_VERSION, missing, "prepare the store again")
        self.size = self.info.settings.crop.size
        self.frames = self.info.settings.frames
        self._videos = self._videos_with_clips()
        self._clips_and_damage: dict[str, tuple[list[Clip], dict[Path, str]]] = {}
        self._hashes = {video["video_id"]: video["clips_sha256"] for video in self._videos}
        self._verified: dict[Path, tuple[int, ...]] = {}
        """Inode, size and modification time (ns) of each clip file when its hash was verified."""

    @property
    def frame_rate(self) -> float | None:
        """Median frames a second of the videos that gave clips; None where none tells its own, as photos."""
        rates = [video["fps"] for video in self._videos if video["fps"]]
        return median_low(rates) if rates else None

    def file_of(self, video_id: str) -> Path:
        """Return the path of the Parquet file with a video's clips."""
        return clip_file(self.path, video_id)

    def _clips_of(self, split: str) -> tuple[list[Clip], dict[Path, str]]:
        """Return the clips of a split, and the reason for each file that cannot be read. Files are read once."""
        if split not in self._clips_and_damage:
            clips: list[Clip] = []
            damaged: dict[Path, str] = {}
            for video in (video for video in self._videos if video["split"] == split):
                file = self.file_of(video["video_id"])
                try:
                    clips += _read_clips(file, video, self.frames)
                except ValueError as error:
                    damaged[file] = f"{file} is missing or damaged ({error})"
                    if split == "train":
                        say(f"the train split does without a file: {damaged[file]}")
            self._clips_and_damage[split] = clips, damaged
        return self._clips_and_damage[split]

    def _videos_with_clips(self) -> list[Row]:
        """Return the rows of the videos that gave clips. Raises StageError if ``videos.parquet`` is damaged."""
        file = self.path / "videos.parquet"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StageError(f"{file} cannot be read ({reason_of(error)}): prepare the store again") from error
        if hashlib.sha256(data).hexdigest() != self.info.fingerprint:
            raise StageError(f"{file} was changed after prepare: prepare the store again")
        try:
            columns = ["video_id", "label", "method", "split", "identities", "fps", "clips", "clips_sha256"]
            rows = read_rows(data, VIDEO_SCHEMA, columns)
        except ValueError as error:
            raise StageError(f"{file} is damaged ({reason_of(error)}): prepare the store again") from error
        videos = [row for row in rows if row["clips"]]
        for video, split, label in ((row["video_id"], row["split"], row["label"]) for row in videos):
            named = bool(video) and PurePath(video).name == video and "\0" not in video
            if not named or split not in SPLITS or label not in (REAL, FAKE):
                raise StageError(
                    f"{file} names the video {video!r} in the split {split!r} with the label {label}: "
                    "prepare the store again"
                )
        if any(row["method"] is None for row in videos):
            raise StageError(f"{file} names no method of a video: prepare the store again")
        if len({row["video_id"] for row in videos}) < len(videos):
            raise StageError(f"{file} names a video twice: prepare the store again")
        return videos

    def lost_files(self, split: str) -> list[Path]:
        """Return the clip files of a split that are missing or cannot be read: training goes on without them."""
        return list(self._clips_of(split)[1])

    def changed_files(self) -> Iterator[Path]:
        """Yield the clip files that are missing or whose SHA-256 is not that of prepare. Reads all files."""
        for video in progress(self._videos, "compare hashes"):
            file = self.file_of(video["video_id"])
            try:
                self._verify(file)
            except (OSError, StageError):
                yield file

    def clips(self, split: str, both: bool = True) -> list[Clip]:
        """Return the clips of ``train``, ``val`` or ``test``.

        Raises StageError if there is none, if ``both`` labels are needed and one is missing, or if a file is missing or
        damaged. For ``train`` such files are left out, and each is reported once.
        """
        if not self._videos:
            raise StageError(f"{self.path} holds no clip: see the reasons in {self.path / 'videos.parquet'}")
        clips, damaged = self._clips_of(split)
        if damaged and split != "train":
            raise StageError(f"{next(iter(damaged.values()))}: prepare the store again")
        if len({clip.label for clip in clips}) < (2 if both else 1):
            counts = self.info.clips.get(split, {})
            mend = "prepare more videos, or with other --ratios or --forge"
            if split == "train":
                mend = "prepare more videos, or train with --forge, which forges real clips anew for each view"
            damage = f", of which {len(damaged)} files cannot be read," if damaged else ""
            raise StageError(
                f"the {split} split of {self.path} has {counts.get('real', 0)} real and {counts.get('fake', 0)} "
                f"fake clips{damage} and needs {'both' if both else 'some'}: {mend}"
            )
        return clips

    def require(self, modalities: Iterable[Modality]) -> None:
        """Raise StageError if the store was prepared without any one of these modalities."""
        present, wanted = self.info.settings.modalities, set(modalities)
        if missing := sorted(wanted.difference(present)):
            together = [modality for modality in get_args(Modality) if modality in wanted.union(present)]
            raise StageError(
                f"{self.path} holds no {' and no '.join(missing)}: prepare it with --modalities {','.join(together)}"
            )

    def boxes_in_crops(self, clip: Clip) -> NDArray[np.float64]:
        """Return a clip's face boxes in its crops, float64 [T, 4] (x0, y0, x1, y1) in pixels of the crops."""
        rule = self.info.settings.crop
        largest_side = rule.largest(clip.boxes)
        return np.stack([rule.box_in_crop(box, largest_side) for box in clip.boxes])

    def pixels(self, clip: Clip, frames: list[int] | None = None, modality: Modality = "rgb") -> NDArray[np.uint8]:
        """Return a clip's pictures, uint8 [T, S, S, 3] RGB, or only those of the given frame numbers.

        Raises DamagedClip if they are damaged, StageError if the store was prepared without the modality.
        """
        self.require([modality])
        file = self.file_of(clip.video_id)
        try:
            self._verify(file)
            parquet_file = pq.ParquetFile(file, memory_map=True, pre_buffer=False)  # PNG has own checksums
            pictures = parquet_file.read_row_group(clip.row, columns=[modality], use_threads=False)[modality][0].values
            if pictures is None or len(pictures) != self.frames:
                raise StageError(f"clip {clip.clip_id} has no {modality} of each frame")
            numbers = range(len(pictures)) if frames is None else frames
            return np.stack([self._crop(pictures[frame].as_py()) for frame in numbers])
        except (OSError, pa.ArrowException, StageError) as error:
            raise DamagedClip(f"{file} is missing or damaged ({reason_of(error)}): prepare the store again") from error

    def _verify(self, file: Path) -> None:
        """Verify a clip file's hash before its first use, and again if it was changed since.

        Raises StageError if it is not, byte for byte, the file that was prepared, and OSError if it is missing.
        """
        file_stat = file.stat()
        stamp = file_stat.st_ino, file_stat.st_size, file_stat.st_mtime_ns
        if self._verified.get(file) != stamp:
            if sha256_of(file) != self._hashes.get(file.stem):
                raise StageError("its SHA-256 is not the one that prepare noted")
            self._verified[file] = stamp

    def _crop(self, png: bytes) -> NDArray[np.uint8]:
        """Decode a crop, uint8 [S, S, 3] RGB. Raises StageError if it is damaged or of another size."""
        crop = decode_png(png)
        if crop.shape != (self.size, self.size, 3):
            raise StageError(f"a picture of {crop.shape[1]} x {crop.shape[0]} pixels is no crop of {self.size}")
        return crop
