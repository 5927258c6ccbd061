"""ClipStore: clips on disk as Parquet, readable by pandas, DuckDB, Spark and others as it is.

``clips/*.parquet`` holds one row per clip (one file per video), ``videos.parquet`` one row per input file with its
status, ``store.json`` the settings and counts. Pictures are PNG, so that no pixel changes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from data.crops import CropRule
from data.depth import DepthWeights
from stage import Modality, StageError, say

SCHEMA_VERSION = 2
Status = Literal["ok", "no_face", "too_short", "unreadable"]
Start = Literal["first", "random", "spread"]
"""Where a video's clips begin: with its first face, at random frames, or evenly spread over it."""

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("track", pa.int32()),
        ("label", pa.int8()),
        ("method", pa.string()),
        ("split", pa.string()),
        ("identities", pa.list_(pa.string())),
        ("start_frame", pa.int32()),
        ("fps", pa.float32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("detector_score", pa.list_(pa.float32())),
        ("valid", pa.list_(pa.bool_())),
        ("rgb", pa.list_(pa.binary())),
        ("depth", pa.list_(pa.binary())),
        ("flow", pa.list_(pa.binary())),
    ]
)
VIDEO_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("label", pa.int8()),
        ("method", pa.string()),
        ("split", pa.string()),
        ("identities", pa.list_(pa.string())),
        ("fps", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames_without_face", pa.int32()),
        ("clips", pa.int32()),
        ("forged_clips", pa.int32()),
        ("clips_sha256", pa.string()),
    ]
)


class StoreSettings(BaseModel):
    """What decides a store's content: the same settings and inputs give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int
    crop: CropRule
    detector: Literal["dlib", "mtcnn"] = "dlib"
    all_faces: bool = False
    clips_per_video: int = 1
    start: Start = "first"
    modalities: tuple[Modality, ...] = ("rgb",)
    flow: str | None = None
    """Estimator of the flow pictures, with the SHA-256 of its weights where it has some."""
    depth: DepthWeights | None = None
    forge: int = 0
    weakest_forgery: float = 1.0
    """Stores that do not name it hold coarse forgeries alone."""
    ratios: tuple[float, float, float]
    seed: int
    sources_sha256: str


class StoreInfo(BaseModel):
    """``store.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    settings: StoreSettings
    notes: list[str]
    videos: dict[str, int]
    """Number of input files by status."""
    clips: dict[str, dict[str, int]]
    """Number of clips by split and label ("real", "fake")."""
    fingerprint: str
    """SHA-256 of videos.parquet, which carries the hash of every clip file."""


@dataclass(frozen=True)
class Clip:
    """Where a clip lies and what it is, without its pictures."""

    clip_id: str
    video_id: str
    label: int
    method: str
    identities: tuple[str, ...]
    valid: NDArray[np.bool_]
    """bool [T]: False where no face was found for longer than can be bridged."""
    boxes: NDArray[np.float32]
    """float32 [T, 4]: face boxes in pixels of the video."""
    row: int
    """Its row in its video's file."""


PNG_OPTIONS = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
]
"""As small as OpenCV's own choice for 224-pixel faces (63 kB) in half the time (1.5 against 3.1 ms)."""


def encode_png(crop: NDArray[np.uint8]) -> bytes:
    """Encode a crop, uint8 [S, S, 3] RGB, as PNG."""
    done, data = cv2.imencode(".png", crop[..., ::-1], PNG_OPTIONS)
    assert done
    return bytes(data)


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """Decode a PNG into uint8 [S, S, 3] RGB. Raises StageError if it is damaged."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if picture is None:
        raise StageError("a picture in the store is damaged: prepare the store again")
    return np.asarray(picture, np.uint8)


class RowWriter:
    """Writes rows to a Parquet file as they come, one row a group for clips; no file if there is no row."""

    def __init__(self, target: Path | BinaryIO, schema: pa.Schema) -> None:
        self._target, self._schema = target, schema
        self._writer: pq.ParquetWriter | None = None

    def write(self, *rows: dict[str, Any]) -> None:
        """Append rows as one group."""
        if self._writer is None:
            # Pictures are compressed already.
            codecs = {f.name: "none" if f.name in get_args(Modality) else "zstd" for f in self._schema}
            compression = {_leaf(self._schema, name): codec for name, codec in codecs.items()}
            self._writer = pq.ParquetWriter(self._target, self._schema, compression=compression, use_dictionary=False)
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _leaf(schema: pa.Schema, name: str) -> str:
    """Return the column path under which Parquet knows a (nested) field."""
    path, kind = name, schema.field(name).type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path


def _read_clips(file: Path) -> list[Clip]:
    """Read what a video's file says of its clips. Raises OSError or ArrowException if it is missing or damaged."""
    columns = ["clip_id", "video_id", "label", "method", "identities", "valid", "boxes"]
    entries = pq.read_table(file, columns=columns).to_pylist()
    return [
        Clip(
            **entry
            | {
                "identities": tuple(entry["identities"]),
                "valid": np.array(entry["valid"], np.bool_),
                "boxes": np.array(entry["boxes"], np.float32),
                "row": row,
            }
        )
        for row, entry in enumerate(entries)
    ]


class ClipStore:
    """A whole store on disk. Raises StageError if it is missing, unfinished, of another version, or without clips."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = self._read_info(path)
        self.size = self.info.settings.crop.size
        self.frames = self.info.settings.frames
        videos = self._videos_with_clips()
        if not videos:
            raise StageError(f"{path} holds no clip: see the reasons in {path / 'videos.parquet'}")
        self._clips: dict[str, list[Clip]] = {}
        self._damaged: dict[str, list[Path]] = {}
        for video, split in videos:
            file = path / "clips" / f"{video}.parquet"
            try:
                self._clips.setdefault(split, []).extend(_read_clips(file))
            except (OSError, pa.ArrowException):
                self._damaged.setdefault(split, []).append(file)

    @staticmethod
    def _read_info(path: Path) -> StoreInfo:
        try:
            text = (path / "store.json").read_bytes()
        except OSError as error:
            raise StageError(
                f"{path} is not a ClipStore: it has no store.json; make one with pocketproof prepare"
            ) from error
        try:
            info = StoreInfo.model_validate_json(text)
        except ValidationError as error:
            raise StageError(f"{path / 'store.json'} is not of schema version {SCHEMA_VERSION}: {error}") from error
        if info.schema_version != SCHEMA_VERSION:
            raise StageError(
                f"{path} is of schema version {info.schema_version}, this program reads {SCHEMA_VERSION}: "
                "prepare the store again"
            )
        return info

    def _videos_with_clips(self) -> list[tuple[str, str]]:
        """Return the ids and splits of videos that gave clips."""
        file = self.path / "videos.parquet"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StageError(f"{file} is missing or damaged: prepare the store again") from error
        if hashlib.sha256(data).hexdigest() != self.info.fingerprint:
            raise StageError(f"{file} was changed after prepare: prepare the store again")
        table = pq.read_table(pa.BufferReader(data), columns=["video_id", "split", "clips"])
        return [(row["video_id"], row["split"]) for row in table.to_pylist() if row["clips"]]

    def clips(self, split: str, both: bool = True) -> list[Clip]:
        """Return the clips of ``train``, ``val`` or ``test``.

        Raises StageError if there is none, if ``both`` labels are needed and one is missing, or if a file is missing or
        damaged; training does without such files, and says so.
        """
        clips, damaged = self._clips.get(split, []), self._damaged.get(split, [])
        if damaged and split != "train":
            raise StageError(f"{damaged[0]} is missing or damaged: prepare the store again")
        for file in damaged:
            say(f"training does without {file}: it is missing or damaged")
        if len({clip.label for clip in clips}) < (2 if both else 1):
            counts = self.info.clips.get(split, {})
            raise StageError(
                f"the {split} split of {self.path} has {counts.get('real', 0)} real and {counts.get('fake', 0)} "
                f"fake clips and needs {'both' if both else 'some'}: prepare more videos, other --ratios or --forge"
            )
        return clips

    def require(self, modalities: Iterable[Modality]) -> None:
        """Raise StageError if the store was prepared without one of these modalities."""
        for modality in modalities:
            if modality not in self.info.settings.modalities:
                raise StageError(f"{self.path} holds no {modality}: prepare it with --modalities rgb,{modality}")

    def boxes_in_crops(self, clip: Clip) -> NDArray[np.float64]:
        """Return where the face boxes lie in a clip's crops, float64 [T, 4] in the crops' pixels."""
        rule = self.info.settings.crop
        largest = rule.largest(clip.boxes)
        return np.stack([rule.box_in_crop(box, largest) for box in clip.boxes])

    def pixels(self, clip: Clip, frames: list[int] | None = None, modality: Modality = "rgb") -> NDArray[np.uint8]:
        """Return a clip's pictures, uint8 [T, S, S, 3] RGB, or only those of the given frame numbers.

        Raises StageError if they are damaged, or if the store was prepared without the modality.
        """
        self.require([modality])
        file = self.path / "clips" / f"{clip.video_id}.parquet"
        try:
            table = pq.ParquetFile(file, memory_map=True).read_row_group(clip.row, columns=[modality])
            pictures = table[modality][0].values
            wanted = range(len(pictures)) if frames is None else frames
            return np.stack([decode_png(pictures[frame].as_py()) for frame in wanted])
        except (OSError, pa.ArrowException, StageError) as error:
            raise StageError(f"{file} is missing or damaged: prepare the store again") from error

    def scored_clips(self, split: str) -> Iterator[tuple[Clip, NDArray[np.uint8]]]:
        """Yield every clip of a split with its crops, uint8 [T, S, S, 3] RGB, in a fixed order."""
        for clip in self.clips(split):
            yield clip, self.pixels(clip)
