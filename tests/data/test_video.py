"""Decoding, seeking and encoding, against what was encoded, PyAV's planes, OpenCV and the display matrix's definition.

That a frame is the one that was asked for is told by decoding the whole file from its start.
"""

import os
import shutil
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.picture import Picture, UnreadableVideo
from data.video import Video, recompressed, write_video

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
        return [picture.rgb for picture in video.pictures()]


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


def with_cover(path: Path) -> None:
    """Put a JPEG into an mp4 as its cover, before its tracks, where FFmpeg takes it for the first video stream."""

    def box(name: bytes, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return struct.pack(">I4s", 8 + len(content), name) + content

    jpeg = bytes(cv2.imencode(".jpg", quadrants())[1])
    cover = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 13, 0), jpeg)))
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    added = box(b"udta", box(b"meta", bytes(4), handler, cover))
    content = path.read_bytes()
    moov, track = content.index(b"moov") - 4, content.index(b"trak") - 4
    assert content.index(b"mdat") < moov  # else the frames would move
    (size,) = struct.unpack_from(">I", content, moov)
    longer = struct.pack(">I", size + len(added))
    path.write_bytes(content[:moov] + longer + content[moov + 4 : track] + added + content[track:])


def encode(
    path: Path,
    frames: list[NDArray[np.uint8]],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> None:
    """Encode frames with any of FFmpeg's encoders; ``times`` are in milliseconds. Skips the test if there is none."""
    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"PyAV was built without {codec}")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for n, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[n], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


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


def textured(count: int) -> list[NDArray[np.uint8]]:
    """Pictures, uint8 [32, 48, 3], no two of which are alike."""
    rng = np.random.default_rng(0)
    base = rng.integers(60, 180, (32, 48 + count, 3)).astype(np.uint8)
    return [np.roll(base[:, n : n + 48], n % 5, axis=0) + np.uint8(n % 60) for n in range(count)]


LENGTH = 150
VARIABLE = np.cumsum(np.random.default_rng(1).integers(5, 80, LENGTH)).tolist()
"""Milliseconds."""
B_FRAMES = {"bf": "3", "g": "12", "threads": "1", "preset": "ultrafast"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=15:min-keyint=15:bframes=3:b-adapt=0:scenecut=0:threads=1"}
WEBM = {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5", "b": "200k"}
KINDS: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"options": B_FRAMES},
    "one-key.mp4": {"options": B_FRAMES | {"g": "1000", "sc_threshold": "0"}},
    "open-gop.mp4": {"options": OPEN_GOP},
    "open-gop.mkv": {"options": OPEN_GOP},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=20:bframes=0:threads=1"}},
    "variable.mp4": {"options": B_FRAMES, "times": VARIABLE},
    "variable.mkv": {"options": B_FRAMES, "times": VARIABLE},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "stream.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "stream.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "h264.ts": {"options": B_FRAMES},
    "h264.avi": {"options": B_FRAMES},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp8.webm": {"codec": "libvpx", "options": WEBM},
    "vp9.webm": {"codec": "libvpx-vp9", "options": WEBM},
}


def cut_before_second_key(source: Path, target: Path) -> None:
    """Copy the packets from the second key frame on: those that refer to what was cut off cannot be decoded."""

    def kept(packet: av.Packet) -> av.Packet | None:
        seen.append(packet.is_keyframe)
        return packet if sum(seen) > 1 else None

    seen: list[bool] = []
    copy(source, target, kept)


def hide_frames(source: Path, target: Path) -> None:
    """Copy a VP8 video and clear some packets' show_frame (RFC 6386, 9.1), as encoders do for golden frames."""

    def hidden(packet: av.Packet) -> av.Packet:
        content = bytearray(bytes(packet))
        if packet.pts % 200 == 120:
            content[0] &= ~0x10
        return changed_packet(packet, bytes(content))

    copy(source, target, hidden)


def changed_packet(packet: av.Packet, content: bytes) -> av.Packet:
    changed = av.Packet(content)
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    changed.is_keyframe = packet.is_keyframe
    return changed


def copy(source: Path, target: Path, change: Callable[[av.Packet], av.Packet | None]) -> None:
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(before.streams.video[0]):
            changed = change(packet) if packet.size else None
            if changed is not None:
                changed.stream = stream
                after.mux(changed)


def start_later(source: Path, target: Path) -> None:
    """Make an mp4's edit list begin 5 frames later (ISO/IEC 14496-12, 8.6.6): the first ones are not shown."""
    content = bytearray(source.read_bytes())
    at = content.index(b"elst") + 4 + 4 + 4 + 4
    (begin,) = struct.unpack(">i", content[at : at + 4])
    content[at : at + 4] = struct.pack(">i", begin + 5 * 12800 // 25)
    target.write_bytes(content)


SPOILED: dict[str, tuple[str, dict[str, Any], Callable[[Path, Path], None], int]] = {
    "begins-open.mkv": ("whole.mkv", {"options": OPEN_GOP}, cut_before_second_key, LENGTH - 15),
    "hidden-frames.webm": ("whole.webm", {"codec": "libvpx", "options": {"g": "30"}}, hide_frames, LENGTH - 30),
    "edit-list.mp4": ("whole.mp4", {"options": B_FRAMES}, start_later, LENGTH - 5),
}


def seekable(folder: Path, kind: str) -> tuple[Path, int]:
    """Make a video of a kind, and say how many frames of it are shown (-1 where it depends on the encoder)."""
    if kind in KINDS:
        encode(folder / kind, textured(LENGTH), **KINDS[kind])
        return folder / kind, LENGTH
    whole, options, spoil, count = SPOILED[kind]
    encode(folder / whole, textured(LENGTH), **options)
    spoil(folder / whole, folder / kind)
    return folder / kind, count


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


def test_a_far_start_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    class Counted(Picture):
        def __init__(self, frame: av.VideoFrame, *rest: Any) -> None:
            decoded.append(frame.pts)
            super().__init__(frame, *rest)

    monkeypatch.setattr("data.video.Picture", Counted)
    encode(tmp_path / "a.mp4", textured(LENGTH), options=B_FRAMES)
    with Video(tmp_path / "a.mp4") as video:
        assert video.count() == LENGTH
        next(video.pictures(143))
    assert len(decoded) <= 1 + 12


def test_a_broken_stream_counts_what_lies_before_the_break(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", textured(60), options={"g": "1", "threads": "1"})
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
    with Video(tmp_path / "a.mkv") as video:
        count, read = video.count(), len(list(video.pictures()))
    assert 20 < read < 40
    assert count - read in (0, 1)


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
