"""Videos and photos that are spoiled in every way, and good ones of every kind beside them."""

import io
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

Frames = Sequence[NDArray[np.uint8]]
ANY = frozenset({"ok", "no_face", "too_short", "unreadable"})
KINDS = {
    "mp4": ("mp4", "libx264", "yuv420p", {}),
    "faststart.mp4": ("mp4", "libx264", "yuv420p", {"movflags": "+faststart"}),
    "fragmented.mp4": ("mp4", "libx264", "yuv420p", {"movflags": "frag_every_frame+empty_moov"}),
    "mov": ("mov", "mpeg4", "yuv420p", {}),
    "mkv": ("matroska", "libx264", "yuv420p", {}),
    "avi": ("avi", "mpeg4", "yuv420p", {}),
    "webm": ("webm", "libvpx", "yuv420p", {}),
    "lossless.mkv": ("matroska", "ffv1", "yuv444p", {}),
    "intra.avi": ("avi", "mjpeg", "yuvj420p", {}),
}
"""A small good video of each kind: container, codec, pixel format, options of the container."""


def encoded(
    frames: Frames,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: int = 0,
) -> bytes:
    """Encode frames; ``times`` are their presentation times in 1/25 s, ``rotation`` is told in the metadata."""
    with tempfile.NamedTemporaryFile() as file:  # a file, because "faststart" reads what it has written
        with av.open(file.name, "w", format=container, options=options or {}) as out:
            stream: Any = out.add_stream(codec, rate=25)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt, stream.thread_count = pix_fmt, 1
            if rotation:
                stream.set_display_rotation(rotation)
            for number, pixels in enumerate(frames):
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts = times[number] if times else number
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def sound() -> bytes:
    """Return half a second of silence in an mp4 without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=16000, layout="mono")
        for number in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, 1024 * number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def without_frames() -> bytes:
    """Return a whole mp4 whose video stream has no frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        out.start_encoding()
    return file.getvalue()


def flipped(data: bytes, rng: np.random.Generator, count: int = 40) -> bytes:
    spoiled = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(data), count)
    spoiled[places] ^= rng.integers(1, 256, count, np.uint8)
    return spoiled.tobytes()


def cut(data: bytes, rng: np.random.Generator, count: int = 0) -> bytes:
    return data[: int(rng.integers(1, len(data)))]


def stuffed(data: bytes, rng: np.random.Generator, count: int = 0) -> bytes:
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(int(rng.integers(1, 300))) + data[place:]


def hole(data: bytes, rng: np.random.Generator, count: int = 0) -> bytes:
    start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 2000))
    return data[:start] + data[start + length :]


MUTATIONS: dict[str, Callable[[bytes, np.random.Generator, int], bytes]] = {
    "flipped": flipped,
    "cut": cut,
    "stuffed": stuffed,
    "hole": hole,
}


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.mp4", b"not even in here" * 40)
    return file.getvalue()


def photo(pixels: NDArray[np.uint8], form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """Return a small PNG whose header claims a size, with the checksum that belongs to it."""
    png = photo(np.zeros((8, 8, 3), np.uint8), "PNG")
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def videos(frames: Frames, good: dict[str, bytes]) -> dict[str, tuple[bytes, frozenset[str]]]:
    """Return the content of files and what may become of them."""
    ok, unreadable, short = frozenset({"ok"}), frozenset({"unreadable"}), frozenset({"too_short"})
    rng = np.random.default_rng(3)
    odd = frames[0][:47, :35]
    wide = [np.asarray(Image.fromarray(frame).resize((320, 240))) for frame in frames]
    table: dict[str, tuple[bytes, frozenset[str]]] = {
        "empty.mp4": (b"", unreadable),
        "noise.mp4": (rng.bytes(5000), unreadable),
        "noise.avi": (rng.bytes(5000), unreadable),
        "text.mov": (b"this is no video\n" * 100, unreadable),
        "page.webm": (b"<!DOCTYPE html><html><body>404: not found</body></html>\n", unreadable),
        "archive.mkv": (zipped(), unreadable),
        "playlist.mp4": (b"ffconcat version 1.0\nfile 'good mp4.mp4'\n", unreadable),
        "sound.mp4": (sound(), unreadable),
        "no-frame.mp4": (without_frames(), unreadable),
        "one-frame.mp4": (encoded(frames[:1]), short),
        "one-frame.avi": (encoded(frames[:1], "avi", "mpeg4"), short),
        "35x47.mkv": (encoded([odd] * 5, "matroska", "ffv1", "yuv444p"), ANY - unreadable),
        "35x47.avi": (encoded([odd] * 5, "avi", "rawvideo", "yuv420p"), ANY - unreadable),
        "2x2.mp4": (encoded([frames[0][:2, :2]] * 5), frozenset({"no_face"})),
        "1x1.mkv": (encoded([frames[0][:1, :1]] * 5, "matroska", "ffv1", "yuv444p"), frozenset({"no_face"})),
        "1x1.avi": (encoded([frames[0][:1, :1]] * 5, "avi", "rawvideo", "bgr24"), frozenset({"no_face"})),
        "1x200.mkv": (encoded([frames[0][:1, :200]] * 5, "matroska", "ffv1", "yuv444p"), frozenset({"no_face"})),
        "rotated.mp4": (encoded([np.rot90(frame) for frame in frames], rotation=-90), ANY - unreadable),
        "irregular.mp4": (encoded(frames, times=[0, 1, 7, 8, 40]), ok),
        "alpha.mov": (encoded(frames, "mov", "qtrle", "argb"), ok),
        "ten-bit.mp4": (encoded(frames, pix_fmt="yuv420p10le"), ok),
        "sixteen-bit.mkv": (encoded(frames, "matroska", "ffv1", "gray16le"), ok),
        "few colours.avi": (encoded(frames, "avi", "rawvideo", "rgb555le"), ok),
        "grown.mp4": (encoded(frames[:3], "mpegts") + encoded(wide, "mpegts"), ok),
        "shrunk.mp4": (encoded(wide, "mpegts") + encoded(frames, "mpegts"), ok),
        "always-other.mp4": (encoded(wide[:2], "mpegts") + encoded(frames[:2], "mpegts"), short),
        "named-wrongly.avi": (good["webm"], ok),
        f"{'long ' * 39}.mp4": (good["mp4"], ok),
        "-dash.mp4": (good["mp4"], ok),
        "concat:a|b.mp4": (good["mp4"], ok),
        "--out=elsewhere.mp4": (good["mp4"], ok),
        "%d {0} $HOME 'quoted\" \\ back.mp4": (good["mp4"], ok),
        "http:colon.mp4": (b"spoiled", unreadable),
        "new\nline.mp4": (good["mp4"], ok),
        "spoiled new\nline.mp4": (b"spoiled", unreadable),
        "spoiled \udcff\udc80.mp4": (b"spoiled", unreadable),
    }
    for kind, data in good.items():
        suffix = kind.rpartition(".")[2]
        table[f"good {kind}.{suffix}"] = (data, ok)
        table[f"cut {kind}.{suffix}"] = (cut(data, rng), ANY)
        table[f"flipped {kind}.{suffix}"] = (flipped(data, rng), ANY)
    return table


def photos(frames: Frames) -> dict[str, tuple[bytes, frozenset[str]]]:
    ok, unreadable = frozenset({"ok"}), frozenset({"unreadable"})
    jpeg, png = photo(frames[0], "JPEG"), photo(frames[0], "PNG")
    rng = np.random.default_rng(4)
    table: dict[str, tuple[bytes, frozenset[str]]] = {
        "good.jpg": (jpeg, ok),
        "a png.jpg": (png, ok),
        "a jpeg.PNG": (jpeg, ok),
        "empty.jpg": (b"", unreadable),
        "text.png": (b"this is no photo\n" * 50, unreadable),
        "a video.jpg": (encoded(frames[:2]), unreadable),
        "huge.png": (claiming(60000, 60000), unreadable),
        "large.png": (claiming(12000, 8000), unreadable),
        "none.png": (claiming(0, 8), unreadable),
        "1x1.png": (photo(frames[0][:1, :1], "PNG"), frozenset({"no_face"})),
        "spoiled new\nline.jpg": (b"spoiled", unreadable),
        "spoiled 'quoted\" \udcff.jpg": (b"spoiled", unreadable),
    }
    for form, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp")):
        data = photo(frames[0], form)
        table[f"good {form}.{suffix}"] = (data, ok)
        table[f"cut {form}.{suffix}"] = (data[: len(data) // 2], unreadable)
        table[f"flipped {form}.{suffix}"] = (flipped(data, rng, 20), ANY)
    return table
