"""Starts within a video, against decoding from its beginning."""

from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data.picture import Picture
from data.video import Video
from tests.data.videos import B_FRAMES, KINDS, LENGTH, SPOILED, decode, encode, seekable, textured


@pytest.mark.parametrize("kind", [*KINDS, *SPOILED])
def test_any_start_gives_the_frames_that_decoding_from_the_beginning_gives(tmp_path: Path, kind: str) -> None:
    path, shown = seekable(tmp_path, kind)
    whole = decode(path)
    assert len({frame.tobytes() for frame in whole}) == len(whole) == shown
    with Video(path) as video:
        assert video.count() == shown
        assert video.position == 0
        np.testing.assert_array_equal(next(video.pictures()).rgb, whole[0])
    for start in [0, 1, 49, *range(50, shown, 9), shown - 1, shown, shown + 99]:
        with Video(path) as video:
            got = [picture.rgb for picture in islice(video.pictures(start), 2)]
            assert video.position == min(start + 2, shown)
        assert [frame.tobytes() for frame in got] == [frame.tobytes() for frame in whole[start : start + 2]]


@pytest.mark.parametrize("kind", ["b-frames.mp4", "one-key.mp4", "open-gop.mkv", "stream.mpg", "vp9.webm"])
def test_calls_go_on_where_the_last_one_ended(tmp_path: Path, kind: str) -> None:
    path, _ = seekable(tmp_path, kind)
    whole = decode(path)
    starts = [3, 5, 60, 62, 118, 120]
    with Video(path) as video:
        got = [[picture.rgb for picture in islice(video.pictures(start), 2)] for start in starts]
        rest = [picture.rgb for picture in video.pictures(123)]
        assert not list(video.pictures())
    np.testing.assert_array_equal(got, [whole[start : start + 2] for start in starts])
    np.testing.assert_array_equal(rest, whole[123:])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the frames that were decoded so far; every tenth is called damaged."""
    times: list[int] = []

    class Noted(Picture):
        def __init__(self, frame: av.VideoFrame, *rest: Any) -> None:
            assert frame.pts is not None
            times.append(frame.pts)
            super().__init__(frame, *rest)

        @property
        def is_damaged(self) -> bool:
            return sorted(set(times)).index(self.time) % 10 == 0

    monkeypatch.setattr("data.video.Picture", Noted)
    return times


def test_a_far_start_decodes_little(tmp_path: Path, decoded: list[int]) -> None:
    encode(tmp_path / "a.mp4", textured(LENGTH), options=B_FRAMES)
    with Video(tmp_path / "a.mp4") as video:
        assert video.count() == LENGTH
        next(video.pictures(143))
    assert len(decoded) <= 1 + 12


def test_without_a_key_frame_in_between_nothing_is_decoded_twice(tmp_path: Path, decoded: list[int]) -> None:
    path, _ = seekable(tmp_path, "one-key.mp4")
    with Video(path) as video:
        for start in (0, 60, 120):
            next(video.pictures(start))
        assert len(decoded) == len(set(decoded)) == 121
        assert video.damaged == 13


def test_a_damaged_frame_that_is_decoded_twice_counts_once(tmp_path: Path, decoded: list[int]) -> None:
    path, shown = seekable(tmp_path, "one-key.mp4")
    with Video(path) as video:
        list(islice(video.pictures(), 30))
        video._restart()
        assert len(list(video.pictures())) == shown
        assert len(decoded) == 30 + shown and video.damaged == -(-shown // 10)


def test_a_broken_stream_counts_what_lies_before_the_break(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", textured(60), options={"g": "1", "threads": "1"})
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
    with Video(tmp_path / "a.mkv") as video:
        count, read = video.count(), len(list(video.pictures()))
    assert 20 < read < 40
    assert count - read in (0, 1)
