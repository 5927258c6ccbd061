"""What trains is given: what the frozen part gave, and of frames that count alone."""

import numpy as np
import torch

from compress.caches import CacheKey, FrameCache
from compress.compute import prepare_compute
from compress.features import Cut
from data.batches import Batch, read_batch
from data.views import ViewRule, Views
from models.detector import Architecture, Detector
from models.freezing import freeze
from models.megatron import MegatronSettings
from models.pixels import PixelDetector, Preprocessing
from models.run import Run


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


def test_cached_features_are_those_of_the_frozen_part(teacher_run, opened_store, tmp_path):
    run = Run(teacher_run)
    detector = run.detector()
    pixels_in = PixelDetector(detector, run.info.preprocessing)
    frozen, _ = freeze(detector.backbone, "1")
    views = Views(opened_store, ViewRule())

    def features(pixels, valid=None):
        with torch.inference_mode():
            return frozen(pixels_in.pictures(torch.from_numpy(pixels)))

    key = CacheKey(of="f", store="s", clips="c", weights="w", network="n", precision="fp32", rule=views.rule)
    cache = FrameCache.fill(tmp_path, key, views, features, prepare_compute("fp32"))
    rows = np.array([0, 7, 42, 13])
    live = features(read_batch(views, Batch(rows, np.zeros(4, np.int64))).pixels)
    torch.testing.assert_close(cache[rows], live, atol=2e-3, rtol=2e-3)
