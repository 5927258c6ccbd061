"""Spoiled files of every kind: each gets its row, its status and its reason, and none ends or hangs a run."""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from data.crops import CropRule
from data.layouts import Source
from data.modalities import Modalities
from data.parquet import RowWriter
from data.prepare_video import Recipe
from data.schemas import CLIP_SCHEMA, VIDEO_SCHEMA
from data.store import StoreSettings
from data.video import Video
from tests.data.commands import files, prepared

ROOT = Path(__file__).parents[2]
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
    import zlib

    png = photo(np.zeros((8, 8, 3), np.uint8), "PNG")
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


@pytest.fixture(scope="module")
def frames(demo_corpus: Path) -> Frames:
    """Five frames with a face, uint8 [180, 240, 3] RGB."""
    with Video(demo_corpus / "original_sequences/youtube/c23/videos/000.mp4") as video:
        pictures = [picture.rgb for picture, _ in zip(video.pictures(), range(5), strict=False)]
    return [np.asarray(Image.fromarray(picture).resize((240, 180))) for picture in pictures]


@pytest.fixture(scope="module")
def good(frames: Frames) -> dict[str, bytes]:
    """A good video of each of KINDS."""
    return {kind: encoded(frames, *how) for kind, how in KINDS.items()}


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


def fill(root: Path, contents: dict[str, tuple[bytes, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """Write files into real/ and fake/ in turn; return their names in the store and what may become of each."""
    expected = {}
    for number, (name, (content, statuses)) in enumerate(contents.items()):
        kind = ("real", "fake")[number % 2]
        (root / kind).mkdir(parents=True, exist_ok=True)
        (root / kind / name).write_bytes(content)
        expected[f"{kind}/{os.fsencode(name).decode('utf-8', 'backslashreplace')}"] = statuses
    return expected


def add_what_is_no_file(root: Path, content: bytes) -> dict[str, frozenset[str]]:
    (root / "real/folder.mp4").mkdir()
    (root / "real/folder.mp4/inside.mp4").write_bytes(content)
    (root / "real/nowhere.mp4").symlink_to("not there.mp4")
    (root / "real/itself.mp4").symlink_to("itself.mp4")
    (root / "real/parent.mp4").symlink_to("..")
    os.mkfifo(root / "real/pipe.mp4")
    names = {name: frozenset({"unreadable"}) for name in ("folder", "nowhere", "itself", "parent", "pipe")}
    if os.geteuid() != 0:
        (root / "real/locked.mp4").write_bytes(content)
        (root / "real/locked.mp4").chmod(0)
        names["locked"] = frozenset({"unreadable"})
    return {f"real/{name}.mp4": statuses for name, statuses in names.items()} | {
        "real/folder.mp4/inside.mp4": frozenset({"ok"})
    }


def run(folder: Path, out: Path, *options: str) -> str:
    """Prepare a folder and return what was printed."""
    line = [sys.executable, "-m", "data.prepare", str(folder), "--out", str(out), "--size=32", "--workers=2", *options]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def check_reasons(table: pd.DataFrame, *roots: Path) -> None:
    for row in table.to_dict("records"):
        if row["status"] != "ok":
            assert row["reason"].strip(), row["path"]
        assert row["reason"].splitlines() in ([], [row["reason"]]), row
        assert not any(str(root) in row["reason"] for root in roots), row


def check_statuses(table: pd.DataFrame, expected: dict[str, frozenset[str]]) -> None:
    assert table["path"].is_unique
    assert set(table["path"]) == set(expected)
    statuses = dict(zip(table["path"], table["status"], strict=True))
    reasons = dict(zip(table["path"], table["reason"], strict=True))
    wrong = {name: (statuses[name], reasons[name]) for name in expected if statuses[name] not in expected[name]}
    assert wrong == {}


@pytest.mark.parametrize("what", ["videos", "photos"])
def test_every_spoiled_file_has_its_row_its_status_and_its_reason(
    what: str, frames: Frames, good: dict[str, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    expected = fill(root, videos(frames, good) if what == "videos" else photos(frames))
    if what == "videos":
        expected |= add_what_is_no_file(root, good["mp4"])
    options = ["--frames=4"] if what == "videos" else ["--frames=1"]
    printed = run(root, tmp_path / "store", *options)
    table = pd.read_parquet(tmp_path / "store/videos.parquet")
    check_statuses(table, expected)
    check_reasons(table, tmp_path)
    line, *lacks = printed.splitlines()
    assert all(
        re.match(r"note: (The (val|test) split has \d+ real and \d+ fake clips, and teach and |\d+ (of|fakes) )", x)
        for x in lacks
    )
    assert re.match(rf"{re.escape(str(tmp_path / 'store'))}: {len(expected)} files \(\d+ ok, ", line)
    if what == "videos":
        moved = root.rename(tmp_path / "moved corpus")
        run(moved, tmp_path / "again", *options)
        assert files(tmp_path / "again") == files(tmp_path / "store")


def recipe() -> Recipe:
    settings = StoreSettings(
        frames=4, crop=CropRule(size=32), ratios=(0.0, 0.0, 1.0), seed=0, sources_sha256="", clips_per_video=2
    )
    return Recipe(settings.model_copy(update={"start": "spread"}), Modalities())


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_videos_always_give_a_row_and_clips_that_can_be_stored(
    kind: str, good: dict[str, bytes], tmp_path: Path
) -> None:
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    path = tmp_path / f"a.{kind.rpartition('.')[2]}"
    rows = []
    for turn in range(20):
        how = list(MUTATIONS)[turn % len(MUTATIONS)]
        path.write_bytes(MUTATIONS[how](good[kind], rng, int(rng.integers(1, 60))))
        row, clips = prepared(Source(path, f"real/{path.name}", 0, "real", ("a",)), "test", recipe())
        assert row["clips"] == len(clips)
        assert len(clips) > 0 if row["status"] == "ok" else row["reason"]
        with RowWriter(tmp_path / "clips.parquet", CLIP_SCHEMA) as file:
            for clip in clips:
                file.write(clip)
        rows.append(row)
    with RowWriter(tmp_path / "videos.parquet", VIDEO_SCHEMA) as file:
        file.write(*rows)
    table = pd.read_parquet(tmp_path / "videos.parquet")
    assert set(table["status"]) <= ANY
    check_reasons(table, tmp_path)
    shutil.rmtree(tmp_path)
