"""What inspect says of a store, next to pandas' own counts and the stored pictures themselves."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.inspect import CAPTION, SHEET_CLIPS, THUMBNAIL, contact_sheet, count, inspect
from data.prepare import prepare
from data.store import ClipStore
from data.video import Video, write_video
from stage import StageError
from tests.data.commands import clips_of

ROOT = Path(__file__).parents[2]
ODD = "[red] [bold]q'uo\"te\nnewline \N{SNOWMAN}"


def videos_of(demo_corpus: Path) -> list[Path]:
    return sorted(demo_corpus.glob("original_sequences/**/*.mp4"))


def tile(sheet: Image.Image, line: int, column: int) -> np.ndarray[Any, Any]:
    left, top = column * THUMBNAIL, line * (THUMBNAIL + CAPTION) + CAPTION
    return np.asarray(sheet.crop((left, top, left + THUMBNAIL, top + THUMBNAIL)))


def thumbnail(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).resize((THUMBNAIL, THUMBNAIL)))


def holds(sheet: Image.Image, line: int, clip: "pd.Series[Any]", frames: list[int], modalities: list[str]) -> bool:
    """Tell whether a line of a sheet shows these frames of a clip, their modalities side by side."""
    pictures = [clip[modality][frame] for frame in frames for modality in modalities]
    return all(np.array_equal(tile(sheet, line, column), thumbnail(png)) for column, png in enumerate(pictures))


@pytest.fixture(scope="module")
def odd_store(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real clips only, of 14 frames with RGB and flow; methods and names are odd, one face is lost, one file is bad."""
    root = tmp_path_factory.mktemp("odd")
    good, other = videos_of(demo_corpus)[:2]
    with Video(good) as video:
        frames = [picture.rgb for picture, _ in zip(video.pictures(), range(8), strict=False)]
    write_video(root / "lost.mp4", [*frames, *[np.full_like(frames[0], 90)] * 6])
    shutil.copy(other, root / f"{ODD}.mp4")
    (root / f"{ODD}.avi").write_text("no video")
    quoted = ODD.replace('"', '""')
    lines = [f'lost.mp4,real,"[/red] {quoted}"'] + [f'"{quoted}.{suffix}",real,plain' for suffix in ("mp4", "avi")]
    (root / "table.csv").write_text("\n".join(["path,label,method", *lines, ""]), encoding="utf-8")
    out = root / "store"
    prepare([root / "table.csv"], out, frames=14, size=32, ratios="0,0,1", modalities="rgb,flow")
    return out


def test_counts_are_those_of_pandas(demo_store: Path) -> None:
    counts = count(ClipStore(demo_store))
    videos, clips = pd.read_parquet(demo_store / "videos.parquet"), clips_of(demo_store)
    assert counts["files"] == len(videos) == 24
    assert counts["status"] == {"ok": 24, "no_face": 0, "too_short": 0, "unreadable": 0, "left_out": 0}
    for split, numbers in counts["clips"].items():
        for label, name in enumerate(("real", "fake")):
            assert numbers[name] == int(((clips["split"] == split) & (clips["label"] == label)).sum())
    of_pandas = clips.groupby(["split", "label", "method"]).size()
    assert {
        (group["split"], ("real", "fake").index(group["label"]), group["method"]): group["clips"]
        for group in counts["groups"]
    } == of_pandas.to_dict()
    assert sum(group["files"] for group in counts["groups"]) == 24
    told = {split: dict.fromkeys(("real", "fake"), 0) for split in counts["clips"]}
    for group in counts["groups"]:
        told[group["split"]][group["label"]] += group["clips"]
    assert told == counts["clips"]
    assert counts["reasons"] == {}


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "data.inspect", *arguments]
    return subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"}
    )


def test_json_and_sheet_of_the_command(demo_store: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new folder" / "sheet.PNG"
    ended = run(str(demo_store), "--json", "--sheet", str(sheet))
    assert (ended.returncode, ended.stderr) == (0, f"contact sheet: {sheet}\n")
    assert json.loads(ended.stdout) == count(ClipStore(demo_store))
    with Image.open(sheet) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.size == (4 * THUMBNAIL, SHEET_CLIPS * (THUMBNAIL + CAPTION))


def test_tiles_are_the_stored_crops_of_every_split_label_and_method(demo_store: Path) -> None:
    sheet, clips = contact_sheet(ClipStore(demo_store)), clips_of(demo_store)
    shown = []
    for line in range(SHEET_CLIPS):
        (match,) = [n for n, clip in clips.iterrows() if holds(sheet, line, clip, [0, 1, 2, 3], ["rgb"])]
        shown.append(clips.loc[match])
    assert len({clip["clip_id"] for clip in shown}) == SHEET_CLIPS
    groups = {tuple(group) for group in clips[["split", "label", "method"]].itertuples(index=False)}
    assert {(clip["split"], clip["label"], clip["method"]) for clip in shown} == groups


def test_modalities_lie_side_by_side_and_lost_faces_are_dark(odd_store: Path) -> None:
    sheet, clips = contact_sheet(ClipStore(odd_store)), clips_of(odd_store)
    frames = [0, 4, 8, 13]
    assert sheet.size == (len(frames) * 2 * THUMBNAIL, 2 * (THUMBNAIL + CAPTION))
    lost = clips["valid"].map(lambda valid: not all(valid))
    assert lost.sum() == 1
    (steady,), (unsteady,) = [clips[~lost].iloc], [clips[lost].iloc]
    lines = [line for line in (0, 1) if holds(sheet, line, steady[0], frames, ["rgb", "flow"])]
    assert len(lines) == 1
    clip, line = unsteady[0], 1 - lines[0]
    assert clip["valid"][frames].tolist() == [True, True, False, False]
    for column, (frame, modality) in enumerate((f, m) for f in frames for m in ("rgb", "flow")):
        expected = thumbnail(clip[modality][frame])
        expected = expected if clip["valid"][frame] else expected // 4
        np.testing.assert_array_equal(tile(sheet, line, column), expected)


def test_odd_names_and_methods_are_printed_as_they_are(
    odd_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    inspect(odd_store, sheet=odd_store.with_name("a.png"))
    printed = capfd.readouterr().out
    assert "[/red] [red] [bold]q'uo\"te" in printed
    assert re.search(r"^1 file: \[red\] \[bold\]q'uo\"te newline .*cannot be read as a video", printed, re.M)
    counts = count(ClipStore(odd_store))
    assert counts["clips"]["test"] == {"real": 2, "fake": 0}
    assert {group["method"] for group in counts["groups"]} == {f"[/red] {ODD}", "plain"}


def test_nothing_that_a_terminal_would_obey_is_printed(
    demo_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(demo_store, tmp_path / "store")
    info = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(info | {"notes": ["one\x1b[31m\ntwo"]}))
    inspect(store)
    assert "\nnote: one [31m two\n" in capsys.readouterr().out


def test_the_sheet_lies_beside_the_store_also_from_within(
    odd_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(odd_store, tmp_path / "mine")
    inspect(copy, as_json=True)
    beside = (tmp_path / "mine.png").read_bytes()
    (tmp_path / "mine.png").unlink()
    monkeypatch.chdir(copy)
    inspect(Path(), as_json=True)
    assert (tmp_path / "mine.png").read_bytes() == beside


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet"])
def test_another_suffix_is_refused_before_anything_is_printed(
    name: str, demo_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match=rf"--sheet .*{name}: give a name that ends with \.png"):
        inspect(demo_store, sheet=tmp_path / name)
    assert capfd.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_beside_a_store_that_may_only_be_read_the_mend_is_named(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != folder)  # as on a disk that is mounted to be read
    with pytest.raises(StageError, match=r"shared cannot be written, as .+ may not: give --sheet, a path that may"):
        inspect(demo_store, sheet=folder / "sheet.png")
    assert "SelfBlended" in capfd.readouterr().out
    inspect(demo_store, sheet=tmp_path / "sheet.png")


def test_what_is_no_store_ends_with_one_line(tmp_path: Path) -> None:
    ended = run(str(tmp_path))
    said = f"error: {tmp_path} is not a ClipStore: it has no store.json; make one with pocketproof prepare\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", said)


@pytest.mark.parametrize("which", ["one", "all", "half"])
def test_a_damaged_store_is_refused(which: str, odd_store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(odd_store, tmp_path / "store")
    clips = sorted((copy / "clips").iterdir())
    for file in clips if which == "all" else clips[:1]:
        file.write_bytes(file.read_bytes()[:-2000] if which == "half" else b"")
    with pytest.raises(StageError, match=rf"{re.escape(str(clips[0]))} is missing or damaged \(.+\): prepare"):
        inspect(copy)
    assert not (tmp_path / "store.png").exists()


def test_a_changed_table_of_videos_is_refused(odd_store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(odd_store, tmp_path / "store")
    (copy / "videos.parquet").write_bytes(b"PAR1")
    with pytest.raises(StageError, match=r"videos\.parquet was changed after prepare: prepare the store again"):
        inspect(copy)


def test_training_clips_that_are_damaged_are_named(
    demo_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(demo_store, tmp_path / "store")
    clip = ClipStore(copy).clips("train")[0]
    (copy / "clips" / f"{clip.video_id}.parquet").unlink()
    inspect(copy)
    told = capfd.readouterr().err
    file = copy / "clips" / f"{clip.video_id}.parquet"
    assert told.count(f"the train split does without a file: {file}") == 1
    assert f"clip files that are missing or not those that were prepared: 1 ({file})\n" in told


@pytest.mark.parametrize("link", [False, True])
def test_only_its_own_sheets_are_overwritten(demo_store: Path, tmp_path: Path, link: bool) -> None:
    own = tmp_path / "own.png"
    inspect(demo_store, sheet=own)
    before = own.read_bytes()
    inspect(demo_store, sheet=own)
    assert own.read_bytes() == before
    other = tmp_path / "other.png"
    if link:
        other.symlink_to(own)
    else:
        Image.new("RGB", (4, 4)).save(other)
    kept = other.read_bytes()
    said = "is a link: give the path" if link else "is no contact sheet: remove it or give another --sheet"
    with pytest.raises(StageError, match=f"{re.escape(str(other))} {said}"):
        inspect(demo_store, sheet=other)
    assert other.read_bytes() == kept


def test_forgeries_count_as_fakes_of_no_file(demo_control: Path, tmp_path: Path) -> None:
    options = {"methods": "real", "forge": 2, "frames": 4, "size": 32, "ratios": "0,0,1", "max_videos": 3}
    prepare([demo_control], tmp_path / "store", **options)
    counts = count(ClipStore(tmp_path / "store"))
    assert counts["groups"] == [
        {"split": "test", "label": "fake", "method": "SelfBlended", "status": "ok", "files": 0, "clips": 6},
        {"split": "test", "label": "real", "method": "real", "status": "ok", "files": 3, "clips": 3},
    ]
    assert counts["clips"]["test"] == {"real": 3, "fake": 6}
