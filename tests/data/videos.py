"""Videos that tests write: pictures, encoders, and what is done to a coded stream."""

import base64
import os
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.video import Video

UPRIGHT = (1, 0, 0, 1)
"""A display matrix that turns nothing."""
_PHOTO_IN_TILES = (
    r"c-n1|ze__g5XUcxKQdIUqEJMN)x{r^o0A0XBIsY>;`9Az51KYSA5u3<Hzy}&X9snZZf^b?T?N5OIw<v$zE`F7$mMdMe3O@V2LOdAxilK19U!w&"
    r"qZa|Nt_~9q23D#DwK!daK|g^J%VXdXWB>}TC_lnl!>0_&3WUYhILlTr4?JZHf7nntjFS8qu^zchkS|dZa;qRs^}=`0{)K!Tx^tBn1G}6xnCRhU"
    r"T{N+w_>9JHP;AoK112oGaiZb}e0}$N0CVD$ZZ9a7WBtAr2&)iw6gymbw7I>{*vQV^YHRZL?Qrv<&X;r2qE|afbw>K>GJA=i))aka5zkGS{<2Cv"
    r"Z?K8(p;F3!G`7qoG&<`M6;HId0PbeNC)xy8Fb<=vM*->z$@rj5u%%tkU}l3oPVJstf8KZA*Z0Q255I+0Py"
)
"""A grey HEIC photo of 128 x 64 pixels in two tiles, as phones write them, by libheif: zlib, base85."""


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


def write_photo_in_tiles(path: Path) -> None:
    path.write_bytes(zlib.decompress(base64.b85decode(_PHOTO_IN_TILES)))


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
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "12", "b": "2M"}},
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


def what_is_no_file(folder: Path, suffix: str) -> dict[str, str]:
    """Put into a folder what a file can be mistaken for; return the reason that each is none, by its name."""
    (folder / f"folder.{suffix}").mkdir()
    os.mkfifo(folder / f"pipe.{suffix}")
    (folder / f"link.{suffix}").symlink_to(folder / f"nowhere.{suffix}")
    reasons = dict.fromkeys(("folder", "pipe"), "it is not a file")
    reasons |= dict.fromkeys(("link", "missing"), "No such file or directory")
    return {f"{name}.{suffix}": reason for name, reason in reasons.items()}
