"""Decoding and encoding, against what was encoded, OpenCV's decoder and the definition of the display matrix."""

import os
import shutil
import struct
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.video import UnreadableVideo, Video, write_video

UPRIGHT = (1, 0, 0, 1)
TURNED_CLOCKWISE = (0, 1, -1, 0)
ORIENTATIONS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def waves(count: int = 12) -> list[NDArray[np.uint8]]:
    """Smooth pictures, uint8 [48, 64, 3], whose brightness tells their number."""
    y, x = np.mgrid[:48, :64] / 10.0
    tint = np.array([1.0, 0.8, 0.6])
    return [((40 + 12 * n + 20 * np.sin(x + y + n))[..., None] * tint).astype(np.uint8) for n in range(count)]


def quadrants() -> NDArray[np.uint8]:
    """Red, green / blue, white: no turn or mirroring leaves it as it is."""
    picture = np.full((48, 64, 3), 255, np.uint8)
    picture[:24, :32], picture[:24, 32:], picture[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


def decode(path: Path) -> list[NDArray[np.uint8]]:
    with Video(path) as video:
        return list(video.frames())


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255.0**2 / np.mean((a.astype(float) - b) ** 2)))


def with_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a, b, c, d of a track's display matrix into an mp4 (ISO/IEC 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (value << 16 for value in UPRIGHT)
    assert content[start : start + 36] == struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    a, b, c, d = (value * (1 << 16) for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def moved_pixel_by_pixel(picture: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    moved = np.zeros((np.ptp(to_y) + 1, np.ptp(to_x) + 1, 3), np.uint8)
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
def test_display_matrix_puts_frames_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    write_video(tmp_path / "a.mp4", [quadrants()], crf=0)
    plain = decode(tmp_path / "a.mp4")[0]
    with_display_matrix(tmp_path / "a.mp4", matrix)
    np.testing.assert_array_equal(decode(tmp_path / "a.mp4")[0], moved_pixel_by_pixel(plain, matrix))


def test_phone_held_upright_is_turned_as_opencv_turns_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves(3))
    with_display_matrix(tmp_path / "a.mp4", TURNED_CLOCKWISE)
    with Video(tmp_path / "a.mp4") as video:
        assert (video.info.width, video.info.height) == (48, 64)
        picture = next(video.frames())
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


def test_truncated_mp4_is_unreadable(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", waves())
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableVideo, match="cannot be read as a video: Invalid data found"):
        Video(tmp_path / "a.mp4")


def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    for name, reason in {
        "folder.mp4": "it is not a file",
        "pipe.mp4": "it is not a file",
        "link.mp4": "No such file or directory",
        "missing.mp4": "No such file or directory",
    }.items():
        with pytest.raises(UnreadableVideo, match=f"{name} cannot be read as a video: {reason}"):
            Video(tmp_path / name)


def test_sound_alone_is_unreadable(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.mp4"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(4000))
    with pytest.raises(UnreadableVideo, match=r"cannot be read as a video: (it holds no video stream|Invalid)"):
        Video(tmp_path / "a.mp4")


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
        read.extend(video.frames())
    assert 0 < len(read) < 12
    np.testing.assert_array_equal(read, whole[: len(read)])


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
