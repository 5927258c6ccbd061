"""ClipStores as other tools see them, and what damaged ones say: read with pandas, pyarrow, hashlib and Pillow."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.demo import NOTE
from data.parquet import RowWriter
from data.png import encode_png
from data.schemas import CLIP_SCHEMA
from data.store import ClipStore, DamagedClip
from stage import StageError
from tests.conftest import note_anew
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


def clip_table(store: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in sorted((store / "clips").iterdir())], ignore_index=True)


@pytest.fixture
def copy(demo_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo_store, tmp_path / "store")


def edit_json(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((store / "store.json").read_text())
    change(content)
    (store / "store.json").write_text(json.dumps(content))


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
    clips, videos = clip_table(demo_store)[shared], pd.read_parquet(demo_store / "videos.parquet")[shared]
    pd.testing.assert_frame_equal(*(t.sort_values("video_id", ignore_index=True) for t in (clips, videos)))


def test_values_of_a_clip(demo_store: Path) -> None:
    for row in clip_table(demo_store).itertuples():
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
    store, pictures = ClipStore(demo_store), clip_table(demo_store).set_index("clip_id")["rgb"]
    for split in ("train", "val", "test"):
        for clip in store.clips(split):
            pixels = store.pixels(clip)
            expected = np.stack([by_pillow(png) for png in pictures[clip.clip_id]])
            np.testing.assert_array_equal(pixels, expected)
            np.testing.assert_array_equal(store.pixels(clip, [3, 0, 3]), expected[[3, 0, 3]])


def test_clips_of_a_split_are_those_of_the_table(demo_store: Path) -> None:
    store, table = ClipStore(demo_store), clip_table(demo_store)
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


def test_rows_are_written_one_to_a_group_and_read_alone(tmp_path: Path) -> None:
    pngs = [encode_png(np.full((16, 16, 3), value, np.uint8)) for value in (10, 20)]
    rows = [{"clip_id": str(n), "rgb": [png], "boxes": [[0, 1, 2, n]]} for n, png in enumerate(pngs)]
    with RowWriter(tmp_path / "a.parquet", CLIP_SCHEMA) as writer:
        for row in rows:
            writer.write(row)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 2
    assert file.read_row_group(1).to_pylist()[0] == dict.fromkeys(CLIP_COLUMNS) | {
        "clip_id": "1",
        "rgb": [pngs[1]],
        "boxes": [[0, 1, 2, 1]],
    }


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "a.parquet", CLIP_SCHEMA) as writer, pytest.raises(pa.ArrowException):
        writer.write({"label": "fake"})


def test_no_row_no_file(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "a.parquet", CLIP_SCHEMA):
        pass
    assert not list(tmp_path.iterdir())


def test_a_path_that_leads_nowhere_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="store does not exist"):
        ClipStore(tmp_path / "store")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["empty", "file"])
def test_what_is_no_store_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "store")
    with pytest.raises(StageError, match=r"store is not a ClipStore: it has no store\.json; make one with pocketproof"):
        ClipStore(tmp_path / "store")


def test_another_schema_version_is_refused(copy: Path) -> None:
    edit_json(copy, lambda content: content.update(schema_version=1))
    with pytest.raises(StageError, match="is of schema version 1, this program reads 2: prepare the store again"):
        ClipStore(copy)


def test_store_json_with_other_keys_is_refused(copy: Path) -> None:
    edit_json(copy, lambda content: content.pop("fingerprint"))
    with pytest.raises(StageError, match=r"store\.json is not valid: fingerprint: "):
        ClipStore(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["clips"].pop("val"),
        lambda content: content["clips"]["train"].update(real=-5),
        lambda content: content["settings"].update(ratios=[9, 9, -9]),
        lambda content: content["settings"].update(clips_per_video=-1),
    ],
)
def test_counts_and_settings_that_cannot_be_are_refused(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(copy, change)
    with pytest.raises(StageError, match=r"store\.json is not valid: "):
        ClipStore(copy)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("clip_id", None),
        ("method", None),
        ("identities", [None]),
        ("valid", [False] * 4),
        ("boxes", [[float("nan")] * 4] * 4),
        ("label", 0),
        ("split", "train"),
        ("method", "another"),
        ("identities", ["another"]),
    ],
)
def test_a_clip_that_says_nothing_of_itself_or_other_things_than_its_video_is_refused(
    copy: Path, column: str, value: object
) -> None:
    clip = next(clip for clip in ClipStore(copy).clips("val") if clip.label == 1)
    file = copy / "clips" / f"{clip.video_id}.parquet"
    rows = [row | {column: value} for row in pq.read_table(file).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), file)
    note_anew(copy)
    with pytest.raises(StageError, match=rf"{file.name} is missing or damaged \(clip 0 .+\): prepare the store again"):
        ClipStore(copy).clips("val")


def test_pictures_of_other_clips_are_noticed(copy: Path) -> None:
    real, fake = (next(clip for clip in ClipStore(copy).clips("test") if clip.label == label) for label in (0, 1))
    files = [copy / "clips" / f"{clip.video_id}.parquet" for clip in (real, fake)]
    rows = [pq.read_table(file) for file in files]
    column = rows[0].column_names.index("rgb")
    pq.write_table(rows[0].set_column(column, rows[0].schema.field(column), rows[1].column("rgb")), files[0])
    said = rf"{files[0].name} is missing or damaged \(its SHA-256 is not the one that prepare noted\)"
    with pytest.raises(DamagedClip, match=said):
        ClipStore(copy).pixels(real)
    note_anew(copy)
    np.testing.assert_array_equal(ClipStore(copy).pixels(real), ClipStore(copy).pixels(fake))


@pytest.mark.parametrize("content", [b"", b"no json", b"\xff\xfe"])
def test_store_json_that_is_no_json_is_refused(copy: Path, content: bytes) -> None:
    (copy / "store.json").write_bytes(content)
    with pytest.raises(StageError, match=r"store\.json is not valid: "):
        ClipStore(copy)


def test_changed_videos_are_refused(copy: Path) -> None:
    table = pd.read_parquet(copy / "videos.parquet")
    table.to_parquet(copy / "videos.parquet")
    with pytest.raises(StageError, match=r"videos\.parquet was changed after prepare: prepare the store again"):
        ClipStore(copy)


def test_missing_videos_are_refused(copy: Path) -> None:
    (copy / "videos.parquet").unlink()
    said = r"videos\.parquet cannot be read \(No such file or directory\): prepare the store again"
    with pytest.raises(StageError, match=said):
        ClipStore(copy)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-100])])
def test_a_clip_file_missing_or_cut_short_is_refused_where_scores_depend_on_it(
    copy: Path, damage: Callable[[Path], object]
) -> None:
    file = copy / "clips" / f"{ClipStore(copy).clips('test')[3].video_id}.parquet"
    damage(file)
    with pytest.raises(StageError, match=rf"{file.name} is missing or damaged( \(.+\))?: prepare the store again"):
        ClipStore(copy).clips("test")
    assert len(ClipStore(copy).clips("train")) == 12


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-100])])
def test_training_does_without_a_damaged_clip_file_and_says_so(
    copy: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [clip.clip_id for clip in ClipStore(copy).clips("train")]
    file = copy / "clips" / f"{ClipStore(copy).clips('train')[3].video_id}.parquet"
    damage(file)
    assert [clip.clip_id for clip in ClipStore(copy).clips("train")] == whole[:3] + whole[4:]
    said = rf"training does without a file: {re.escape(str(file))} is missing or damaged \(.+\)\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_a_split_whose_files_are_all_lost_says_so(copy: Path) -> None:
    shutil.rmtree(copy / "clips")
    said = r"has 6 real and 6 fake clips, of which 12 files cannot be read, and needs both"
    with pytest.raises(StageError, match=said):
        ClipStore(copy).clips("train")


def test_files_that_are_not_those_that_were_prepared_are_found(copy: Path) -> None:
    first, second, third, *_ = sorted((copy / "clips").iterdir())
    assert list(ClipStore(copy).changed_files()) == []
    first.write_bytes(second.read_bytes())
    third.unlink()
    assert sorted(ClipStore(copy).changed_files()) == [first, third]


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


def test_a_file_that_is_replaced_while_it_is_in_use_is_noticed(copy: Path) -> None:
    store = ClipStore(copy)
    clip, other = store.clips("test")[:2]
    file, expected = store.file_of(clip.video_id), store.pixels(clip)
    shutil.copyfile(file, copy / "same")
    shutil.copyfile(store.file_of(other.video_id), copy / "other")
    (copy / "same").replace(file)
    np.testing.assert_array_equal(store.pixels(clip), expected)
    (copy / "other").replace(file)
    with pytest.raises(DamagedClip, match=rf"{file.name} is missing or damaged \(its SHA-256 is not the one"):
        store.pixels(clip)


@pytest.mark.parametrize("where", [0.3, 0.5])
def test_a_damaged_picture_names_its_file(copy: Path, where: float) -> None:
    clip = ClipStore(copy).clips("test")[0]
    file = copy / "clips" / f"{clip.video_id}.parquet"
    content = bytearray(file.read_bytes())
    start = int(len(content) * where)
    content[start : start + 50] = bytes(50)
    file.write_bytes(content)
    with pytest.raises(StageError, match=rf"{file.name} is missing or damaged( \(.+\))?: prepare the store again"):
        ClipStore(copy).pixels(clip)


@pytest.mark.parametrize("column", ["clip_id", "label", "identities", "boxes", "valid", "rgb"])
def test_one_flipped_bit_is_noticed(copy: Path, column: str) -> None:
    clip = ClipStore(copy).clips("test")[0]
    file = copy / "clips" / f"{clip.video_id}.parquet"
    group = pq.ParquetFile(file).metadata.row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == column)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size * 2 // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(StageError, match=rf"{file.name} is missing or damaged( \(.+\))?: prepare the store again"):
        ClipStore(copy).pixels(ClipStore(copy).clips("test")[0])


def test_a_store_without_clips_is_refused(copy: Path) -> None:
    table = pq.read_table(copy / "videos.parquet")
    nothing = pa.array([0] * len(table), pa.int32())
    pq.write_table(table.set_column(table.schema.get_field_index("clips"), "clips", nothing), copy / "videos.parquet")
    fingerprint = hashlib.sha256((copy / "videos.parquet").read_bytes()).hexdigest()
    edit_json(copy, lambda content: content.update(fingerprint=fingerprint))
    with pytest.raises(StageError, match=r"store holds no clip: see the reasons in .*videos\.parquet"):
        ClipStore(copy).clips("train")
