"""Luma of decoded frames: the plane as coded, whatever the bits, the colours and the turn."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data.picture import Picture
from data.video import Video
from tests.data.videos import (
    decode,
    encode,
    quadrants,
    waves,
)


def coded_luma(path: Path) -> list[NDArray[Any]]:
    """The Y planes as FFmpeg's own filter takes them out of the frames."""
    graph = av.filter.Graph()
    with av.open(str(path)) as container:
        graph.link_nodes(
            graph.add_buffer(template=container.streams.video[0]),
            graph.add("extractplanes", "y"),
            graph.add("buffersink"),
        ).configure()
        planes = []
        for frame in container.decode(video=0):
            graph.push(frame)
            planes.append(graph.pull().to_ndarray())
    return planes


def lumas(path: Path) -> NDArray[np.uint8]:
    with Video(path) as video:
        return np.stack([picture.luma for picture in video.pictures()])


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size"),
    [
        ("a.mp4", "libx264", "yuv420p", (48, 64)),
        ("full-range.mov", "mjpeg", "yuvj422p", (48, 64)),
        ("odd.mkv", "ffv1", "yuv420p", (47, 61)),
        ("odd444.mkv", "ffv1", "yuv444p", (47, 61)),
        ("alpha.mkv", "ffv1", "yuva420p", (47, 61)),
        ("grey.mkv", "ffv1", "gray", (47, 61)),
    ],
)
def test_luma_of_8_bits_is_the_plane_as_coded(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, size: tuple[int, int]
) -> None:
    encode(tmp_path / name, [frame[: size[0], : size[1]] for frame in waves(3)], codec, pix_fmt)
    planes = coded_luma(tmp_path / name)
    np.testing.assert_array_equal(lumas(tmp_path / name), planes)
    assert planes[0].shape == size


def test_luma_of_a_webm_with_alpha_is_the_plane_as_coded(tmp_path: Path) -> None:
    encode(tmp_path / "a.webm", waves(3), "libvpx-vp9", "yuva420p")
    np.testing.assert_array_equal(lumas(tmp_path / "a.webm"), coded_luma(tmp_path / "a.webm"))


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "ffv1"), ("a.mp4", "libx264")])
def test_luma_of_10_bits_is_the_coded_one_spread_over_0_to_255(tmp_path: Path, name: str, codec: str) -> None:
    encode(tmp_path / name, waves(3), codec, "yuv420p10le")
    coded = np.stack(coded_luma(tmp_path / name))
    assert coded.dtype == np.uint16
    expected = np.clip((coded - 64.0) / (940 - 64) * 255, 0, 255)
    assert np.abs(lumas(tmp_path / name) - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mkv", "ffv1", "bgr0"), ("b.mkv", "libx264rgb", "rgb24"), ("c.avi", "rawvideo", "bgr24")],
)
def test_luma_of_rgb_video_is_the_sum_of_bt601(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    encode(tmp_path / name, waves(3), codec, pix_fmt)
    expected = np.stack(decode(tmp_path / name)) @ [0.299, 0.587, 0.114]
    assert np.abs(lumas(tmp_path / name) - expected).max() <= 1


def test_a_wrapped_picture_is_itself() -> None:
    pixels = quadrants()[:47, :61]
    picture = Picture.of(pixels)
    np.testing.assert_array_equal(picture.rgb, pixels)
    assert picture.size == (47, 61)
    assert np.abs(picture.luma - pixels @ [0.299, 0.587, 0.114]).max() <= 1
