"""Weights that do not fit, cannot be read safely or are missing: refused by name, and nothing falls back to random."""

import functools
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.detector import create_backbone
from models.weights import backbone_with_weights, read_state
from stage import StageError
from tests.models.drawn_states import drawn_state


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path):
    state = drawn_state() | {"head.bias": torch.full((2,), float("nan"))}  # which no detector has
    save_file(state, tmp_path / "head.safetensors")
    backbone_with_weights("test_vit", 64, tmp_path / "head.safetensors", random=False)
    state["norm.weight"] = torch.full((64,), float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(StageError, match=r"nan.safetensors holds values that are not numbers: norm.weight$"):
        backbone_with_weights("test_vit", 64, tmp_path / "nan.safetensors", random=False)


def test_missing_tensors_are_counted_and_named(tmp_path):
    state = drawn_state()
    gone = [key for key in state if "blocks.2.attn" in key]
    save_file({key: tensor for key, tensor in state.items() if key not in gone}, tmp_path / "part.pth.safetensors")
    message = (
        rf"does not fit test_vit: 4 of {len(state)} tensors missing \({', '.join(gone[:3])}, \.\.\.\); give weights"
    )
    with pytest.raises(StageError, match=message):
        backbone_with_weights("test_vit", 64, tmp_path / "part.pth.safetensors", random=False)


def test_missing_tensors_that_start_as_zeros_or_ones_are_noticed(tmp_path):
    state = drawn_state()
    del state["norm.bias"], state["norm.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(StageError, match=r"2 of \d+ tensors missing \(norm.weight, norm.bias\)"):
        backbone_with_weights("test_vit", 64, tmp_path / "part.safetensors", random=False)


def test_tensors_of_another_shape_are_counted_and_shown(tmp_path):
    state = drawn_state()
    state["norm.weight"], state["blocks.0.mlp.fc1.bias"] = torch.ones(32), torch.ones(7)
    save_file(state, tmp_path / "wide.safetensors")
    message = (
        r"does not fit test_vit: 2 of \d+ tensors of another shape "
        r"\(blocks.0.mlp.fc1.bias: \[7\] in the file, \[192\] expected, "
        r"norm.weight: \[32\] in the file, \[64\] expected\); give"
    )
    with pytest.raises(StageError, match=message):
        backbone_with_weights("test_vit", 64, tmp_path / "wide.safetensors", random=False)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(drawn_state("test_byobnet"), tmp_path / "other.safetensors")
    message = r"other.safetensors does not fit test_vit: (\d+) of \1 tensors missing \(.*\); it has others \(stages"
    with pytest.raises(StageError, match=message):
        backbone_with_weights("test_vit", 64, tmp_path / "other.safetensors", random=False)


def test_torch_loads_as_ever_after_an_error(tmp_path):
    load = torch.nn.Module.load_state_dict
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StageError, match=r"other\.safetensors does not fit test_vit: "):
        backbone_with_weights("test_vit", 64, tmp_path / "other.safetensors", random=False)
    assert torch.nn.Module.load_state_dict is load


def test_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"has no model.safetensors and no pytorch_model.bin: give a folder with one"):
        backbone_with_weights("test_vit", 64, tmp_path, random=False)


def test_file_without_tensors_does_not_fetch_them_from_the_hub(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(StageError, match=r"empty.safetensors is not a state dict: expected names and tensors"):
        backbone_with_weights("test_vit", 64, tmp_path / "empty.safetensors", random=False)


def test_file_that_no_filter_of_timm_understands_is_refused(tmp_path):
    save_file({"encoder": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(StageError, match=r"odd.safetensors does not fit test_vit: .*; give weights of this backbone"):
        backbone_with_weights("test_vit", 64, tmp_path / "odd.safetensors", random=False)


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


def test_nothing_falls_back_to_random_weights():
    with pytest.raises(
        StageError,
        match=r"weights of repvit_m0_9 are not on this machine .* give --weights FILE, or --random-weights",
    ):
        backbone_with_weights("repvit_m0_9", 64, None, random=False)


def test_file_and_random_exclude_each_other(tmp_path):
    with pytest.raises(StageError, match="exclude each other"):
        backbone_with_weights("test_vit", 64, tmp_path / "x.pth", random=True)


def test_weights_of_another_size_that_timm_does_not_resample_name_a_mend(monkeypatch, tmp_path):
    small = functools.partial(create_backbone, depth=1, depth_token_only=1)
    monkeypatch.setattr("models.weights.create_backbone", small)
    save_file(small("cait_xxs24_224", 64).state_dict(), tmp_path / "cait.safetensors")
    with pytest.raises(StageError, match=r"pos_embed: .*prepare crops of the size that they were trained on, or give"):
        backbone_with_weights("cait_xxs24_224", 32, tmp_path / "cait.safetensors", random=False)


def test_a_file_of_numbered_tensors_is_no_state_dict(tmp_path):
    torch.save({0: torch.ones(2)}, tmp_path / "embeddings.pt")
    with pytest.raises(StageError, match=r"embeddings\.pt is not a state dict"):
        read_state(tmp_path / "embeddings.pt")
