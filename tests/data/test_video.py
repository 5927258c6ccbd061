"""Decoding, seeking and encoding, against what was encoded, PyAV's planes, OpenCV and the display matrix's definition.

That a frame is the one that was asked for is told by decoding the whole file from its start.
"""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.picture import UPRIGHT, Picture
from data.video import Video, recompressed, write_video
from tests.data.videos import (
    decode,
    psnr,
    quadrants,
    waves,
    with_display_matrix,
)

TURNED_CLOCKWISE = (0, 1, -1, 0)
ORIENTATIONS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def moved_pixel_by_pixel(picture: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    moved = np.zeros((np.ptp(to_y) + 1, np.ptp(to_x) + 1, *picture.shape[2:]), np.uint8)
    moved[to_y - to_y.min(), to_x - to_x.min()] = picture
    return moved


def test_decoded_frames_are_those_encoded_in_their_order(tmp_path: Path) -> None:
    frames = waves()
    write_video(tmp_path / "a.mp4", frames, crf=10)
    decoded = decode(tmp_path / "a.mp4")
    assert len(decoded) == len(frames)
    nearest = [max(range(len(frames)), key=lambda n: psnr(frames[n], picture)) for picture in decoded]
    assert nearest == list(range(len(frames)))
    assert min(psnr(a, b) for a, b in zip(frames, decoded, strict=True)) > 38


def test_decoded_frames_are_those_of_opencv(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves())
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    for picture in decode(tmp_path / "a.mp4"):
        _, bgr = capture.read()
        assert np.abs(picture.astype(int) - bgr[..., ::-1]).max() <= 3
    assert not capture.read()[0]


def test_red_is_the_first_channel(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [quadrants()], crf=0)
    red = decode(tmp_path / "a.mp4")[0][12, 16].astype(int)
    assert np.abs(red - (255, 0, 0)).max() < 6


def test_info_holds_rate_and_size(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves(3), fps=30)
    with Video(tmp_path / "a.mp4") as video:
        assert (video.info.fps, video.info.width, video.info.height) == (30.0, 64, 48)


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_display_matrix_puts_colours_and_luma_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    write_video(tmp_path / "a.mp4", [quadrants()], crf=0)
    with Video(tmp_path / "a.mp4") as video:
        plain = next(video.pictures())
    with_display_matrix(tmp_path / "a.mp4", matrix)
    with Video(tmp_path / "a.mp4") as video:
        turned = next(video.pictures())
        assert (video.info.height, video.info.width) == turned.size == turned.rgb.shape[:2]
    np.testing.assert_array_equal(turned.rgb, moved_pixel_by_pixel(plain.rgb, matrix))
    np.testing.assert_array_equal(turned.luma, moved_pixel_by_pixel(plain.luma, matrix))


def test_recompressed_frames_are_those_of_a_written_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves())
    again = recompressed(waves())
    np.testing.assert_array_equal(again, decode(tmp_path / "a.mp4"))
    np.testing.assert_array_equal(again, recompressed(waves()))


@pytest.mark.parametrize("size", [(47, 61), (48, 61), (47, 64), (1, 1)])
def test_recompressed_frames_of_odd_sides_keep_them(size: tuple[int, int]) -> None:
    frames = [frame[: size[0], : size[1]] for frame in waves(3)]
    again = recompressed(frames)
    assert [frame.shape for frame in again] == [(*size, 3)] * 3
    assert min(psnr(a, b) for a, b in zip(frames, again, strict=True)) > 30


def test_phone_held_upright_is_turned_as_opencv_turns_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves(3))
    with_display_matrix(tmp_path / "a.mp4", TURNED_CLOCKWISE)
    with Video(tmp_path / "a.mp4") as video:
        assert (video.info.width, video.info.height) == (48, 64)
        picture = next(video.pictures()).rgb
    bgr = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()[1]
    assert np.abs(picture.astype(int) - bgr[..., ::-1]).max() <= 3


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves())
    write_video(tmp_path / "b.mp4", waves())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def _first_frame(path: Path, pixels: NDArray[np.uint8], aspect: str | None = None, **options: str) -> Picture:
    """Write a video of three equal frames, the same bytes each time, and return the first that is read."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "mbtree": "0"} | options)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with Video(path) as video:
        picture = next(video.pictures())
        assert (video.info.height, video.info.width) == picture.luma.shape
    return picture


@pytest.mark.parametrize(("aspect", "shown"), [("4/3", 85), ("8/9", 57), ("1001/1000", 64), ("900/1", 64)])
def test_pixels_that_are_not_square_are_stretched_in_width(
    astronaut: NDArray[np.uint8], tmp_path: Path, aspect: str, shown: int
) -> None:
    pixels = np.asarray(cv2.resize(astronaut, (64, 48)), np.uint8)
    square = _first_frame(tmp_path / "square.mp4", pixels)
    found = _first_frame(tmp_path / "oblong.mp4", pixels, aspect)
    kernel = cv2.INTER_AREA if shown < 64 else cv2.INTER_LINEAR
    np.testing.assert_array_equal(found.rgb, cv2.resize(square.rgb, (shown, 48), interpolation=kernel))
    np.testing.assert_array_equal(found.luma, cv2.resize(square.luma, (shown, 48), interpolation=kernel))


def test_a_frame_of_one_pixel_in_width_is_not_squeezed_away() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((48, 1), 90, np.uint8), format="gray")
    picture = Picture(frame, Path("a.mp4"), UPRIGHT, 0.3)
    assert picture.size == (48, 1) and picture.rgb.shape == (48, 1, 3)


@pytest.mark.parametrize(
    ("options", "remarks"),
    [
        ("ref=1", ()),
        ("interlaced=1", ("interlaced: what moves has combs",)),
        ("transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc", ("HDR, read without tone mapping",)),
    ],
)
def test_frames_that_are_woven_or_meant_for_brighter_screens_are_remarked(
    tmp_path: Path, options: str, remarks: tuple[str, ...]
) -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    assert _first_frame(tmp_path / "a.mp4", black, **{"x264-params": options}).remarks == remarks
    with Video(tmp_path / "a.mp4") as video:
        list(video.pictures())
        assert tuple(video.remarks) == remarks


@pytest.mark.parametrize(("rate", "milliseconds", "told"), [(30, 33, 30.0), (1000, 40, 25.0), (1000, 1, 0.0)])
def test_a_rate_that_is_the_unit_of_times_is_that_of_the_frames(
    rate: int, milliseconds: int, told: float, tmp_path: Path
) -> None:
    """Recorders of browsers write 1000, as their times are in milliseconds."""
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=rate)
        stream.width, stream.height = 64, 48
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(5):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = milliseconds * number, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with Video(tmp_path / "a.webm") as video:
        assert "_index" not in vars(video), "its times are read if they are asked for"
        assert video.info.fps == told
        assert len(list(video.pictures())) == 5
