"""Cuts a backbone into a frozen part, which runs once per picture, and a part that trains."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stage import WrongArgument


class TransformerTrunk(nn.Module):
    """The first blocks of a vision transformer: pictures [N, 3, S, S] -> tokens [N, L, D]."""

    def __init__(self, vit: VisionTransformer, blocks: int) -> None:
        super().__init__()
        self.vit, self.count = vit, blocks

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the tokens after the first blocks, float [N, L, D]."""
        tokens: Tensor = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(self.vit.patch_embed(pictures))))
        for block in self.vit.blocks[: self.count]:
            tokens = block(tokens)
        return tokens


class TransformerTop(nn.Module):
    """The last blocks of a vision transformer: tokens [N, L, D] -> pooled embeddings [N, D]."""

    def __init__(self, vit: VisionTransformer, blocks: int) -> None:
        super().__init__()
        self.vit, self.count = vit, blocks

    def forward(self, tokens: Tensor) -> Tensor:
        """Return pooled embeddings, float [N, D]."""
        for block in self.vit.blocks[len(self.vit.blocks) - self.count :]:
            tokens = block(tokens)
        embeddings: Tensor = self.vit.forward_head(self.vit.norm(tokens))
        return embeddings


def freeze(backbone: nn.Module, unfreeze: str) -> tuple[nn.Module, nn.Module]:
    """Freeze a backbone except for its last blocks; return ``(frozen, trained)``: ``backbone(x) = trained(frozen(x))``.

    ``unfreeze`` is the number of last blocks that train (0: the head only), or ``all``. Raises WrongArgument for other
    values, and for a number above 0 if the backbone is no vision transformer or has fewer blocks.
    """
    if unfreeze == "all":
        return nn.Identity(), backbone
    if not unfreeze.isdecimal():
        raise WrongArgument(f"--unfreeze {unfreeze!r}: give a number of last blocks, 0 for the head only, or all")
    blocks = int(unfreeze)
    backbone.requires_grad_(False)
    if blocks == 0:
        return backbone, nn.Identity()
    if not isinstance(backbone, VisionTransformer):
        raise WrongArgument(
            f"--unfreeze {blocks}: the last blocks of a {type(backbone).__name__} cannot be trained alone; "
            "use --unfreeze 0 (head only) or --unfreeze all"
        )
    if blocks > len(backbone.blocks):
        raise WrongArgument(f"--unfreeze {blocks}: the backbone has {len(backbone.blocks)} blocks")
    pooling = [] if backbone.attn_pool is None else [backbone.attn_pool]
    for part in (*backbone.blocks[-blocks:], backbone.norm, backbone.fc_norm, *pooling):
        part.requires_grad_(True)
    return TransformerTrunk(backbone, len(backbone.blocks) - blocks), TransformerTop(backbone, blocks)
