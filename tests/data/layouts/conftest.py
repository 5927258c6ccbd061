"""What the tests of every layout share: empty files by their names, and a corpus read as a table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.layouts import Selection, read_sources

Rows = dict[str, tuple[int, str, tuple[str, ...]]]


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., Path]:
    """``touch("real/a.mp4", ...)`` makes empty files below one folder and returns the folder."""

    def touch(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return touch


@pytest.fixture
def rows() -> Callable[..., Rows]:
    """``rows(root, layout="ffpp", ...)`` reads a corpus: label, method and identities by name."""

    def rows(root: Path, **options: object) -> Rows:
        sources, _ = read_sources([root], Selection(**options))  # type: ignore[arg-type]
        return {source.name: (source.label, source.method, source.identities) for source in sources}

    return rows
