"""Files that go away or change while they are read."""

import shutil
from pathlib import Path

import pytest

from data.picture import UnreadableVideo
from data.presence import disk_has_gone, is_there, unchanged


def test_a_file_that_is_deleted_alone_has_not_gone_with_its_disk(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    file, other = folder / "a.mp4", folder / "b.mp4"
    file.write_bytes(b"a"), other.write_bytes(b"b")
    assert is_there(file) and not disk_has_gone(file)
    file.unlink()
    assert not is_there(file) and not disk_has_gone(file)
    other.unlink()
    assert disk_has_gone(file), "a mount point is left, and is empty"
    folder.rmdir()
    assert disk_has_gone(file)
    folder.write_bytes(b"no folder")
    assert disk_has_gone(file) and not is_there(file)


def test_what_is_read_of_a_file_that_changes_or_goes_with_its_disk_does_not_count(tmp_path: Path) -> None:
    for folder in ("same", "deleted"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"a")
    file = tmp_path / "same" / "a.mp4"
    with unchanged(file):
        pass
    for change in (lambda: file.write_bytes(b"more"), lambda: shutil.rmtree(file.parent)):
        with pytest.raises(UnreadableVideo, match=r"a\.mp4 changed or went away while it was read$"), unchanged(file):
            change()
    with unchanged(file):
        pass  # it was not there, and is not
    deleted = tmp_path / "deleted" / "a.mp4"
    deleted.with_name("b.mp4").write_bytes(b"b")
    with unchanged(deleted):
        deleted.unlink()
