"""Around a detector: raw pixels in, P(fake) out."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as vision

from models.detector import Architecture, Detector
from models.pixels import ImageDetector, PixelDetector, Preprocessing

ARCHITECTURE = Architecture(backbone="test_byobnet", size=64)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(ARCHITECTURE).eval()


def test_pixels_are_normalized_as_torchvision_does(detector, real_crops):
    preprocessing = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mine = PixelDetector(detector, preprocessing).pictures(torch.from_numpy(real_crops))
    oracle = [
        vision.normalize(vision.to_tensor(crop), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for crop in real_crops
    ]
    torch.testing.assert_close(mine, torch.stack(oracle), atol=1e-5, rtol=0)


def test_score_is_the_softmax_share_of_the_second_logit(detector, real_crops):
    pixels_in = PixelDetector(detector, Preprocessing.of("test_byobnet"))
    pixels = torch.from_numpy(real_crops)
    with torch.inference_mode():
        logits = detector(pixels_in.pictures(pixels)).double().numpy()
        scores = pixels_in(pixels).numpy()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), atol=1e-6)


def test_planar_image_input_gives_the_same_scores(detector, real_crops):
    preprocessing = Preprocessing.of("test_byobnet")
    planar = torch.from_numpy(real_crops).permute(0, 3, 1, 2).float().contiguous()
    with torch.inference_mode():
        expected = PixelDetector(detector, preprocessing)(torch.from_numpy(real_crops))
        actual = ImageDetector(detector, preprocessing)(planar)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_preprocessing_is_what_timm_states():
    of_imagenet = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert Preprocessing.of("vit_base_patch14_dinov2") == of_imagenet
