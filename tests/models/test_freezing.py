"""Frozen and trained parts of a backbone."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from models.detector import create_backbone
from models.freezing import freeze
from stage import StageError


@pytest.mark.parametrize("unfreeze", ["0", "1", "3", "all"])
@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_dinov2"])
def test_parts_together_are_the_whole(name, unfreeze):
    torch.manual_seed(0)
    backbone = create_backbone(name, 64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        whole = backbone(pictures)
        frozen, trained = freeze(backbone, unfreeze)
        torch.testing.assert_close(trained(frozen(pictures)), whole)


def test_only_the_last_blocks_train():
    backbone = create_backbone("test_vit", 64)
    freeze(backbone, "2")
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad and "blocks" in name}
    assert trained == {str(len(backbone.blocks) - 2), str(len(backbone.blocks) - 1)}
    assert not backbone.patch_embed.proj.weight.requires_grad


@pytest.mark.parametrize(("pool", "after"), [("token", {"norm"}), ("avg", {"fc_norm"}), ("map", {"norm", "attn_pool"})])
def test_what_comes_after_the_last_block_trains_with_it(pool, after):
    """A norm lies before or after pooling, which may be learned."""
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 0}
    backbone = VisionTransformer(**shape, global_pool=pool)
    freeze(backbone, "1")
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"blocks", *after}


@pytest.mark.parametrize(
    ("name", "unfreeze", "message"),
    [
        ("test_byobnet", "1", "last blocks of a ByobNet cannot be trained alone; use --unfreeze 0"),
        ("test_vit", "99", "--unfreeze 99: the backbone has"),
        ("test_vit", "some", "--unfreeze 'some': give a number"),
    ],
)
def test_what_cannot_be_frozen_is_said(name, unfreeze, message):
    with pytest.raises(StageError, match=message):
        freeze(create_backbone(name, 64), unfreeze)
