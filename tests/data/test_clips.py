"""Clips out of a stream of faces, and bridged gaps, against closed forms and known appearances of a photo."""

import numpy as np
import pytest
from numpy.typing import NDArray

from data.clips import BRIDGED_FRAMES, FaceClip, bridge, face_clips
from data.faces import DlibHog, Face
from data.picture import Frame, Picture
from data.tracks import Seen, Tracker

EMPTY = Picture.of(np.full((200, 240, 3), 128, np.uint8))


def face_at(frame: int) -> Face:
    """A face that moves on a line."""
    return Face(np.array([10.0 + 3 * frame, 20.0 - frame, 110.0 + 3 * frame, 120.0 + 2 * frame]), 1.0 + frame)


def seen_at(frames: list[int], length: int) -> list[Face | None]:
    return [face_at(n) if n in frames else None for n in range(length)]


def stream(*tracks: str, sides: tuple[float, ...] = (80, 80, 80), pictures: Picture = EMPTY) -> list[Seen]:
    """Square faces of some sides by their patterns, one letter a frame: ``f`` where the track has its face."""
    seen = [Seen(pictures) for _ in tracks[0]]
    for track, (pattern, side) in enumerate(zip(tracks, sides, strict=False)):
        for frame, letter in zip(seen, pattern, strict=True):
            if letter == "f":
                frame.faces[track] = Face(np.array([10.0, 10, 10 + side, 10 + side]), 1.0)
    return seen


def pattern(clip: FaceClip) -> str:
    return "".join("." if face is None else "f" for face in clip.faces)


def cut(frames: list[Seen], length: int) -> list[list[tuple[int, int, str]]]:
    """Start, track and pattern of every clip, by stretch."""
    return [[(clip.start, clip.track, pattern(clip)) for clip in clips] for clips in face_clips(frames, length)]


def test_boxes_in_a_gap_lie_on_the_line_between_its_ends() -> None:
    boxes, scores, valid = bridge(seen_at([0, 1, 4, 9], 10))
    expected: NDArray[np.float64] = np.stack([face_at(n).box for n in range(10)])
    np.testing.assert_allclose(boxes, expected, rtol=1e-6)
    np.testing.assert_array_equal(scores, [1, 2, 0, 0, 5, 0, 0, 0, 0, 10])
    assert valid.all()
    assert [str(array.dtype) for array in (boxes, scores, valid)] == ["float32", "float32", "bool"]


def test_boxes_are_held_at_the_ends() -> None:
    boxes, _, valid = bridge(seen_at([2], 5))
    np.testing.assert_array_equal(boxes, [face_at(2).box] * 5)
    assert valid.all()


@pytest.mark.parametrize(
    ("seen", "length", "invalid"),
    [
        ([0, 1 + BRIDGED_FRAMES], 7, []),
        ([0, 2 + BRIDGED_FRAMES], 8, [1, 2, 3, 4, 5, 6]),
        ([6, 7], 8, [0, 1, 2, 3, 4, 5]),
        ([0], 7, [1, 2, 3, 4, 5, 6]),
        ([0, 7, 9], 16, [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15]),
    ],
)
def test_a_gap_too_long_to_bridge_is_not_valid(seen: list[int], length: int, invalid: list[int]) -> None:
    _, _, valid = bridge(seen_at(seen, length))
    assert np.flatnonzero(~valid).tolist() == invalid


def test_a_followed_face_has_no_score() -> None:
    faces = [Face(face_at(0).box, 2.0), Face(face_at(1).box, float("nan")), None, Face(face_at(3).box, 1.0)]
    np.testing.assert_array_equal(bridge(faces)[1], np.array([2, np.nan, 0, 1], np.float32))


def test_clips_follow_one_another_and_the_last_is_the_rest() -> None:
    assert cut(stream("ffffffff"), 3) == [[(0, 0, "fff")], [(3, 0, "fff")], [(6, 0, "ff")]]


def test_frames_before_the_face_are_in_no_clip() -> None:
    assert cut(stream("..fffff"), 3) == [[(2, 0, "fff")], [(5, 0, "ff")]]


def test_a_clip_goes_on_through_a_gap_and_the_next_one_waits_for_the_face() -> None:
    assert cut(stream("f.f...f."), 3) == [[(0, 0, "f.f")], [(6, 0, "f.")]]


def test_a_stream_without_a_face_gives_no_clip() -> None:
    assert cut(stream("...."), 3) == []
    assert cut([], 3) == []


def test_every_face_of_a_stretch_has_its_clip_and_the_largest_comes_first() -> None:
    frames = stream("ffffff", ".fffff", "...fff", sides=(40, 60, 50))
    assert cut(frames, 3) == [[(0, 1, ".ff"), (0, 0, "fff")], [(3, 1, "fff"), (3, 2, "fff"), (3, 0, "fff")]]


def test_an_unsteady_face_comes_after_steady_ones_however_large() -> None:
    frames = stream("f" + "." * 19, "f" * 20, "f" * 7 + "." * 13, sides=(90, 20, 80))
    clips = next(face_clips(frames, 20))
    assert [clip.track for clip in clips] == [1, 0, 2]
    assert [clip.steady for clip in clips] == [True, False, False]


def test_in_a_shorter_last_stretch_a_face_is_steady_by_a_whole_clip_s_frames() -> None:
    clips = next(face_clips(stream("f" * 8 + "." * 6, "f" * 14, sides=(90, 20)), 20))
    assert [(clip.track, len(clip), clip.steady) for clip in clips] == [(1, 14, True), (0, 14, False)]


@pytest.mark.parametrize(
    ("seen", "steady"),
    [("f" * 10 + "." * 10, True), ("f" * 9 + "." * 11, False), ("f.....f" + "." * 13, False), ("f" + "." * 5, True)],
)
def test_a_face_is_steady_in_half_of_the_frames(seen: str, steady: bool) -> None:
    (clip,) = next(face_clips(stream(seen), len(seen)))
    assert clip.steady is steady


def test_the_typical_size_counts_not_the_largest() -> None:
    frames = stream("ffff", "ffff", sides=(50, 40))
    frames[2].faces[1] = Face(np.array([0.0, 0, 200, 200]), 1.0)
    assert [clip.track for clip in next(face_clips(frames, 4))] == [0, 1]


def test_a_clip_spans_no_change_of_the_size() -> None:
    other = Picture.of(np.zeros((240, 200, 3), np.uint8))
    frames = [*stream("fffff"), *stream(".ffff", pictures=other)]
    assert cut(frames, 3) == [[(0, 0, "fff")], [(3, 0, "ff")], [(6, 0, "fff")], [(9, 0, "f")]]
    sizes = [{picture.size for picture in clip.pictures} for (clip,) in face_clips(frames, 3)]
    assert sizes == [{(200, 240)}] * 2 + [{(240, 200)}] * 2


def test_a_clip_has_its_faces_bridged() -> None:
    clip = FaceClip(7, 0, [EMPTY] * 10, seen_at([0, 1, 4, 9], 10), 10)
    boxes, scores, valid = bridge(clip.faces)
    assert len(clip) == 10
    np.testing.assert_array_equal(clip.boxes, boxes)
    np.testing.assert_array_equal(clip.scores, scores)
    np.testing.assert_array_equal(clip.valid, valid)


def test_a_clip_holds_the_frames_themselves(astronaut: Frame) -> None:
    head = np.full((200, 240, 3), 128, np.uint8)
    head[10:190, 30:210] = astronaut[30:210, 140:320]
    frames = [np.roll(head, n, axis=1) for n in range(4)]
    clips = list(face_clips(Tracker(DlibHog()).follow(map(Picture.of, frames)), 2))
    held = [picture.rgb for (clip,) in clips for picture in clip.pictures]
    np.testing.assert_array_equal(held, frames)


def test_a_face_that_moved_while_unseen_starts_a_clip_where_it_is(astronaut: Frame) -> None:
    left, right = np.full((2, 200, 640, 3), 128, np.uint8)
    left[10:190, 10:190] = right[10:190, 450:630] = astronaut[30:210, 140:320]
    pictures = map(Picture.of, [left, left, *[right] * 3])
    clips = [clips[0] for clips in face_clips(Tracker(DlibHog()).follow(pictures), 2)]
    found = [[face.box[0] > 320 for face in clip.faces if face is not None] for clip in clips]
    assert found == [[False, False], [True, True], [True]]


@pytest.mark.parametrize(
    ("pattern", "length", "hop", "starts"),
    [
        ("ffffffff", 4, 2, [(0, 4), (2, 4), (4, 4)]),
        ("fffffffff", 4, 2, [(0, 4), (2, 4), (4, 4), (6, 3)]),  # the last frame was in none
        ("fff", 4, 2, [(0, 3)]),
        ("ffff", 4, 4, [(0, 4)]),
        ("..ffff.fff", 4, 2, [(2, 4), (4, 4), (7, 3)]),  # the one from 6 on begins with the next face
        ("ffff......ff", 4, 2, [(0, 4), (2, 4), (10, 2)]),
        ("ffffffff", 4, 1, [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]),
        ("ffffffff", 4, 3, [(0, 4), (3, 4), (6, 2)]),
    ],
)
def test_stretches_that_overlap(pattern: str, length: int, hop: int, starts: list[tuple[int, int]]) -> None:
    found = [(clips[0].start, len(clips[0])) for clips in face_clips(stream(pattern), length, hop)]
    assert found == starts
