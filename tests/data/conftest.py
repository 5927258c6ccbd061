"""What tests of several modules of data share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a Depth Anything network of 4 layers and weights drawn at random. Read only."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    layers = [1, 2, 3, 4]
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    backbone = Dinov2Config(**shape, out_indices=layers, apply_layernorm=True, reshape_hidden_states=False)
    neck = {"reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
    network = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **neck))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    path = tmp_path_factory.mktemp("depth") / "tiny"
    network.save_pretrained(path)
    size = {"height": 56, "width": 56}
    processor = DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True, image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(path)
    return path
