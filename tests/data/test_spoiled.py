"""Spoiled files of every kind: each gets its row, its status and its reason, and none ends or hangs a run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.crops import CropRule
from data.layouts import Source
from data.modalities import Modalities
from data.parquet import RowWriter
from data.prepare_video import Recipe
from data.schemas import CLIP_SCHEMA, VIDEO_SCHEMA
from data.settings import StoreSettings
from data.video import Video
from tests.data.commands import files, prepared
from tests.data.spoiled_files import ANY, KINDS, MUTATIONS, Frames, encoded, photos, videos

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def frames(demo_corpus: Path) -> Frames:
    """Five frames with a face, uint8 [180, 240, 3] RGB."""
    with Video(demo_corpus / "original_sequences/youtube/c23/videos/000.mp4") as video:
        pictures = [picture.rgb for picture, _ in zip(video.pictures(), range(5), strict=False)]
    return [np.asarray(Image.fromarray(picture).resize((240, 180))) for picture in pictures]


@pytest.fixture(scope="module")
def good(frames: Frames) -> dict[str, bytes]:
    """A good video of each of KINDS."""
    return {kind: encoded(frames, *how) for kind, how in KINDS.items()}


def fill(root: Path, contents: dict[str, tuple[bytes, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """Write files into real/ and fake/ in turn; return their names in the store and what may become of each."""
    expected = {}
    for number, (name, (content, statuses)) in enumerate(contents.items()):
        kind = ("real", "fake")[number % 2]
        (root / kind).mkdir(parents=True, exist_ok=True)
        (root / kind / name).write_bytes(content)
        expected[f"{kind}/{os.fsencode(name).decode('utf-8', 'backslashreplace')}"] = statuses
    return expected


def add_what_is_no_file(root: Path, content: bytes) -> dict[str, frozenset[str]]:
    (root / "real/folder.mp4").mkdir()
    (root / "real/folder.mp4/inside.mp4").write_bytes(content)
    (root / "real/nowhere.mp4").symlink_to("not there.mp4")
    (root / "real/itself.mp4").symlink_to("itself.mp4")
    (root / "real/parent.mp4").symlink_to("..")
    os.mkfifo(root / "real/pipe.mp4")
    names = {name: frozenset({"unreadable"}) for name in ("folder", "nowhere", "itself", "parent", "pipe")}
    if os.geteuid() != 0:
        (root / "real/locked.mp4").write_bytes(content)
        (root / "real/locked.mp4").chmod(0)
        names["locked"] = frozenset({"unreadable"})
    return {f"real/{name}.mp4": statuses for name, statuses in names.items()} | {
        "real/folder.mp4/inside.mp4": frozenset({"ok"})
    }


def run(folder: Path, out: Path, *options: str) -> str:
    """Prepare a folder and return what was printed."""
    line = [sys.executable, "-m", "data.prepare", str(folder), "--out", str(out), "--size=32", "--workers=2", *options]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def check_reasons(table: pd.DataFrame, *roots: Path) -> None:
    for row in table.to_dict("records"):
        if row["status"] != "ok":
            assert row["reason"].strip(), row["path"]
        assert row["reason"].splitlines() in ([], [row["reason"]]), row
        assert not any(str(root) in row["reason"] for root in roots), row


def check_statuses(table: pd.DataFrame, expected: dict[str, frozenset[str]]) -> None:
    assert table["path"].is_unique
    assert set(table["path"]) == set(expected)
    statuses = dict(zip(table["path"], table["status"], strict=True))
    reasons = dict(zip(table["path"], table["reason"], strict=True))
    wrong = {name: (statuses[name], reasons[name]) for name in expected if statuses[name] not in expected[name]}
    assert wrong == {}


@pytest.mark.parametrize("what", ["videos", "photos"])
def test_every_spoiled_file_has_its_row_its_status_and_its_reason(
    what: str, frames: Frames, good: dict[str, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    expected = fill(root, videos(frames, good) if what == "videos" else photos(frames))
    if what == "videos":
        expected |= add_what_is_no_file(root, good["mp4"])
    options = ["--frames=4"] if what == "videos" else ["--frames=1"]
    printed = run(root, tmp_path / "store", *options)
    table = pd.read_parquet(tmp_path / "store/videos.parquet")
    check_statuses(table, expected)
    check_reasons(table, tmp_path)
    line, *lacks = printed.splitlines()
    assert all(
        re.match(r"note: (The (val|test) split has \d+ real and \d+ fake clips, and teach and |\d+ (of|fakes) )", x)
        for x in lacks
    )
    assert re.match(rf"{re.escape(str(tmp_path / 'store'))}: {len(expected)} files \(\d+ ok, ", line)
    if what == "videos":
        moved = root.rename(tmp_path / "moved corpus")
        run(moved, tmp_path / "again", *options)
        assert files(tmp_path / "again") == files(tmp_path / "store")


def recipe() -> Recipe:
    settings = StoreSettings(
        frames=4, crop=CropRule(size=32), ratios=(0.0, 0.0, 1.0), seed=0, sources_sha256="", clips_per_video=2
    )
    return Recipe(settings.model_copy(update={"start": "spread"}), Modalities())


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_videos_always_give_a_row_and_clips_that_can_be_stored(
    kind: str, good: dict[str, bytes], tmp_path: Path
) -> None:
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    path = tmp_path / f"a.{kind.rpartition('.')[2]}"
    rows = []
    for turn in range(20):
        how = list(MUTATIONS)[turn % len(MUTATIONS)]
        path.write_bytes(MUTATIONS[how](good[kind], rng, int(rng.integers(1, 60))))
        row, clips = prepared(Source(path, f"real/{path.name}", 0, "real", ("a",)), "test", recipe())
        assert row["clips"] == len(clips)
        assert len(clips) > 0 if row["status"] == "ok" else row["reason"]
        with RowWriter(tmp_path / "clips.parquet", CLIP_SCHEMA) as file:
            for clip in clips:
                file.write(clip)
        rows.append(row)
    with RowWriter(tmp_path / "videos.parquet", VIDEO_SCHEMA) as file:
        file.write(*rows)
    table = pd.read_parquet(tmp_path / "videos.parquet")
    assert set(table["status"]) <= ANY
    check_reasons(table, tmp_path)
    shutil.rmtree(tmp_path)
