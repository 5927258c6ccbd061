"""Backbones of a few layers, known to timm while tests run: they go to any runtime in a second or some."""

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["Tiny", "test_tiny", "test_tiny_vit"]

NORMALIZATION = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
default_cfgs = generate_default_cfgs(
    {"test_tiny.untrained": NORMALIZATION, "test_tiny_vit.untrained": NORMALIZATION | {"fixed_input_size": True}}
)


class Tiny(nn.Module):
    """Pictures [N, 3, S, S] -> embeddings [N, 32]: means over quarters tell a picture from its transpose."""

    def __init__(self, num_classes: int = 0, **_: object) -> None:
        super().__init__()
        assert num_classes == 0
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.act, self.pool = nn.ReLU(), nn.AvgPool2d(8)
        self.last = nn.Conv2d(8, 32, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return embeddings."""
        maps = self.act(self.second(self.act(self.first(pictures))))
        embeddings: Tensor = self.last(self.pool(maps)).mean((2, 3))
        return embeddings


@register_model
def test_tiny(pretrained: bool = False, **settings: object) -> Tiny:
    """Create the backbone."""
    assert not pretrained
    return Tiny(**{name: value for name, value in settings.items() if name == "num_classes"})


@register_model
def test_tiny_vit(pretrained: bool = False, **settings: object) -> VisionTransformer:
    """Create a vision transformer of one block, 16 patches and 32 channels."""
    assert not pretrained
    given = {name: value for name, value in settings.items() if name in ("num_classes", "img_size")}
    return VisionTransformer(patch_size=16, embed_dim=32, depth=1, num_heads=2, **given)


test_tiny.__test__ = test_tiny_vit.__test__ = False
