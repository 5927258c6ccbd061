"""What tests of scans score with, and read."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

FILE = "test_byobnet-fp32.onnx"


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a table of scores by the names of their files."""
    return {row["video"].rpartition("/")[2]: row for row in pq.read_table(out).to_pylist()}
