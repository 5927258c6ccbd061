"""What a detector says, against the detector's own forward pass and hooks on its layers."""

import pytest
import timm
import torch
from torch import Tensor, nn

from models.detector import Architecture, Detector, per_picture
from models.megatron import MegatronSettings
from models.outputs import averaged_by_products, example_outputs, outputs, stages_of
from models.temporal import TemporalSettings
from stage import StageError

SIZE = 64
PYRAMIDS = ("test_byobnet", "test_convnext", "test_efficientnet", "test_resnet", "test_mambaout", "test_coatnet")


def seeded(backbone: str, **more: object) -> Detector:
    torch.manual_seed(0)
    return Detector(Architecture(backbone=backbone, size=SIZE, **more)).eval()


@pytest.mark.parametrize("backbone", [*PYRAMIDS, "test_vit", "test_vit2"])
@torch.no_grad()
def test_frames_are_told_as_by_the_detector_with_and_without_maps(backbone: str) -> None:
    detector, pictures = seeded(backbone, head_hidden=8), torch.randn(3, 3, SIZE, SIZE)
    for with_maps in (False, True):
        said = outputs(detector, pictures, with_maps=with_maps)
        torch.testing.assert_close(said.logits, detector(pictures))
        torch.testing.assert_close(said.embedding, detector.backbone(pictures))
        assert len(said.maps) == (4 if with_maps else 0)
        assert (said.frames, said.valid) == (None, None)
        sides = [stage.shape[2] for stage in said.maps]
        assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("backbone", ["test_byobnet", "test_vit"])
@torch.no_grad()
def test_modalities_lie_side_by_side(backbone: str) -> None:
    detector, pictures = seeded(backbone, modalities=("rgb", "depth")), torch.randn(3, 2, 3, SIZE, SIZE)
    for with_maps in (False, True):
        said = outputs(detector, pictures, with_maps=with_maps)
        torch.testing.assert_close(said.logits, detector(pictures))
        each = [detector.backbone(pictures[:, which]) for which in (0, 1)]
        torch.testing.assert_close(said.embedding, torch.cat(each, dim=1))
    alone = [outputs(seeded(backbone), pictures[:, which], with_maps=True).maps for which in (0, 1)]
    for both, rgb, depth in zip(said.maps, *alone, strict=True):
        torch.testing.assert_close(both, torch.cat([rgb, depth], dim=1))


@pytest.mark.parametrize(
    ("more", "several"),
    [
        ({"temporal": TemporalSettings(width=8, feed_forward=8)}, []),
        ({"megatron": MegatronSettings(feed_forward=8), "modalities": ("rgb", "depth")}, [2]),
    ],
)
@torch.no_grad()
def test_clips_are_told_as_by_the_detector(more: dict[str, object], several: list[int]) -> None:
    detector, pictures = seeded("test_byobnet", **more), torch.randn(2, 3, *several, 3, SIZE, SIZE)
    valid = torch.tensor([[True, False, True], [True, True, True]])
    for with_maps in (False, True):
        said = outputs(detector, pictures, valid, with_maps=with_maps)
        torch.testing.assert_close(said.logits, detector(pictures, valid))
        assert said.maps == ()
        assert said.frames.shape[:2] == (2, 3)
        assert torch.equal(said.valid, valid)
        expected = torch.stack([said.frames[0, [0, 2]].mean(0), said.frames[1].mean(0)])
        torch.testing.assert_close(said.embedding, expected)
        torch.testing.assert_close(said.frames, detector.head.features(per_picture(detector.backbone, pictures), valid))


@pytest.mark.parametrize(("side", "grid"), [((16, 16), (7, 7)), ((7, 9), (7, 4)), ((5, 6), (10, 3))])
def test_products_average_as_torch_s_pooling_does(side: tuple[int, int], grid: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(averaged_by_products(maps, grid), torch.nn.functional.adaptive_avg_pool2d(maps, grid))


def test_of_a_pyramid_the_last_four_stages_are_looked_at() -> None:
    """By the stages' own strides: 4, 8, 16 and 32 of five or more, whatever a network calls the first one."""
    for name in (*PYRAMIDS, "repvit_m0_9", "mobilenetv4_conv_small", "resnet18"):
        backbone = timm.create_model(name, num_classes=0)
        info = getattr(backbone.feature_info, "info", backbone.feature_info)
        stages = stages_of(backbone)
        assert stages == list(range(len(info) - 4, len(info))), name
        strides = [info[stage]["reduction"] for stage in stages]
        assert strides == sorted(strides), name


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("vit_small_patch14_dinov2", [2, 5, 8, 11]),
        ("test_vit", [0, 2, 3, 5]),
        ("test_vit2", [1, 3, 5, 7]),
    ],
)
def test_of_a_transformer_evenly_spaced_blocks_are_looked_at(backbone: str, expected: list[int]) -> None:
    with torch.device("meta"):
        network = timm.create_model(backbone, num_classes=0)
    assert stages_of(network) == expected
    assert expected[-1] == len(network.blocks) - 1


@torch.no_grad()
def test_maps_of_a_transformer_are_what_its_blocks_gave() -> None:
    detector, pictures = seeded("test_vit"), torch.randn(2, 3, SIZE, SIZE)
    tokens: list[Tensor] = []
    for block in detector.backbone.blocks:
        block.register_forward_hook(lambda _, __, found: tokens.append(found))
    detector(pictures)
    given = list(tokens)
    maps = outputs(detector, pictures, with_maps=True).maps
    prefix = detector.backbone.num_prefix_tokens
    for place, stage in zip(stages_of(detector.backbone), maps, strict=True):
        assert stage.shape == (2, 64, 4, 4)
        torch.testing.assert_close(stage.flatten(2).transpose(1, 2), given[place][:, prefix:])


class Flat(nn.Module):
    """A backbone of somebody's own, without stages."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Return mean colours."""
        return pictures.mean((2, 3))


def test_a_backbone_without_stages_is_refused_where_maps_are_asked_for() -> None:
    detector, pictures = Detector(Architecture(backbone="test_vit", size=SIZE), Flat()), torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(outputs(detector, pictures).embedding, pictures.mean((2, 3)))
    with pytest.raises(StageError, match="timm gives no feature maps of a Flat: choose a --loss without dense"):
        outputs(detector, pictures, with_maps=True)


def test_an_example_leaves_mode_gradients_and_norms_as_they_were() -> None:
    detector = seeded("test_byobnet").train()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    said = example_outputs(detector, frames=1, with_maps=True)
    assert detector.training
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())
    assert (said.logits.shape, said.embedding.shape, said.logits.requires_grad) == ((1, 2), (1, 256), False)
    clips = example_outputs(seeded("test_byobnet", temporal=TemporalSettings(width=8)), frames=5, with_maps=False)
    assert clips.frames.shape == (1, 5, 8)
