"""Starting weights: from a file, from the hub, or at random when asked for."""

import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from models.detector import create_backbone
from models.weights import backbone_with_weights, read_state
from stage import StageError, sha256_of


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without network and with an empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_gives_its_weights(tmp_path, suffix):
    torch.manual_seed(1)
    source = create_backbone("test_vit", 64)
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(
        {"state_dict": source.state_dict()}, path
    )
    torch.manual_seed(2)
    loaded, weights = backbone_with_weights("test_vit", 64, path, random=False)
    pictures = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(pictures), source.eval()(pictures))
    assert (weights.source, weights.sha256) == ("file", sha256_of(path))


def test_positions_are_resampled_to_the_crops(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file(create_backbone("test_vit", 160).state_dict(), path)
    loaded, _ = backbone_with_weights("test_vit", 64, path, random=False)
    assert loaded(torch.zeros(1, 3, 64, 64)).shape[0] == 1


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(create_backbone("test_byobnet", 64).state_dict(), path)
    with pytest.raises(StageError, match=r"other.safetensors does not fit test_vit: \d+ of \d+ tensors missing"):
        backbone_with_weights("test_vit", 64, path, random=False)


class _Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_hostile_pickle_runs_nothing(tmp_path):
    path, mark = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(_Attack(mark)))
    with pytest.raises(StageError, match=r"evil.pth holds no weights that can be read safely"):
        read_state(path)
    assert not mark.exists()


@pytest.mark.parametrize(("name", "content"), [("a.safetensors", b"short"), ("b.pth", b""), ("c.pth", b"not a pickle")])
def test_damaged_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match="holds no weights that can be read safely"):
        read_state(tmp_path / name)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(StageError, match="is not a file: give the weights as"):
        read_state(tmp_path / "none.pth")


def test_nothing_falls_back_to_random_weights(offline):
    with pytest.raises(
        StageError, match=r"weights of repvit_m0_9 are not on this machine .* give --weights FILE, or --random"
    ):
        backbone_with_weights("repvit_m0_9", 64, None, random=False)


def test_random_weights_are_named_so():
    assert backbone_with_weights("test_vit", 64, None, random=True)[1].source == "random"


def test_file_and_random_exclude_each_other(tmp_path):
    with pytest.raises(StageError, match="exclude each other"):
        backbone_with_weights("test_vit", 64, tmp_path / "x.pth", random=True)
