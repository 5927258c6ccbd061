"""Files that are no film, or break within: said to be unreadable, and nothing else is opened."""

import os
import shutil
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.picture import Picture, UnreadableVideo
from data.video import Video, write_video
from tests.data.videos import (
    decode,
    waves,
    what_is_no_file,
    with_cover,
    write_photo_in_tiles,
)


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
