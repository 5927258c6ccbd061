"""One video to its clips: where they begin, which faces they show, and forgeries, against the decoded frames."""

import io
import re
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.crops import CropRule
from data.forge import Forgery
from data.layouts import Source
from data.modalities import Modalities
from data.picture import Frame
from data.prepare_video import Recipe
from data.settings import StoreSettings
from data.video import Video, recompressed, write_video
from tests.data.commands import prepared

Row = dict[str, Any]
LENGTH = 60


def head(photo: Frame, x: int = 40, y: int = 10, width: int = 240) -> Frame:
    """A grey frame, uint8 [200, width, 3], with the photo's head at (x, y)."""
    frame = np.full((200, width, 3), 128, np.uint8)
    frame[y : y + 180, x : x + 180] = photo[30:210, 140:320]
    return frame


def empty(width: int = 240) -> Frame:
    return np.full((200, width, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def swaying(astronaut: Frame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 60 frames, no two of which are alike."""
    path = tmp_path_factory.mktemp("swaying") / "a.mp4"
    write_video(path, [head(astronaut, 30 + n // 3, 10 + n % 3) for n in range(LENGTH)])
    return path


def source(path: Path, label: int = 0) -> Source:
    return Source(path, f"videos/{path.name}", label, "youtube", ("someone",))


def recipe(frames: int = 4, modalities: Modalities | None = None, **options: Any) -> Recipe:
    """Options of StoreSettings, for crops of 32 pixels."""
    made = modalities or Modalities()
    fixed = {"ratios": (0.7, 0.1, 0.2), "seed": 0, "sources_sha256": ""}
    settings = StoreSettings(
        **(fixed | {"frames": frames, "crop": CropRule(size=32), "modalities": made.names} | options)
    )
    return Recipe(settings, made)


def starts(clips: list[Row]) -> list[int]:
    return [clip["start_frame"] for clip in clips]


def pixels(clip: Row, modality: str = "rgb") -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in clip[modality]])


def assert_cut_from(path: Path, clip: Row) -> None:
    """Assert that a clip's pictures are cut at its boxes out of the frames that it says."""
    with Video(path) as video:
        frames = [picture.rgb for picture in video.pictures()][clip["start_frame"] :][: len(clip["rgb"])]
    expected = CropRule(size=32).cut_clip(frames, np.array(clip["boxes"], np.float32))
    np.testing.assert_array_equal(pixels(clip), expected)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("first", [0, 4, 8]),
        # Of the 60 - 3 * 4 = 48 frames of room, 1/6, 3/6 and 5/6 lie before the clips, and the clips before them.
        ("spread", [8, 24 + 4, 40 + 8]),
    ],
)
def test_clips_begin_first_or_evenly_spread(swaying: Path, start: str, expected: list[int]) -> None:
    row, clips = prepared(source(swaying), "train", recipe(start=start, clips_per_video=3))
    assert starts(clips) == expected
    assert (row["status"], row["reason"], row["clips"]) == ("ok", "", 3)
    assert [clip["clip_id"] for clip in clips] == [f"{row['video_id']}-{n}" for n in range(3)]
    for clip in clips:
        assert_cut_from(swaying, clip)


def test_one_clip_is_spread_to_the_middle(swaying: Path) -> None:
    _, (clip,) = prepared(source(swaying), "train", recipe(start="spread"))
    assert clip["start_frame"] == (LENGTH - 4 + 1) // 2
    assert_cut_from(swaying, clip)


def test_random_clips_are_in_the_video_do_not_overlap_and_are_decided_by_seed_and_name(
    swaying: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.mp4"
    other.write_bytes(swaying.read_bytes())
    drawn = []
    for path, seed in [(swaying, seed) for seed in range(8)] + [(other, 0)]:
        settings = recipe(start="random", clips_per_video=5, seed=seed)
        _, clips = prepared(source(path), "train", settings)
        assert [clip["start_frame"] for clip in prepared(source(path), "train", settings)[1]] == starts(clips)
        assert len(clips) == 5
        assert min(b - a for a, b in pairwise([*starts(clips), LENGTH])) >= 4
        drawn.append(starts(clips))
    assert len({tuple(some) for some in drawn}) == 9
    assert np.std([some[0] for some in drawn]) > 2
    assert_cut_from(swaying, prepared(source(swaying), "train", recipe(start="random"))[1][0])


@pytest.mark.parametrize("start", ["first", "random", "spread"])
@pytest.mark.parametrize("frames", [1, 7, 20])
def test_clips_fill_a_video_that_they_just_fit_in(swaying: Path, start: str, frames: int) -> None:
    row, clips = prepared(
        source(swaying), "train", recipe(frames, start=start, clips_per_video=min(LENGTH // frames, 10))
    )
    assert min(b - a for a, b in pairwise([*starts(clips), LENGTH])) >= frames
    assert (len(clips), row["reason"]) == (min(LENGTH // frames, 10), "")
    if frames == 20:
        assert starts(clips) == [0, 20, 40]


@pytest.mark.parametrize("start", ["first", "random", "spread"])
def test_fewer_clips_than_asked_for_are_said(swaying: Path, start: str) -> None:
    row, clips = prepared(source(swaying), "train", recipe(25, start=start, clips_per_video=3))
    assert starts(clips) == [0, 25]
    assert row["status"] == "ok"
    assert row["reason"] == "2 of 3 stretches: 10 frames from the first face on, 25 are needed"


def test_a_face_before_the_drawn_frame_is_not_lost(astronaut: Frame, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [head(astronaut)] * 6 + [empty()] * 50)
    row, clips = prepared(source(tmp_path / "a.mp4"), "train", recipe(start="spread"))
    assert (row["status"], starts(clips)) == ("ok", [0])


def test_every_steady_face_has_its_clip_where_all_count(astronaut: Frame, tmp_path: Path) -> None:
    both = np.concatenate([head(astronaut), head(astronaut, 30, 5)[:, ::-1]], axis=1)
    one = np.concatenate([head(astronaut), empty()], axis=1)
    write_video(tmp_path / "a.mp4", [both] * 8)
    write_video(tmp_path / "b.mp4", [both] + [one] * 11)
    _, single = prepared(source(tmp_path / "a.mp4"), "train", recipe())
    row, clips = prepared(source(tmp_path / "a.mp4"), "train", recipe(all_faces=True, clips_per_video=2))
    assert len(single) == 1
    assert (starts(clips), row["clips"], row["reason"]) == ([0, 0, 4, 4], 4, "")
    assert {(clip["start_frame"], clip["track"]) for clip in clips} == {(0, 0), (0, 1), (4, 0), (4, 1)}
    sides = {(clip["track"], clip["boxes"][0][0] > 240) for clip in clips}
    assert len(sides) == 2
    for clip in clips:
        assert_cut_from(tmp_path / "a.mp4", clip)
    _, steady = prepared(source(tmp_path / "b.mp4"), "train", recipe(12, all_faces=True))
    assert len(steady) == 1
    assert steady[0]["boxes"][-1][0] < 240


def test_a_photo_is_a_clip_of_one_frame(astronaut: Frame, tmp_path: Path) -> None:
    Image.fromarray(head(astronaut)).save(tmp_path / "a.png")
    row, (clip,) = prepared(source(tmp_path / "a.png"), "train", recipe(1))
    assert (row["status"], row["fps"], row["width"], row["height"]) == ("ok", 0.0, 240, 200)
    expected = CropRule(size=32).cut(head(astronaut), clip["boxes"][0])
    np.testing.assert_array_equal(pixels(clip)[0], expected)
    row, clips = prepared(source(tmp_path / "a.png"), "train", recipe(20))
    assert (row["status"], row["reason"], clips) == (
        "too_short",
        "1 frames from the first face on, 20 are needed",
        [],
    )


@pytest.mark.parametrize("start", ["first", "random", "spread"])
def test_a_photo_has_one_stretch_however_many_are_asked_for(astronaut: Frame, tmp_path: Path, start: str) -> None:
    Image.fromarray(head(astronaut)).save(tmp_path / "a.png")
    row, clips = prepared(source(tmp_path / "a.png"), "train", recipe(1, start=start, clips_per_video=3))
    assert (row["status"], row["reason"], len(clips)) == ("ok", "1 of 3 stretches", 1)


def test_an_unsteady_stretch_is_passed_over_for_a_later_one(astronaut: Frame, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [head(astronaut)] * 2 + [empty()] * 20 + [head(astronaut)] * 20)
    row, clips = prepared(source(tmp_path / "a.mp4"), "train", recipe(20))
    assert (row["status"], row["reason"], starts(clips)) == ("ok", "", [22])
    write_video(tmp_path / "b.mp4", [head(astronaut)] * 2 + [empty()] * 20)
    row, clips = prepared(source(tmp_path / "b.mp4"), "train", recipe(20))
    assert (row["status"], clips) == ("no_face", [])
    assert row["reason"] == "the face is seen in 2 of the clip's 20 frames"


@pytest.fixture(scope="module")
def breaking(astronaut: Frame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of which three quarters are there."""
    import av

    path = tmp_path_factory.mktemp("breaking") / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "threads": "1", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = 240, 200, "yuv420p"
        for n in range(LENGTH):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(head(astronaut, 30 + n // 3), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    return path


def test_a_video_that_breaks_after_a_clip_is_ok_and_has_its_reason(breaking: Path) -> None:
    row, clips = prepared(source(breaking), "train", recipe(20, clips_per_video=3))
    assert (row["status"], starts(clips)) == ("ok", [0, 20])
    assert row["reason"].startswith("2 of 3 stretches: videos/a.mp4 breaks while decoding: Invalid data found")
    row, clips = prepared(source(breaking), "train", recipe(20))
    assert (row["status"], row["reason"], starts(clips)) == ("ok", "", [0])
    row, clips = prepared(source(breaking), "train", recipe(50))
    assert (row["status"], clips) == ("unreadable", [])
    assert row["reason"].startswith("videos/a.mp4 breaks while decoding: Invalid data found")


def test_a_row_says_all_of_a_video_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    row, clips = prepared(source(tmp_path / "a.mp4", 1), "val", recipe())
    assert clips == []
    assert {key: row[key] for key in ("path", "label", "method", "split", "identities", "status", "clips")} == {
        "path": "videos/a.mp4",
        "label": 1,
        "method": "youtube",
        "split": "val",
        "identities": ["someone"],
        "status": "unreadable",
        "clips": 0,
    }


@pytest.mark.parametrize(
    ("split", "label", "modalities", "count"),
    [
        ("val", 0, ("rgb",), 2),
        ("test", 0, ("rgb",), 2),
        ("train", 0, ("rgb",), 0),
        ("train", 0, ("rgb", "flow"), 2),
        ("test", 1, ("rgb",), 0),
        ("train", 1, ("rgb", "flow"), 0),
    ],
)
def test_forgeries_are_made_of_real_clips_unless_training_draws_its_own(
    swaying: Path, split: str, label: int, modalities: Any, count: int
) -> None:
    made = recipe(modalities=Modalities(modalities), forge=2, clips_per_video=2)
    row, clips = prepared(source(swaying, label), split, made)
    assert (row["clips"], row["forged_clips"]) == (2 * (1 + count), 2 * count)
    assert [clip["clip_id"] for clip in clips] == [f"{row['video_id']}-{n}" for n in range(2 * (1 + count))]
    for first in range(0, len(clips), 1 + count):
        real, *forged = clips[first : first + 1 + count]
        assert (real["label"], real["method"]) == (label, "youtube")
        assert [(clip["label"], clip["method"]) for clip in forged] == [(1, "SelfBlended")] * count
        shared = ["video_id", "start_frame", "boxes", "split", "identities", "track"]
        assert all(clip[name] == real[name] for clip in forged for name in shared)
        assert len({pixels(clip).tobytes() for clip in (real, *forged)}) == 1 + count
        assert all(set(clip) >= {"clip_id", *modalities} for clip in (real, *forged))
    np.testing.assert_equal(prepared(source(swaying, label), split, made), (row, clips))


def test_a_forgery_changes_the_face_and_little_around_it(swaying: Path) -> None:
    _, (real, forged) = prepared(source(swaying), "test", recipe(crop=CropRule(size=96, margin=2.0), forge=1))
    difference = np.abs(pixels(real).astype(float) - pixels(forged)).mean(axis=(0, 3))
    assert difference[36:60, 36:60].mean() > 5
    assert difference[:6].mean() < 0.5


@pytest.mark.parametrize("crop", [CropRule(size=32), CropRule(size=33, margin=3.0, fit="pad")])
def test_a_forgery_that_changes_nothing_is_the_real_clip(
    swaying: Path, monkeypatch: pytest.MonkeyPatch, crop: CropRule
) -> None:
    monkeypatch.setattr(Forgery, "draw", classmethod(lambda cls, rng, weakest: cls()))
    _, (real, identity) = prepared(source(swaying), "test", recipe(forge=1, crop=crop))
    np.testing.assert_array_equal(pixels(identity), pixels(real))


def test_real_clips_of_a_forged_store_are_compressed_again(swaying: Path) -> None:
    _, (plain,) = prepared(source(swaying), "test", recipe())
    _, (real, _) = prepared(source(swaying), "test", recipe(forge=1))
    with Video(swaying) as video:
        again = recompressed([picture.rgb for picture in islice(video.pictures(), 4)])
    near = CropRule(size=32).cut_clip(again, np.array(real["boxes"], np.float32))
    away_from_plain, away_from_again = (
        np.abs(pixels(real).astype(float) - other).mean() for other in (pixels(plain), near)
    )
    assert 0 < away_from_plain < 4
    assert away_from_again < 2


def test_depth_and_flow_are_kept_beside_rgb(swaying: Path, tiny_depth: Path) -> None:
    made = Modalities(("rgb", "depth", "flow"), depth_weights=tiny_depth)
    _, (clip,) = prepared(source(swaying), "train", recipe(modalities=made))
    with Video(swaying) as video:
        frames = [picture.rgb for picture in islice(video.pictures(), 4)]
    boxes, valid = np.array(clip["boxes"], np.float32), np.array(clip["valid"])
    for name, expected in made.pictures(frames, boxes, valid, CropRule(size=32)).items():
        np.testing.assert_array_equal(pixels(clip, name), expected)


def test_frames_that_are_damaged_are_counted_in_the_reason(astronaut: Frame, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.mp4", tmp_path / "damaged.mp4"
    write_video(whole, [head(astronaut, x=x) for x in range(30)])
    content = bytearray(whole.read_bytes())
    rng, start = np.random.default_rng(3), content.index(b"mdat")
    for place in rng.integers(start + 200, len(content) - 2000, 40):
        content[place] = rng.integers(256)
    damaged.write_bytes(content)
    for path, said in ((whole, r"^$"), (damaged, r"damaged frames: [1-9]")):
        assert re.search(said, prepared(source(path), "train", recipe(8))[0]["reason"])
