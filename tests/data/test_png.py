"""PNG as other readers and writers have it: compared with Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.png import decode_png, encode_png
from stage import StageError


def by_pillow(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_are_lossless_for_other_readers_and_writers() -> None:
    rng = np.random.default_rng(0)
    for size in (16, 33, 224):
        crop = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
        np.testing.assert_array_equal(by_pillow(encode_png(crop)), crop)
        file = io.BytesIO()
        Image.fromarray(crop).save(file, "png")
        np.testing.assert_array_equal(decode_png(file.getvalue()), crop)


def test_a_damaged_picture_is_noticed() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    png = encode_png(crop)
    header = png[12:16] + struct.pack(">II", 40_000, 40_000) + png[24:29]
    huge = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    smaller = png[:16] + struct.pack(">II", 2**14, 2**14) + png[24:]  # which OpenCV would begin to decode
    for damaged in (b"", huge, smaller, png[: len(png) // 2], png[:3000] + bytes([png[3000] ^ 1]) + png[3001:]):
        with pytest.raises(StageError, match=r"^a picture is damaged$"):
            decode_png(damaged)
