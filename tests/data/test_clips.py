"""Clips out of a stream of frames, and bridged gaps, against closed forms and known appearances of a photo."""

import numpy as np
import pytest
from numpy.typing import NDArray

from data.clips import BRIDGED_FRAMES, bridge, face_clips
from data.faces import DlibHog, Face
from data.video import Frame

EMPTY = np.full((200, 240, 3), 128, np.uint8)


def face_at(frame: int) -> Face:
    """A face that moves on a line."""
    return Face(np.array([10.0 + 3 * frame, 20.0 - frame, 110.0 + 3 * frame, 120.0 + 2 * frame]), 1.0 + frame)


def seen_at(frames: list[int], length: int) -> list[Face | None]:
    return [face_at(n) if n in frames else None for n in range(length)]


def shown(astronaut: Frame, pattern: str) -> list[Frame]:
    """One frame a letter: ``f`` with the face, ``.`` without."""
    head = EMPTY.copy()
    head[10:190, 30:210] = astronaut[30:210, 140:320]
    return [head if letter == "f" else EMPTY for letter in pattern]


def cut(frames: list[Frame], length: int) -> list[tuple[int, str]]:
    clips = face_clips(frames, DlibHog(), length)
    return [(clip.start, "".join("." if face is None else "f" for face in clip.faces)) for clip in clips]


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


def test_clips_follow_one_another_and_the_last_is_the_rest(astronaut: Frame) -> None:
    assert cut(shown(astronaut, "ffffffff"), 3) == [(0, "fff"), (3, "fff"), (6, "ff")]


def test_frames_before_the_face_are_in_no_clip(astronaut: Frame) -> None:
    assert cut(shown(astronaut, "..fffff"), 3) == [(2, "fff"), (5, "ff")]


def test_a_clip_goes_on_through_a_gap_and_the_next_one_waits_for_the_face(astronaut: Frame) -> None:
    assert cut(shown(astronaut, "f.f...f."), 3) == [(0, "f.f"), (6, "f.")]


def test_a_stream_without_a_face_gives_no_clip(astronaut: Frame) -> None:
    assert cut(shown(astronaut, "...."), 3) == []


def test_a_clip_holds_the_frames_themselves(astronaut: Frame) -> None:
    frames = [np.roll(frame, n, axis=1) for n, frame in enumerate(shown(astronaut, "ffff"))]
    clips = list(face_clips(frames, DlibHog(), 2))
    np.testing.assert_array_equal(np.stack([*clips[0].pictures, *clips[1].pictures]), np.stack(frames))


def test_a_face_that_moved_while_unseen_starts_a_clip_where_it_is(astronaut: Frame) -> None:
    left, right = np.full((2, 200, 640, 3), 128, np.uint8)
    left[10:190, 10:190] = right[10:190, 450:630] = astronaut[30:210, 140:320]
    clips = list(face_clips([left, left, *[right] * 3], DlibHog(), 2))
    found = [[face.box[0] > 320 for face in clip.faces if face is not None] for clip in clips]
    assert found == [[False, False], [True, True]]
