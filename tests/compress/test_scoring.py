"""Scoring clips: which pictures reach a model, in which shape, and where its scores go."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.scoring import Takes, collect, probability, score_clip_list, score_split
from data.store import Clip
from stage import StageError

SIZE = 4


def _clips(count: int, frames: int) -> list[Clip]:
    return [
        Clip(
            clip_id=f"v{index}-0",
            video_id=f"v{index}",
            label=index % 2,
            method="swap" if index % 2 else "original",
            identities=(f"p{index}",),
            valid=np.arange(frames) % 3 != 2,  # the third frame shows no face
            boxes=np.zeros((frames, 4), np.float32),
            row=index,
        )
        for index in range(count)
    ]


class Pictures:
    """A source in memory: every pixel of frame t of clip c is 10 c + t, and 100 more in a depth picture."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def pixels(self, clip, frames=None, modality="rgb"):
        numbers = np.arange(self.frames) if frames is None else np.array(frames)
        values = 10 * clip.row + numbers + 100 * (modality == "depth")
        return np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (len(numbers), SIZE, SIZE, 3))


def _mean(pixels):
    return (pixels.reshape(len(pixels), -1).mean(1) / 255).astype(np.float32)


def test_frames_are_scored_in_their_places(opened_store):
    clips = opened_store.clips("val")
    clips = [replace(clips[0], valid=np.array([True, False, True, False])), *clips[1:]]
    scores = score_clip_list(_mean, opened_store, clips, "score")
    for row, clip in zip(scores.frames, clips, strict=True):
        expected = np.where(clip.valid, opened_store.pixels(clip).reshape(4, -1).mean(1) / 255, np.nan)
        np.testing.assert_allclose(row, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.clips, [row[~np.isnan(row)].mean() for row in scores.frames])
    assert scores.clip_ids == tuple(clip.clip_id for clip in clips)
    assert scores.video_ids == tuple(clip.video_id for clip in clips)
    assert scores.methods == tuple(clip.method for clip in clips)
    assert scores.identities == tuple(clip.identities for clip in clips)
    assert scores.labels.tolist() == [clip.label for clip in clips]


def test_split_is_scored_in_its_order(opened_store):
    scores = score_split(_mean, opened_store, "test")
    assert scores.clip_ids == tuple(clip.clip_id for clip in opened_store.clips("test"))


@pytest.mark.parametrize(("frames", "count", "calls"), [(1, 40, [32, 8]), (20, 2, [14, 14]), (50, 2, [34, 34])])
def test_photos_are_scored_in_batches_and_long_clips_one_by_one(frames, count, calls):
    seen = []

    def scorer(pixels):
        seen.append(len(pixels))
        return _mean(pixels)

    score_clip_list(scorer, Pictures(frames), _clips(count, frames), "score")
    assert seen == calls


def test_one_modality_is_one_picture_and_several_come_in_their_order():
    clips, shapes = _clips(2, 3), []

    def scorer(pixels):
        shapes.append(pixels.shape)
        return (pixels[:, 0, 0, 0] if pixels.ndim == 4 else pixels[:, 0, 0, 0, 0]).astype(np.float32)

    depth = score_clip_list(scorer, Pictures(3), clips, "score", Takes(("depth",)))
    both = score_clip_list(scorer, Pictures(3), clips, "score", Takes(("depth", "rgb")))
    assert shapes == [(4, SIZE, SIZE, 3), (4, 2, SIZE, SIZE, 3)]
    np.testing.assert_array_equal(depth.frames, [[100, 101, np.nan], [110, 111, np.nan]])
    np.testing.assert_array_equal(both.frames, depth.frames)


def test_clip_model_gets_every_frame_and_which_are_valid():
    clips = _clips(6, 8)

    def scorer(pixels, valid):
        assert pixels.shape[1:] == (8, 2, SIZE, SIZE, 3) and pixels.dtype == np.uint8
        assert valid.shape == pixels.shape[:2] and valid.dtype == np.bool_
        rgb, depth = pixels[:, :, 0, 0, 0, 0], pixels[:, :, 1, 0, 0, 0]
        return np.array([(r + d)[own].mean() for r, d, own in zip(rgb, depth, valid, strict=True)], np.float32)

    scores = score_clip_list(scorer, Pictures(8), clips, "score", Takes(("rgb", "depth"), "clip"))
    assert scores.frames is None
    shown = np.array([0, 1, 3, 4, 6, 7]).mean()
    np.testing.assert_allclose(scores.clips, [100 + 20 * index + 2 * shown for index in range(6)], rtol=1e-6)
    metrics = scores.metrics(0.5, intervals=False)
    assert metrics.frame is None and metrics.frame_auc is None
    assert (metrics.clip.real, metrics.clip.fake) == (3, 3)


def test_scores_may_come_from_anything_that_knows_clips():
    clips = _clips(5, 4)
    features = {clip.clip_id: np.float32(clip.row) for clip in clips}
    scores = collect(
        lambda chunk: [features[clip.clip_id] * np.ones(3, np.float32) for clip in chunk], clips, 4, "score"
    )
    np.testing.assert_array_equal(scores.clips, np.arange(5))
    whole = collect(lambda chunk: [features[clip.clip_id][None] for clip in chunk], clips, 4, "score", "clip")
    np.testing.assert_array_equal(whole.clips, np.arange(5))


def test_clip_model_refuses_photos():
    with pytest.raises(StageError, match=r"score test: a clip model cannot score photos: give clips of 2 frames or"):
        score_clip_list(_mean, Pictures(1), _clips(2, 1), "score test", Takes(per="clip"))


def test_score_that_is_no_number_is_refused():
    with pytest.raises(StageError, match=r"score: the score of clip v0-0 is not a number: its model is damaged"):
        score_clip_list(lambda pixels: np.full(len(pixels), np.nan, np.float32), Pictures(2), _clips(2, 2), "score")


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "0.000"), (1.0, "1.000"), (0.5, "0.500"), (0.8314, "0.831"), (0.0002021, "0.000202"),
        (1.000001, "1.000001000"), (-0.001, "-0.00100"), (1.001, "1.001000"),
        (0.99971, "0.999710"), (1 - 6e-8, "0.999999940"), (1e-9, "1.00e-09"), (1 - 1e-16, "1.000000000"),
    ],
)  # fmt: skip
def test_a_sure_probability_is_told_from_certainty(p, text):
    assert probability(p) == text


def test_scoring_imports_neither_torch_nor_scikit_learn():
    code = "import sys, compress.scoring; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_each_draw_of_forgeries_is_a_video_of_its_own():
    """Two clips of a video, and two forgeries of each: the first ones are one fake video, the second ones another."""
    clips = [
        replace(clip, video_id="v", label=int(draw > 0), draw=draw, row=row, valid=np.ones(1, np.bool_))
        for row, (clip, draw) in enumerate(zip(_clips(6, 1), (0, 1, 2, 0, 1, 2), strict=True))
    ]
    scores = score_clip_list(_mean, Pictures(1), clips, "score")
    first, means = scores.by_video()
    assert first.tolist() == [0, 1, 2] and scores.labels[first].tolist() == [0, 1, 1]
    np.testing.assert_allclose(255 * means, [15, 25, 35])
    assert (scores.metrics(0.5).video.real, scores.metrics(0.5).video.fake) == (1, 2)


def test_of_one_clip_a_video_figures_by_videos_are_those_by_clips():
    clips = [
        replace(
            clip, video_id=f"v{row // 3}", label=int(row % 3 > 0), draw=row % 3, row=row, valid=np.ones(1, np.bool_)
        )
        for row, clip in enumerate(_clips(9, 1))
    ]
    metrics = score_clip_list(_mean, Pictures(1), clips, "score").metrics(0.05)
    assert metrics.video == metrics.clip
