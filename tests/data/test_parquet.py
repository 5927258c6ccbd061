"""Tests for Parquet files: what is written is read again, and a full disk is named with the file."""

import numpy as np
import pyarrow as pa
import pytest

from data.parquet import RowWriter, read_rows
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
