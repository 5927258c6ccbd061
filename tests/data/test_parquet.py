"""Tests for Parquet files: what is written is read again, and a full disk is named with the file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.parquet import RowWriter, read_rows
from data.png import encode_png
from data.schemas import CLIP_SCHEMA
from data.store import ClipStore
from stage import StageError

SCHEMA = pa.schema([("name", pa.string()), ("rgb", pa.list_(pa.binary()))])


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [{"name": "a", "rgb": [b"1", b"22"]}, {"name": "b", "rgb": []}]
    with RowWriter(tmp_path / "x.parquet", SCHEMA) as file:
        for row in rows:
            file.write(row)
    assert read_rows(tmp_path / "x.parquet", SCHEMA) == rows
    with pytest.raises(ValueError, match=r"its columns are others"):
        read_rows(tmp_path / "x.parquet", SCHEMA.remove(0))


def test_no_row_makes_no_file(tmp_path):
    with RowWriter(tmp_path / "x.parquet", SCHEMA):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_file(tmp_path, small_disk):
    noise = np.random.default_rng(0).bytes(1 << 20)
    refused = pytest.raises(StageError, match=r"cannot write .*x\.parquet: File too large")
    with refused, RowWriter(tmp_path / "x.parquet", SCHEMA) as file:
        file.write({"name": "a", "rgb": [noise]})


def test_rows_are_written_one_to_a_group_and_read_alone(tmp_path: Path) -> None:
    pngs = [encode_png(np.full((16, 16, 3), value, np.uint8)) for value in (10, 20)]
    rows = [{"clip_id": str(n), "rgb": [png], "boxes": [[0, 1, 2, n]]} for n, png in enumerate(pngs)]
    with RowWriter(tmp_path / "a.parquet", CLIP_SCHEMA) as writer:
        for row in rows:
            writer.write(row)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 2
    assert file.read_row_group(1).to_pylist()[0] == dict.fromkeys(CLIP_SCHEMA.names) | {
        "clip_id": "1",
        "rgb": [pngs[1]],
        "boxes": [[0, 1, 2, 1]],
    }


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "a.parquet", CLIP_SCHEMA) as writer, pytest.raises(pa.ArrowException):
        writer.write({"label": "fake"})


def test_a_file_is_read_without_threads_which_a_container_may_refuse(demo_store: Path) -> None:
    code = (
        "import pathlib, sys, psutil, data.store\n"
        "before = psutil.Process().num_threads()\n"
        "store = data.store.ClipStore(pathlib.Path(sys.argv[1]))\n"
        "assert store.pixels(store.clips('train')[0]).size\n"
        "print(psutil.Process().num_threads() - before)\n"
    )
    line = [sys.executable, "-W", "ignore", "-c", code, str(demo_store)]
    assert subprocess.check_output(line, cwd=Path(__file__).parents[2], text=True) == "0\n"


def test_a_path_that_leads_nowhere_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="store does not exist"):
        ClipStore(tmp_path / "store")
