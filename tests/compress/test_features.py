"""What trains is given: frames that do not count must not reach batch norms."""

import torch

from compress.features import Cut
from models.detector import Architecture, Detector, PixelDetector, Preprocessing
from models.freezing import freeze
from models.megatron import MegatronSettings


def test_frames_that_do_not_count_do_not_reach_batch_norms_in_training() -> None:
    torch.manual_seed(0)
    architecture = Architecture(
        backbone="test_byobnet", size=64, modalities=("rgb", "depth"), head_hidden=None, megatron=MegatronSettings()
    )
    detector = Detector(architecture)
    frozen, top = freeze(detector.backbone, "all")
    cut = Cut(detector, PixelDetector(detector, Preprocessing.of("test_byobnet")), frozen, top, "all")
    detector.train()
    pictures, valid = (
        torch.rand(2, 4, 2, 3, 64, 64),
        torch.tensor([[True, True, False, True], [True, False, True, True]]),
    )
    other = pictures.clone()
    other[~valid] = 100 * torch.rand(2, 2, 3, 64, 64)
    given = []
    for pixels in (pictures, other):
        torch.manual_seed(1)  # of dropout
        with torch.no_grad():
            given.append(cut.logits(pixels, valid))
    torch.testing.assert_close(given[0], given[1])
