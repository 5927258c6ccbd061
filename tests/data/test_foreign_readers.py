"""Stores are read without our code: by DuckDB, by pandas and by Pillow."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image


def asked(question: str, *files: Path) -> list[tuple[Any, ...]]:
    duckdb = pytest.importorskip("duckdb")
    rows: list[tuple[Any, ...]] = duckdb.connect().execute(question, [str(file) for file in files]).fetchall()
    return rows


def test_duckdb_counts_clips_and_videos_by_label(demo_store: Path) -> None:
    clips = asked("SELECT label, count(*) FROM read_parquet(?) GROUP BY label", demo_store / "clips/*.parquet")
    assert dict(clips) == {0: 12, 1: 12}
    videos = asked("SELECT status, sum(clips) FROM read_parquet(?) GROUP BY status", demo_store / "videos.parquet")
    assert dict(videos) == {"ok": 24}


def test_duckdb_counts_by_split_what_store_json_says(demo_store: Path) -> None:
    rows = asked(
        "SELECT split, count(*) FILTER (label = 0), count(*) FILTER (label = 1) FROM read_parquet(?) GROUP BY split",
        demo_store / "clips/*.parquet",
    )
    said = json.loads((demo_store / "store.json").read_text())["clips"]
    assert {split: {"real": real, "fake": fake} for split, real, fake in rows} == said


def test_duckdb_joins_clips_with_their_files(demo_store: Path) -> None:
    rows = asked(
        "SELECT path, len(rgb), len(boxes), len(valid) FROM read_parquet(?) JOIN read_parquet(?) USING (video_id)",
        demo_store / "clips/*.parquet",
        demo_store / "videos.parquet",
    )
    assert len({path for path, *_ in rows}) == len(rows) == 24
    assert {lengths for _, *lengths in map(tuple, rows) for lengths in [tuple(lengths)]} == {(4, 4, 4)}


def test_pandas_reads_all_clips_at_once(demo_store: Path) -> None:
    clips = pd.read_parquet(demo_store / "clips")
    assert clips["label"].value_counts().to_dict() == {0: 12, 1: 12}
    assert clips["video_id"].nunique() == 24
    videos = pd.read_parquet(demo_store / "videos.parquet")
    assert sorted(videos["video_id"]) == sorted(clips["video_id"])


def test_duckdb_pandas_and_pillow_agree_on_a_picture(demo_store: Path) -> None:
    (clip_id, png), *_ = asked(
        "SELECT clip_id, rgb[1] FROM read_parquet(?) ORDER BY clip_id", demo_store / "clips/*.parquet"
    )
    clips = pd.read_parquet(demo_store / "clips").set_index("clip_id")
    assert clips.loc[clip_id, "rgb"][0] == png
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
        assert np.asarray(picture).std() > 10  # a face, not one colour
