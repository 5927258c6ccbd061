"""State dicts of backbones whose weights are drawn at random."""

import torch
from torch import Tensor

from models.detector import create_backbone


def drawn_state(name: str = "test_vit") -> dict[str, Tensor]:
    """Return the state of a backbone of timm for crops of 64 pixels, the same at every call."""
    torch.manual_seed(1)
    return create_backbone(name, 64).state_dict()
