"""Photos against the pixels that Pillow, OpenCV and numpy put into them, and files that are none."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.photo import Photo
from data.picture import UnreadableVideo
from tests.data.videos import what_is_no_file

ORIENTATION = 0x0112
TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}
"""What puts a stored picture upright, by its orientation (EXIF 2.32, table 6)."""


def colours(height: int = 33, width: int = 51) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def read(path: Path) -> NDArray[np.uint8]:
    with Photo(path) as photo:
        (picture,) = photo.pictures()
        assert (photo.info.height, photo.info.width) == picture.size == picture.rgb.shape[:2]
        assert photo.info.fps == 0.0
        return picture.rgb


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("size", [(33, 51), (1, 1), (64, 48)])
def test_lossless_pixels_are_those_that_were_written(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    Image.fromarray(colours(*size)).save(tmp_path / f"a.{suffix}", lossless=True)
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), colours(*size))


def test_jpeg_is_decoded_as_by_opencv(tmp_path: Path, astronaut: NDArray[np.uint8]) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), astronaut[:333, :251, ::-1])
    by_opencv = cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1]
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - by_opencv).max() <= 2


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_puts_a_photo_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(colours()).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        stored = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_COLOR)
        stored = colours() if suffix != "jpg" else stored[..., ::-1]
        by_pillow = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), by_pillow)
    assert np.abs(by_pillow.astype(int) - TURNS[orientation](stored)).max() <= 2


def test_a_transparent_photo_keeps_its_colours(tmp_path: Path) -> None:
    alpha = np.arange(33 * 51).reshape(33, 51, 1).astype(np.uint8)
    Image.fromarray(np.concatenate([colours(), alpha], axis=-1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), colours())


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    palette, numbers = colours(1, 256)[0], colours()[..., 0]
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png", transparency=3)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), palette[numbers])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_fills_all_channels(tmp_path: Path, suffix: str) -> None:
    grey = colours()[..., 0]
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_8(tmp_path: Path, suffix: str, channels: int) -> None:
    wide = np.random.default_rng(0).integers(0, 1 << 16, (33, 51, channels)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), wide[..., ::-1])
    expected = np.broadcast_to(wide / 257, (33, 51, 3))
    assert np.abs(read(tmp_path / f"a.{suffix}") - expected).max() <= 1


def test_numbers_without_a_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((33, 51), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableVideo, match=r"a\.tif cannot be read as a photo: its pixels are 32-bit .*mode F"):
        Photo(tmp_path / "a.tif")


def test_a_photo_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.png")
    photo = Photo(tmp_path / "a.png")
    assert (photo.count(), photo.position) == (1, 0)
    assert len(list(photo.pictures())) == 1
    assert photo.position == 1
    assert not list(photo.pictures())
    assert not list(Photo(tmp_path / "a.png").pictures(1))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot identify image file"), (b"only text\n" * 100, "cannot identify"), (bytes(5000), "cannot identify")],
    ids=["empty", "text", "zeros"],
)
def test_file_that_is_no_photo_is_unreadable(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableVideo, match=rf"a\.jpg cannot be read as a photo: {reason}"):
        Photo(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_a_photo_cut_short_is_unreadable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colours()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableVideo, match=rf"a\.{suffix} cannot be read as a photo: ."):
        Photo(path)


def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    for name, reason in what_is_no_file(tmp_path, "jpg").items():
        with pytest.raises(UnreadableVideo, match=f"{name} cannot be read as a photo: {reason}"):
            Photo(tmp_path / name)


def test_a_small_file_that_claims_to_be_huge_is_unreadable(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + bytes(13))
    with pytest.raises(UnreadableVideo, match=r"a\.png cannot be read as a photo: Image size \(400000000 pixels\)"):
        Photo(tmp_path / "a.png")


def test_a_playlist_or_another_format_named_like_a_photo_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.jpg", format="gif")
    (tmp_path / "b.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(UnreadableVideo, match=rf"{name} cannot be read as a photo: cannot identify"):
            Photo(tmp_path / name)


def test_a_whole_photo_with_broken_exif_data_is_read(astronaut: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(astronaut[:64, :64]).save(
        tmp_path / "a.jpg", dpi=(72, 72), exif=b"Exif\0\0junk that is no TIFF header"
    )
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    with Photo(tmp_path / "a.jpg") as photo:
        np.testing.assert_array_equal(next(photo.pictures()).rgb, expected)
