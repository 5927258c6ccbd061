"""Depth against the pipeline of transformers, on a small Depth Anything network."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from numpy.typing import NDArray

from data.depth import SIZES, DepthAnything, depth_pictures
from files import sha256_of
from stage import StageError


@pytest.fixture(scope="module")
def folder(tiny_depth: Path) -> Path:
    """The folder of the network."""
    return tiny_depth


@pytest.fixture(scope="module")
def depth_of(folder: Path) -> DepthAnything:
    """The network of ``folder``."""
    return DepthAnything(folder=folder)


@pytest.fixture(scope="module")
def crops(astronaut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crops of a photo, uint8 [11, 96, 96, 3]: more than a batch, and no multiple of one."""
    return np.stack([astronaut[y : y + 96, 3 * y : 3 * y + 96] for y in range(40, 95, 5)])


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of ``folder`` to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty cache of the hub on a machine without network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_depth_is_that_of_the_pipeline_of_transformers(depth_of, folder, crops):
    from PIL import Image
    from transformers import pipeline

    oracle = pipeline("depth-estimation", model=str(folder), device="cpu")
    expected = np.stack([oracle(Image.fromarray(crop))["predicted_depth"].numpy() for crop in crops])
    depth = depth_of(crops)
    assert depth.shape == (11, 96, 96)
    assert depth.dtype == np.float32
    assert expected.std() > 0.1 * expected.mean() > 0
    np.testing.assert_allclose(depth, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_batch_is_as_good_as_one_at_a_time(depth_of, crops):
    alone = np.concatenate([depth_of(crop[None]) for crop in crops])
    np.testing.assert_allclose(depth_of(crops), alone, rtol=1e-4, atol=1e-4 * alone.max())


def test_weights_of_a_folder_are_recorded(depth_of, folder):
    weights = depth_of.weights
    assert (weights.source, weights.name) == ("folder", "tiny")
    assert weights.sha256 == sha256_of(folder / "model.safetensors")
    assert weights.licence == "unknown (no model card beside the weights)"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-nc-4.0\ntags:\n- depth\n---\n# Card\nlicense: mit\n", "cc-by-nc-4.0"),
        ("---\ntags: [depth]\n---\nlicense: mit\n", "unknown (the model card names none)"),
        ("# Card\nlicense: mit\n", "unknown (the model card names none)"),
    ],
)
def test_licence_is_read_from_the_model_card(copy, card, licence):
    (copy / "README.md").write_text(card)
    assert DepthAnything(folder=copy).weights.licence == licence


def test_damaged_model_card_is_named(copy):
    (copy / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(StageError, match=r"README\.md cannot be read as a model card: .*; mend or remove it"):
        DepthAnything(folder=copy)


def test_weights_come_from_the_cache_of_the_hub_without_network(cache, folder, depth_of, crops):
    repository = cache / "models--depth-anything--Depth-Anything-V2-Small-hf"
    commit = "0123456789012345678901234567890123456789"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    small = DepthAnything("small")
    assert (small.weights.source, small.weights.name) == ("hub", "depth-anything/Depth-Anything-V2-Small-hf")
    assert (small.weights.licence, small.weights.sha256) == ("apache-2.0", depth_of.weights.sha256)
    np.testing.assert_array_equal(small(crops[:1]), depth_of(crops[:1]))


@pytest.mark.parametrize("size", SIZES)
def test_without_network_and_cache_the_message_tells_the_way_out(cache, size):
    message = (
        rf"weights of {SIZES[size].repository} are not on this machine .* give --depth-weights DIR, a .* with config"
    )
    with pytest.raises(StageError, match=message):
        DepthAnything(size)


def test_folder_without_its_files_is_refused(copy):
    with pytest.raises(StageError, match=r"none has no config\.json, no preprocessor_config\.json, no model\.saf"):
        DepthAnything(folder=copy / "none")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(
        StageError, match=r"no model\.safetensors \(pickled weights are not read\): give --depth-weights"
    ):
        DepthAnything(folder=copy)


def test_damaged_weights_are_refused(copy):
    whole = (copy / "model.safetensors").read_bytes()
    for damaged in (whole[:-100], b"no safetensors"):
        (copy / "model.safetensors").write_bytes(damaged)
        with pytest.raises(
            StageError, match=r"copy holds no depth network that can be read: .*header.*; give --depth-w"
        ):
            DepthAnything(folder=copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion_hidden_size": 16}, r"\d+ tensors that config.json needs are not in model.safetensors"),
        ({"depth_estimation_type": "metric"}, "does not describe relative depth on a DINOv2 backbone"),
        ({"backbone_config": {"model_type": "resnet"}}, "does not describe relative depth on a DINOv2 backbone"),
    ],
)
def test_network_of_another_kind_is_refused(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(StageError, match=message):
        DepthAnything(folder=copy)


def test_size_is_checked(tmp_path):
    with pytest.raises(StageError, match="--depth-size giant is not known: give one of small, base, large"):
        DepthAnything("giant")
    with pytest.raises(StageError, match="--depth-size and --depth-weights exclude each other"):
        DepthAnything("small", tmp_path)


def test_one_scale_spans_the_valid_frames_of_the_clip():
    depth = np.array([[[2, 4], [6, 8]], [[90, -90], [0, 0]], [[4, 12], [2, 7]]], np.float32)
    pictures = depth_pictures(depth, np.array([True, False, True]))
    expected = np.array([[[0, 51], [102, 153]], [[0, 0], [0, 0]], [[51, 255], [0, 128]]])  # 25.5 for each unit above 2
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, np.stack([expected] * 3, axis=-1))


def test_clip_without_extent_or_without_a_valid_frame_is_black():
    flat = np.full((2, 4, 4), 3.5, np.float32)
    rising = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    assert not depth_pictures(flat, np.array([True, True])).any()
    assert not depth_pictures(rising, np.array([False, False])).any()
