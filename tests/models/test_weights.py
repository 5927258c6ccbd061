"""Starting weights: from a file, from the hub, or at random when asked for."""

import argparse
import functools
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from files import sha256_of
from models.detector import create_backbone
from models.pixels import Preprocessing
from models.weights import backbone_with_weights, stated_preprocessing
from stage import StageError
from tests.models.drawn_states import drawn_state


@pytest.mark.parametrize(("suffix", "name"), [(".safetensors",) * 2, (".pth",) * 2, ("\udcff.pth", "\\xff.pth")])
def test_file_gives_its_weights(tmp_path, suffix, name):
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
    assert (weights.source, weights.name, weights.sha256) == ("file", f"weights{name}", sha256_of(path))


@pytest.mark.parametrize("meta_names", [False, True])
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_positions_of_dinov2_are_resampled_to_the_crops(monkeypatch, tmp_path, name, meta_names):
    """As 518 pixels to 224: 98 to 56, in timm's names and in those of the published files, one block in place of 12."""
    small = functools.partial(create_backbone, depth=1)
    monkeypatch.setattr("models.weights.create_backbone", small)
    source = small(name, 98)
    torch.nn.init.normal_(source.cls_token)
    state = source.state_dict()
    save_file(_as_published(state) if meta_names else state, tmp_path / "dinov2.safetensors")
    loaded, _ = backbone_with_weights(name, 56, tmp_path / "dinov2.safetensors", random=False)
    loaded_state = loaded.state_dict()
    prefix = state["pos_embed"].shape[1] - 49  # a position of the class token, where there are no registers
    grid = state["pos_embed"][:, prefix:].unflatten(1, (7, 7)).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(loaded_state.pop("pos_embed")[:, prefix:], resampled)
    torch.testing.assert_close(loaded_state, {key: state[key] for key in loaded_state})


def _as_published(state):
    """A DINOv2 checkpoint as Meta publishes it: a mask token, and registers beside a position of the class token."""
    published = state | {"mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        published["register_tokens"] = published.pop("reg_token")
        of_class = torch.ones(1, 1, 384)
        published["cls_token"] = state["cls_token"] - of_class
        published["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    return published


@pytest.mark.parametrize(
    ("wrapped", "taken"),
    [
        (
            lambda state, other: {
                "state_dict": other,
                "state_dict_ema": state,
                "epoch": 3,
                "args": argparse.Namespace(lr=0.1, gpus=[0]),
            },
            "state_dict_ema",
        ),
        (lambda state, other: {"model_ema": state, "epoch": 3}, "model_ema"),
        (lambda state, _: {"model": {f"module.{name}": tensor for name, tensor in state.items()}}, ""),
        (lambda state, _: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, ""),
    ],
)
def test_a_checkpoint_gives_what_timm_s_own_loader_takes_of_it(tmp_path, capfd, wrapped, taken):
    state = drawn_state()
    torch.save(wrapped(state, {name: tensor + 1 for name, tensor in state.items()}), tmp_path / "last.pth.tar")
    loaded, _ = backbone_with_weights("test_vit", 64, tmp_path / "last.pth.tar", random=False)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(state))
    expected = timm.models.load_state_dict(str(tmp_path / "last.pth.tar"))
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert capfd.readouterr().err.endswith(f"its averaged weights are taken ({taken})\n" if taken else "")


@pytest.mark.parametrize("averaged", [{}, {"decay": 0.99, "module": {"a": torch.zeros(1)}}])
def test_averaged_weights_in_a_form_of_their_own_are_left_alone(tmp_path, capfd, averaged):
    torch.save({"model": drawn_state(), "model_ema": averaged}, tmp_path / "last.pth")
    loaded, _ = backbone_with_weights("test_vit", 64, tmp_path / "last.pth", random=False)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(drawn_state()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["test_vit", "test_byobnet", "repvit_m0_9"])
def test_classifier_head_is_dropped_without_a_word(tmp_path, capfd, name):
    source = timm.create_model(name, num_classes=7)
    save_file(source.state_dict(), tmp_path / "classifier.safetensors")
    loaded, _ = backbone_with_weights(name, 160, tmp_path / "classifier.safetensors", random=False)
    state = loaded.state_dict()
    assert len(state) < len(source.state_dict())
    torch.testing.assert_close(state, {key: source.state_dict()[key] for key in state})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_dinov2"])
def test_tensors_that_are_not_used_are_said_in_one_line(monkeypatch, tmp_path, capfd, name):
    small = functools.partial(create_backbone, depth=1)
    monkeypatch.setattr("models.weights.create_backbone", small)
    state = small(name, 112).state_dict()
    extra = {f"decoder.{part}": torch.zeros(1) for part in "abcd"} | {"head.weight": torch.zeros(2)}
    save_file(state | extra, tmp_path / "more.safetensors")
    backbone_with_weights(name, 112, tmp_path / "more.safetensors", random=False)
    said = capfd.readouterr().err
    assert said.endswith(
        f"more.safetensors: 4 tensors that {name} does not have are not used (decoder.a, decoder.b, decoder.c, ...)\n"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize("kept", [["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]])
def test_folder_of_the_hub_gives_its_weights_and_licence(tmp_path, kept):
    folder = tmp_path / "tiny-vit"
    folder.mkdir()
    state = drawn_state()
    if "model.safetensors" in kept:
        save_file(state, folder / "model.safetensors")
    torch.save({"wrong": torch.zeros(1)} if len(kept) == 2 else state, folder / "pytorch_model.bin")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A card\n")
    loaded, weights = backbone_with_weights("test_vit", 64, folder, random=False)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(state))
    assert (weights.source, weights.name, weights.licence) == ("folder", "tiny-vit", "cc-by-nc-4.0")
    assert weights.sha256 == sha256_of(folder / kept[0])


def test_a_folder_states_what_its_weights_were_trained_on(tmp_path):
    assert stated_preprocessing(tmp_path, "test_vit") == Preprocessing.of("test_vit")
    config = tmp_path / "config.json"
    config.write_text('{"architecture": "test_vit", "model_type": "dinov2"}')
    assert stated_preprocessing(tmp_path, "test_vit") == Preprocessing.of("test_vit")
    config.write_text('{"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9}}')
    assert stated_preprocessing(tmp_path, "test_vit") == Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    for damaged in ("{", "[]", '{"pretrained_cfg": {"mean": [1], "std": [1, 2]}}', '{"pretrained_cfg": 3}'):
        config.write_text(damaged)
        with pytest.raises(StageError, match=r"config.json is damaged .*: download the folder again"):
            stated_preprocessing(tmp_path, "test_vit")


def test_random_weights_are_named_so():
    assert backbone_with_weights("test_vit", 64, None, random=True)[1].source == "random"


def test_the_normalization_of_a_file_is_said_where_it_depends_on_its_tag(tmp_path, capfd):
    file = tmp_path / "weights.safetensors"
    default = Preprocessing.of("vit_base_patch16_224")
    assert stated_preprocessing(file, "vit_base_patch16_224") == default
    said = capfd.readouterr().err
    assert f"{file}: its pixels are normalized with mean (0.5, 0.5, 0.5)" in said and "name theirs with its tag" in said
    tagged = stated_preprocessing(file, "vit_base_patch16_224.dino")
    assert tagged != default and tagged == Preprocessing.of("vit_base_patch16_224.dino")
    stated_preprocessing(file, "repvit_m0_9")
    assert capfd.readouterr().err == ""
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stated_preprocessing(file, "vit_base_patch16_224").mean == (0.1, 0.2, 0.3)
    assert stated_preprocessing(file, "repvit_m0_9") == Preprocessing.of("repvit_m0_9")  # the folder's is another's


@pytest.mark.parametrize(("lacking", "fits"), [("norm.weight", True), ("blocks.0.attn.qkv.weight", False)])
def test_the_hub_s_weights_may_lack_a_last_norm_and_nothing_else(monkeypatch, capfd, lacking, fits):
    """As ConvNeXt V2's of masked autoencoding do; timm loads them so."""
    state = drawn_state()
    del state[lacking]

    def from_hub(name, size, **pretrained):
        made = create_backbone(name, size)
        made.load_state_dict(state, strict=False)
        return made

    monkeypatch.setattr("models.weights.create_backbone", from_hub)
    monkeypatch.setattr("models.weights._hub_reachable", lambda repository: True)
    if fits:
        backbone_with_weights("test_vit", 64, None, random=False)
        assert "test_vit: 1 tensors are not in its weights, and start as timm makes them: norm.weight" in (
            capfd.readouterr().err
        )
    else:
        with pytest.raises(StageError, match=r"the weights of test_vit do not fit .*1 of \d+ tensors missing"):
            backbone_with_weights("test_vit", 64, None, random=False)
