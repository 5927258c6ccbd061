"""Stores that are missing, damaged, changed or of another version: refused with one line, or done without."""

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

from data.schemas import CLIP_SCHEMA
from data.store import ClipStore, DamagedClip
from stage import StageError
from tests.conftest import note_anew


@pytest.fixture
def copy(demo_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo_store, tmp_path / "store")


def edit_json(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((store / "store.json").read_text())
    change(content)
    (store / "store.json").write_text(json.dumps(content))


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
    store = ClipStore(copy)
    for _ in "ab":
        assert [clip.clip_id for clip in store.clips("train")] == whole[:3] + whole[4:]
    said = rf"the train split does without a file: {re.escape(str(file))} is missing or damaged \(.+\)\n"
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
