"""ClipStores as other tools see them, and what damaged ones say: read with pandas, pyarrow, hashlib and Pillow."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data.demo import NOTE
from data.store import ClipStore
from stage import StageError
from tests.data.commands import clips_of
from tests.data.test_png import by_pillow

LIST = "list<element: {}>".format
CLIP_COLUMNS = {
    "clip_id": "string",
    "video_id": "string",
    "track": "int32",
    "label": "int8",
    "method": "string",
    "split": "string",
    "identities": LIST("string"),
    "start_frame": "int32",
    "fps": "float",
    "boxes": LIST("fixed_size_list<element: float>[4]"),
    "detector_score": LIST("float"),
    "valid": LIST("bool"),
    "rgb": LIST("binary"),
    "depth": LIST("binary"),
    "flow": LIST("binary"),
}
VIDEO_COLUMNS = {
    "video_id": "string",
    "path": "string",
    "status": "string",
    "reason": "string",
    "label": "int8",
    "method": "string",
    "split": "string",
    "identities": LIST("string"),
    "fps": "float",
    "width": "int32",
    "height": "int32",
    "frames_without_face": "int32",
    "clips": "int32",
    "forged_clips": "int32",
    "clips_sha256": "string",
}


def columns_of(path: Path) -> dict[str, str]:
    schema = pq.read_schema(path)
    return dict(zip(schema.names, map(str, schema.types), strict=True))


def test_columns_of_clips(demo_store: Path) -> None:
    files = sorted((demo_store / "clips").iterdir())
    assert len(files) == 24
    assert {file.suffix for file in files} == {".parquet"}
    assert [columns_of(file) for file in files] == [CLIP_COLUMNS] * 24


def test_columns_of_videos(demo_store: Path) -> None:
    assert columns_of(demo_store / "videos.parquet") == VIDEO_COLUMNS


def test_keys_of_store_json(demo_store: Path) -> None:
    info = json.loads((demo_store / "store.json").read_text())
    videos = (demo_store / "videos.parquet").read_bytes()
    sources = info["settings"].pop("sources_sha256")
    assert len(bytes.fromhex(sources)) == 32
    assert info == {
        "schema_version": 2,
        "settings": {
            "frames": 4,
            "crop": {"size": 64, "margin": 1.3, "fit": "resize", "fill": 0},
            "detector": "dlib",
            "all_faces": False,
            "clips_per_video": 1,
            "start": "first",
            "modalities": ["rgb"],
            "flow": None,
            "depth": None,
            "forge": 0,
            "weakest_forgery": 0.25,
            "ratios": [0.5, 0.25, 0.25],
            "seed": 0,
        },
        "notes": [NOTE],
        "videos": {"ok": 24, "no_face": 0, "too_short": 0, "unreadable": 0, "left_out": 0},
        "clips": {"train": {"real": 6, "fake": 6}, "val": {"real": 3, "fake": 3}, "test": {"real": 3, "fake": 3}},
        "fingerprint": hashlib.sha256(videos).hexdigest(),
    }


def test_files_of_a_store(demo_store: Path) -> None:
    assert {path.name for path in demo_store.iterdir()} == {"clips", "store.json", "videos.parquet"}


def test_videos_carry_the_hashes_of_their_clip_files(demo_store: Path) -> None:
    videos = pd.read_parquet(demo_store / "videos.parquet").set_index("video_id")["clips_sha256"].to_dict()
    files = (demo_store / "clips").iterdir()
    assert videos == {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_rows_of_clips_agree_with_rows_of_videos(demo_store: Path) -> None:
    shared = ["video_id", "label", "method", "split", "identities", "fps"]
    clips, videos = clips_of(demo_store)[shared], pd.read_parquet(demo_store / "videos.parquet")[shared]
    pd.testing.assert_frame_equal(*(t.sort_values("video_id", ignore_index=True) for t in (clips, videos)))


def test_values_of_a_clip(demo_store: Path) -> None:
    for row in clips_of(demo_store).itertuples():
        assert (row.clip_id, row.track, row.start_frame, row.fps) == (f"{row.video_id}-0", 0, 0, 25.0)
        assert (row.method, len(row.identities)) == (["youtube", "SelfBlended"][row.label], 1)
        assert np.stack(row.boxes).shape == (4, 4)
        assert row.detector_score[0] > 0
        assert all(score > 0 or np.isnan(score) for score in row.detector_score)
        assert row.valid.all()
        assert [by_pillow(png).shape for png in row.rgb] == [(64, 64, 3)] * 4
        assert row.depth is None
        assert row.flow is None


def test_only_what_is_no_picture_is_compressed_again(demo_store: Path) -> None:
    group = pq.ParquetFile(next((demo_store / "clips").iterdir())).metadata.row_group(0)
    codecs = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    plain = {path for path, codec in codecs.items() if codec == "UNCOMPRESSED"}
    assert plain == {f"{name}.list.element" for name in ("rgb", "depth", "flow")}
    assert set(codecs.values()) == {"UNCOMPRESSED", "ZSTD"}


def test_pixels_are_the_stored_pictures_in_their_order(demo_store: Path) -> None:
    store, pictures = ClipStore(demo_store), clips_of(demo_store).set_index("clip_id")["rgb"]
    for split in ("train", "val", "test"):
        for clip in store.clips(split):
            pixels = store.pixels(clip)
            expected = np.stack([by_pillow(png) for png in pictures[clip.clip_id]])
            np.testing.assert_array_equal(pixels, expected)
            np.testing.assert_array_equal(store.pixels(clip, [3, 0, 3]), expected[[3, 0, 3]])


def test_clips_of_a_split_are_those_of_the_table(demo_store: Path) -> None:
    store, table = ClipStore(demo_store), clips_of(demo_store)
    assert (store.frames, store.size) == (4, 64)
    for split, rows in table.groupby("split"):
        clips = {clip.clip_id: (clip.video_id, clip.label, clip.method, clip.identities) for clip in store.clips(split)}
        values = zip(rows.clip_id, rows.video_id, rows.label, rows.method, map(tuple, rows.identities), strict=True)
        assert clips == {clip_id: tuple(others) for clip_id, *others in values}


def test_clips_come_in_one_order(demo_store: Path) -> None:
    ids = [[clip.clip_id for clip in ClipStore(demo_store).clips("train")] for _ in range(2)]
    assert ids[0] == ids[1] == sorted(ids[0])


def test_a_split_of_one_label_is_refused(demo_control_store: Path) -> None:
    with pytest.raises(
        StageError, match=r"the val split of .* has 0 real and 0 fake clips and needs both: prepare more"
    ):
        ClipStore(demo_control_store).clips("val")


def test_boxes_in_crops_are_where_prepare_put_them(demo_store: Path) -> None:
    store = ClipStore(demo_store)
    for clip in store.clips("test"):
        for box, inside in zip(clip.boxes, store.boxes_in_crops(clip), strict=True):
            share = (box[2:] - box[:2]) / (1.3 * max(box[2:] - box[:2]))
            np.testing.assert_allclose((inside[2:] - inside[:2]) / 64, share, rtol=0.01)
            np.testing.assert_allclose((inside[2:] + inside[:2]) / 2, [32, 32], atol=0.6)


def test_a_modality_that_was_not_prepared_is_refused(demo_store: Path) -> None:
    store = ClipStore(demo_store)
    with pytest.raises(StageError, match=r"holds no flow: prepare it with --modalities rgb,flow"):
        store.pixels(store.clips("test")[0], modality="flow")
