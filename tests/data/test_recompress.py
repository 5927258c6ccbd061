"""Recompressed pictures against Pillow's JPEG, H.264's own distortion, and a depth network called by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.depth import DepthAnything, depth_pictures
from data.recompress import RecompressedStore, Recompression, depth_of, parse_recompressions
from data.store import ClipStore
from files import sha256_of
from stage import StageError


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.fixture(scope="module")
def with_depth(demo_store: Path, tiny_depth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``demo_store`` that says it holds depth made with ``tiny_depth``."""
    out = tmp_path_factory.mktemp("stores") / "depth"
    shutil.copytree(demo_store, out)
    info = json.loads((out / "store.json").read_text())
    made = {
        "source": "folder",
        "name": "tiny",
        "licence": "none",
        "sha256": sha256_of(tiny_depth / "model.safetensors"),
    }
    info["settings"] |= {"modalities": ["rgb", "depth"], "depth": made}
    (out / "store.json").write_text(json.dumps(info))
    return out


@pytest.mark.parametrize(
    ("text", "names"),
    [("h264:23,40", ["h264-23", "h264-40"]), ("jpeg:50", ["jpeg-50"]), ("h264:0,51,0", ["h264-0", "h264-51"])],
)
def test_levels_are_parsed_in_their_order_each_once(text: str, names: list[str]) -> None:
    assert [str(entry) for entry in parse_recompressions(text)] == names


@pytest.mark.parametrize(
    "text", ["", "h264", "h264:", "h264:52", "jpeg:0", "jpeg:101", "jpeg:50,", "vp9:30", "h264:-1"]
)
def test_other_spellings_are_one_line_with_the_legal_forms(text: str) -> None:
    with pytest.raises(StageError) as refused:
        parse_recompressions(text)
    assert str(refused.value) == (
        f"--recompress {text!r}: give h264:CRF of 0 to 51 or jpeg:QUALITY of 1 to 100, several with commas, "
        "as h264:23,40 or jpeg:50"
    )


def test_jpeg_is_pillow_s_at_the_same_quality(real_crops: NDArray[np.uint8], tmp_path: Path) -> None:
    made = Recompression("jpeg", 50).apply(real_crops[:2])
    for crop, mine in zip(real_crops[:2], made, strict=True):
        Image.fromarray(crop).save(tmp_path / "crop.jpg", quality=50, subsampling=2)
        its = np.asarray(Image.open(tmp_path / "crop.jpg"))
        assert np.abs(mine.astype(int) - its).mean() < 0.5 < np.abs(crop.astype(int) - its).mean()
    assert psnr(real_crops[:2], Recompression("jpeg", 95).apply(real_crops[:2])) > psnr(real_crops[:2], made) + 3


@pytest.mark.parametrize("side", [64, 63])
def test_h264_keeps_frames_apart_and_loses_more_at_a_higher_factor(real_crops: NDArray[np.uint8], side: int) -> None:
    crops = np.ascontiguousarray(real_crops[:4, :side, :side])
    light, heavy = (Recompression("h264", level).apply(crops) for level in (10, 45))
    assert light.shape == heavy.shape == crops.shape
    assert psnr(crops, light) > 33 > psnr(crops, heavy) + 5
    assert Recompression("h264", 23).apply(crops[:1]).shape == (1, side, side, 3)


def test_frames_are_those_of_the_whole_compressed_clip(opened_store: ClipStore) -> None:
    source = RecompressedStore(opened_store, Recompression("h264", 40))
    assert source.frames == 4
    for clip in opened_store.clips("val")[:2]:
        expected = Recompression("h264", 40).apply(opened_store.pixels(clip))
        np.testing.assert_array_equal(source.pixels(clip), expected)
        np.testing.assert_array_equal(source.pixels(clip, [3, 1]), expected[[3, 1]])


def test_depth_is_that_of_the_compressed_crops(with_depth: Path, tiny_depth: Path) -> None:
    store = ClipStore(with_depth)
    clip = store.clips("val")[0]
    source = RecompressedStore(store, Recompression("jpeg", 30), depth_of(store, tiny_depth))
    expected = depth_pictures(DepthAnything(folder=tiny_depth)(source.pixels(clip)), clip.valid)
    np.testing.assert_array_equal(source.pixels(clip, [2], "depth"), expected[[2]])
    assert expected.std() > 0


def test_depth_of_a_frame_that_is_not_valid_is_black_and_scales_no_other(opened_store: ClipStore) -> None:
    clip = replace(opened_store.clips("val")[0], valid=np.array([True, True, False, True]))
    depth = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 64, 64), np.float32)
    depth[2] = 1000.0
    source = RecompressedStore(opened_store, Recompression("jpeg", 50), lambda _: depth)
    assert source.pixels(clip, None, "depth")[:, 0, 0, 0].tolist() == [0, 85, 0, 255]  # of 0, 1, none and 3


def test_depth_needs_the_weights_that_made_it(
    with_depth: Path, opened_store: ClipStore, tiny_depth: Path, tmp_path: Path
) -> None:
    store = ClipStore(with_depth)
    with pytest.raises(StageError, match=r"was made with tiny \(SHA-256 \w{12}\): give that folder as --depth-weights"):
        depth_of(store, None)
    assert store.info.settings.depth is not None
    other = store.info.settings.depth.model_copy(update={"sha256": "0" * 64})
    store.info.settings = store.info.settings.model_copy(update={"depth": other})
    with pytest.raises(StageError, match=r"made with tiny \(SHA-256 0{12}\), and .*tiny holds others: give --depth-we"):
        depth_of(store, tiny_depth)
    with pytest.raises(StageError, match=r"holds no depth: prepare it with --modalities rgb,depth"):
        depth_of(opened_store, tiny_depth)


@pytest.mark.parametrize("modality", ["flow", "depth"])
def test_what_cannot_be_computed_from_compressed_crops_is_refused(opened_store: ClipStore, modality: str) -> None:
    source = RecompressedStore(opened_store, Recompression("jpeg", 50))
    with pytest.raises(StageError, match=f"{modality} cannot be computed from recompressed crops"):
        source.pixels(opened_store.clips("val")[0], None, modality)  # type: ignore[arg-type]
