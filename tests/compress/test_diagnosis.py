"""Where int8 loses what: against programs in which one layer alone rounds."""

import math

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver

from compress.diagnosis import block_of, islands, layer_noise
from compress.graph import layers_of
from compress.int8 import Rounding, graph_of, observe, observers_of, simulated
from models.detector import Architecture, Detector
from tests.compress.small_network import SIZE, small_detector, some_pictures


@pytest.fixture(scope="module")
def diagnosed():
    return _diagnosed(small_detector(), some_pictures(32))


def _batches(pictures):
    return [(few,) for few in pictures.split(8)]


def _fake_minus_real(network, pictures):
    with torch.inference_mode():
        logits = network(pictures).double()
    return logits[:, 1] - logits[:, 0]


def _like(name):
    """Return an observer of a weight or of an activation."""
    if name.endswith("weight"):
        return PerChannelMinMaxObserver(
            dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric
        )
    return MinMaxObserver(dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine)


def _rounding_alone(detector, tensors, layer):
    """Return the program in which only a layer's weights, and what follows until the next layer, are rounded."""
    program = simulated(detector, tensors)
    graph = graph_of(program)
    layers, owner = layers_of(graph), {}
    latest = next(iter(layers.values()))
    for node in graph.graph.nodes:
        latest = layers.get(node, latest)
        owner[node.name] = latest
    for name, node, _ in list(observers_of(graph)):
        own = str(node.target).removesuffix(".weight") if node.op == "get_attr" else owner[node.name]
        if own != layer:
            setattr(graph, name, nn.Identity())
    return program


def _diagnosed(detector, pictures):
    """Return a detector, its ranges, pictures, and what each layer's rounding adds to their logits."""
    tensors = observe(detector, [some_pictures(64, seed=2)])["minmax"]
    return detector, tensors, pictures, layer_noise(simulated(detector, tensors), _batches(pictures))


def _check_against_rounding_alone(detector, tensors, pictures, noises):
    exact = _fake_minus_real(detector, pictures)
    for found in noises:
        alone = _fake_minus_real(_rounding_alone(detector, tensors, found.layer), pictures)
        share = float((alone - exact).square().mean() / exact.var(correction=0))
        assert found.logit_noise == pytest.approx(share, rel=0.3), found.layer


def test_a_layers_noise_is_what_it_adds_alone(diagnosed):
    assert [found.layer.rpartition(".")[2] for found in diagnosed[-1]] == [
        "stem",
        "depthwise",
        "gate",
        "project",
        "mix",
    ]
    _check_against_rounding_alone(*diagnosed)


class Passing(nn.Module):
    """float32 [N, 3, 32, 32] -> [N, 8]: operations that give values as they got them, or the same again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, pictures):
        """Pool to single values, so that the last rounding is most of the noise, and pass them on."""
        pooled = nn.functional.max_pool2d(nn.functional.relu6(self.stem(pictures)), 2).mean((2, 3), keepdim=True)
        return self.dropout(pooled.flatten(1))


class Residual(nn.Module):
    """float32 [N, 3, 32, 32] -> [N, 8]: a sum that is nearly what another layer gave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, 8, SIZE), nn.Conv2d(8, 8, 1)
        nn.init.normal_(self.project.weight, std=1e-4), nn.init.zeros_(self.project.bias)

    def forward(self, pictures):
        """Sum single values, so that their rounding is most of the noise."""
        given = self.stem(pictures)
        return (given + self.project(given)).flatten(1)


class Biased(nn.Module):
    """float32 [N, 3, 32, 32] -> [N, 8]: a sum with what is computed from parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.position = nn.Conv2d(3, 8, SIZE), nn.Linear(60, 8)
        self.places = nn.Parameter(torch.randn(1, 60))

    def forward(self, pictures):
        """Add a bias without an axis of pictures, as a relative position bias is."""
        return self.stem(pictures).flatten(1) + self.position(self.places.relu())


@pytest.mark.parametrize(
    ("network", "layers"),
    [(Passing, ["stem"]), (Residual, ["stem", "project"]), (Biased, ["stem", "position"])],
)
def test_each_rounding_counts_once_and_for_its_own_layer(network, layers):
    torch.manual_seed(0)
    detector = Detector(Architecture(backbone="test_byobnet", size=SIZE, fused=True), network()).eval()
    found = _diagnosed(detector, some_pictures(256))
    assert [noise.layer for noise in found[-1]] == layers
    _check_against_rounding_alone(*found)


def test_the_noise_of_a_layers_output_is_measured(diagnosed):
    detector, tensors, pictures, noises = diagnosed
    stem, rounded = detector.backbone.stem, {name: Rounding(_like(name), known) for name, known in tensors.items()}
    with torch.inference_mode():
        exact = stem(pictures)
        weight = rounded["stem_weight"](stem.weight)
        output = nn.functional.conv2d(rounded["pictures"](pictures), weight, stem.bias, stride=2, padding=1)
    noise = (output - exact).square().sum() / exact.square().sum()
    assert noises[0].snr_db == pytest.approx(-10 * math.log10(float(noise)), abs=0.01)


def test_islands_are_what_has_no_int8_form(diagnosed):
    detector, tensors, *_ = diagnosed
    assert islands(simulated(detector, tensors)) == {"gelu": 1, "sigmoid": 1}


def test_an_outlier_channel_is_found():
    detector, pictures = small_detector(), some_pictures(32)
    with torch.no_grad():  # one channel 200 times as large, and as much smaller again behind
        detector.backbone.mix.weight[3] *= 200
        detector.backbone.mix.bias[3] += 1000
        detector.head.weight[:, 3] /= 1000
    tensors = observe(detector, [pictures])["minmax"]
    noises = layer_noise(simulated(detector, tensors), _batches(pictures))
    assert max(noises, key=lambda noise: noise.logit_noise).layer == "mix"


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("stages.0.blocks.1.token_mixer.conv", "stages.0.blocks.1"),
        ("blocks.2.0.conv_pw", "blocks.2.0"),
        ("stem.conv1", "stem"),
        ("conv_head", "conv_head"),
    ],
)
def test_blocks(layer, block):
    assert block_of(layer) == block
