"""Detectors: backbones and heads."""

import pytest
import timm
import torch

from models.detector import Architecture, Detector, check_backbone, gelus, replace_gelus
from stage import StageError


def test_head_of_a_teacher_is_linear_relu_dropout_linear():
    head = Detector(Architecture(backbone="test_byobnet", size=64, head_hidden=32)).head
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Dropout", "Linear"]


def test_transformer_is_made_for_the_size_of_the_crops():
    detector = Detector(Architecture(backbone="test_vit", size=64)).eval()
    assert detector(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_unknown_backbone_names_near_ones():
    with pytest.raises(StageError, match=r"timm has no backbone 'repvit_m9'; some that it has: .*repvit_m0_9"):
        check_backbone("repvit_m9")


def test_a_backbone_may_name_the_tag_of_its_weights():
    tagged = Architecture(backbone="vit_base_patch16_224.orig_in21k", size=64)
    assert tagged.network == "vit_base_patch16_224"
    with pytest.raises(StageError, match=r"timm has no backbone 'vit_base_patch16_224.mine'; some that it has: "):
        check_backbone("vit_base_patch16_224.mine")


def test_hub_address_is_not_a_backbone():
    with pytest.raises(ValueError, match="timm has no backbone 'hf_hub:someone/evil'"):
        Architecture(backbone="hf_hub:someone/evil", size=64)


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_maxvit", "repvit_m0_9"])
def test_every_gelu_is_found_and_none_is_left(backbone):
    network = timm.create_model(backbone, num_classes=0).eval()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = [name for name, module in network.named_modules() if "GELU" in type(module).__name__]
    assert gelus(network) == before != []
    replace_gelus(network)
    assert not any("GELU" in type(module).__name__ for module in network.modules())
    assert [type(network.get_submodule(name)).__name__ for name in before] == ["ReLU"] * len(before)
    after = network.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in after)


def test_an_architecture_without_gelus_is_built_without_them():
    detector = Detector(Architecture(backbone="test_vit", size=64, activation="relu"))
    assert gelus(detector.backbone) == []
    assert len(gelus(Detector(Architecture(backbone="test_vit", size=64)).backbone)) == 6


def test_a_network_without_pooled_embeddings_is_refused():
    architecture = Architecture(backbone="test_byobnet", size=64)
    with pytest.raises(StageError, match="test_byobnet gives no embedding of a picture, but maps or several outputs"):
        Detector(architecture, torch.nn.Conv2d(3, 4, 3))
