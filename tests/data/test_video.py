"""Decoding, seeking and encoding, against what was encoded, PyAV's planes, OpenCV and the display matrix's definition.

That a frame is the one that was asked for is told by decoding the whole file from its start.
"""

import os
import shutil
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.picture import UPRIGHT, Picture, UnreadableVideo
from data.video import Video, recompressed, write_video
from tests.data.videos import (
    decode,
    encode,
    psnr,
    quadrants,
    waves,
    what_is_no_file,
    with_cover,
    with_display_matrix,
    write_photo_in_tiles,
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


@pytest.mark.parametrize("content", [b"", b"only text\n" * 100, bytes(5000)], ids=["empty", "text", "zeros"])
def test_file_that_is_no_video_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideo, match=r"a\.mp4 cannot be read as a video: Invalid data found"):
        Video(tmp_path / "a.mp4")


def test_a_format_that_is_not_read_is_said_to_be_none(tmp_path: Path) -> None:
    Image.fromarray(waves(1)[0]).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.mp4")
    with pytest.raises(UnreadableVideo, match=r"a\.mp4 cannot be read as a video: its format is none that is read"):
        Video(tmp_path / "a.mp4")


def test_truncated_mp4_is_unreadable(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves())
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableVideo, match="cannot be read as a video: Invalid data found"):
        Video(tmp_path / "a.mp4")


def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    for name, reason in what_is_no_file(tmp_path, "mp4").items():
        with pytest.raises(UnreadableVideo, match=f"{name} cannot be read as a video: {reason}"):
            Video(tmp_path / name)


def test_sound_alone_is_unreadable(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.mp4"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(4000))
    with pytest.raises(UnreadableVideo, match="cannot be read as a video: its format is none that is read"):
        Video(tmp_path / "a.mp4")


def test_a_cover_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, waves(60))
    plain = decode(path)
    with_cover(path)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams.video] == ["mjpeg", "h264"]
    np.testing.assert_array_equal(decode(path), plain)
    with Video(path) as video:
        assert (video.info.width, video.info.height, video.count()) == (64, 48, 60)
        np.testing.assert_array_equal(next(video.pictures(55)).rgb, plain[55])


def test_a_tile_of_a_photo_is_no_film(tmp_path: Path) -> None:
    write_photo_in_tiles(tmp_path / "a.heic")
    with av.open(str(tmp_path / "a.heic")) as container:
        assert [(stream.width, stream.height) for stream in container.streams.video] == [(64, 64)] * 2
    with pytest.raises(UnreadableVideo, match=r"cannot be read as a video: it is a photo in tiles \(HEIC\): convert"):
        Video(tmp_path / "a.heic")


def test_video_without_a_frame_is_unreadable(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = 64, 48
        container.start_encoding()
    with pytest.raises(UnreadableVideo, match="cannot be read as a video: it holds no frame"):
        Video(tmp_path / "a.mp4")


def test_stream_that_breaks_gives_its_whole_frames_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3)).astype(np.uint8) for _ in range(12)]
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    content = (tmp_path / "a.mp4").read_bytes()
    whole = decode(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(content[: len(content) * 3 // 4])
    read: list[NDArray[np.uint8]] = []
    with Video(tmp_path / "a.mp4") as video, pytest.raises(UnreadableVideo, match=r"a\.mp4 breaks while decoding: "):
        read.extend(picture.rgb for picture in video.pictures())
    assert 0 < len(read) < 12
    np.testing.assert_array_equal(read, whole[: len(read)])
    with Video(tmp_path / "a.mp4") as video:
        for start in (0, len(read) + 1):  # whoever asks for more is told again
            with pytest.raises(UnreadableVideo, match=r"a\.mp4 breaks while decoding: "):
                list(video.pictures(start))


def test_nonsense_about_colours_is_said_when_they_are_asked_for() -> None:
    frame = av.VideoFrame.from_ndarray(waves(1)[0], format="rgb24").reformat(format="yuv420p")
    luma = Picture(frame).luma
    frame.colorspace = 3  # reserved (ITU-T H.273, table 4), as damaged headers say
    picture = Picture(frame, Path("a.mp4"))
    np.testing.assert_array_equal(picture.luma, luma)
    with pytest.raises(UnreadableVideo, match=r"^a\.mp4 breaks while decoding: Operation not supported$"):
        _ = picture.rgb


@pytest.mark.parametrize("name", [b"with space.mp4", b"q'uo\"te.mp4", b"new\nline.mp4", b"\xff\xfe.mp4", b"a:b.mp4"])
def test_any_file_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    write_video(tmp_path / "a.mp4", waves(3))
    monkeypatch.chdir(tmp_path)
    odd = Path("a.mp4").rename(os.fsdecode(name))
    assert len(decode(odd)) == 3


def test_playlist_named_like_a_video_opens_nothing_else(tmp_path, demo_control):
    shutil.copy(demo_control / "real" / "000.mp4", tmp_path / "other.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(UnreadableVideo, match=r"list.mp4 cannot be read as a video: "):
        Video(tmp_path / "list.mp4")


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
