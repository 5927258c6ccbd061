"""Palettes against k-means on the weights themselves."""

import copy

import numpy as np
import torch
from sklearn.cluster import KMeans

from models.schemes import PARTS, palettized
from tests.compress.small_network import small_detector


def test_a_palette_is_as_near_as_k_means_on_the_weights():
    detector = small_detector()
    layer = torch.nn.Linear(64, 40, bias=True)
    with torch.no_grad():
        layer.weight[0, 0] = 5.0  # far out, as folding a batch norm may leave it
    detector.backbone.further = layer
    before = copy.deepcopy(detector.state_dict())
    found = palettized(detector, 4)
    weights, own = layer.weight.detach().flatten().numpy(), found.backbone.further.weight.detach().flatten().numpy()
    assert len(np.unique(own)) == 16
    means = KMeans(16, n_init=4, random_state=0).fit(weights[:, None])
    assert np.sum((weights - own) ** 2) < 1.2 * means.inertia_
    # Small weights, biases and the detector that was given stay; a second call finds nothing to do.
    for name, value in before.items():
        assert torch.equal(detector.state_dict()[name], value)
        if name != "backbone.further.weight":
            assert torch.equal(found.state_dict()[name], value)
    again = palettized(found, 4)
    assert torch.equal(again.backbone.further.weight, found.backbone.further.weight)


def test_palettes_of_large_layers_are_as_near_as_k_means_on_all_weights():
    """Which sees the means of groups of them, of one or of two weights here."""
    detector = small_detector()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        detector.backbone.further = torch.nn.Linear(160, 128)
        with torch.no_grad():
            detector.backbone.further.weight.exponential_()
    weights = detector.backbone.further.weight.detach().flatten().numpy()
    assert PARTS < len(weights) < 2 * PARTS
    own = palettized(detector, 3).backbone.further.weight.detach().flatten().numpy()
    means = KMeans(8, n_init=4, random_state=0).fit(weights[:, None])
    assert np.sum((weights - own) ** 2) < 1.02 * means.inertia_
