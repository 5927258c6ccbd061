"""Costs against closed forms."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.cost import _activation_mb, cost_of, macs_of
from models.detector import Architecture, Detector
from models.megatron import Megatron, MegatronSettings
from models.temporal import TemporalSettings

PICTURE = torch.zeros(1, 3, 64, 64)


def test_macs_of_a_vision_transformer_are_the_closed_form():
    vit = timm.create_model("test_vit", num_classes=10, img_size=64)
    width, depth, hidden, patches = 64, 6, 192, (64 // 16) ** 2
    tokens = patches + 1
    projections = tokens * width * (3 * width + width)  # to query, key and value, and back
    attention = 2 * tokens * tokens * width  # queries by keys, shares by values
    block = projections + attention + 2 * tokens * width * hidden
    assert cost_of(vit, PICTURE).macs == patches * width * 3 * 16 * 16 + depth * block + 10 * width


def test_macs_of_megatron_are_the_closed_form():
    width, hidden, frames = 16, 24, 5
    head = Megatron(width, MegatronSettings(layers=3, feed_forward=hidden))
    attention = 4 * frames * width**2 + 2 * frames**2 * width
    encoder = 3 * (attention + 2 * frames * width * hidden)
    macs = cost_of(head, torch.zeros(1, frames, 2, width), torch.ones(1, frames, dtype=torch.bool)).macs
    assert macs == 2 * encoder + 2 * attention + frames * 2 * width * width + 2 * width


def test_macs_of_a_grouped_convolution():
    convolution = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)
    assert cost_of(convolution, torch.zeros(1, 8, 10, 10)).macs == 5 * 5 * 16 * (8 // 4) * 9


def test_a_network_that_pools_by_a_learned_query_is_counted_and_stays_trainable():
    vit, counter = timm.create_model("test_vit3", num_classes=0, img_size=64), FlopCounterMode(display=False)
    macs = macs_of(vit.eval(), PICTURE)
    assert all(parameter.requires_grad for parameter in vit.parameters())
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        vit.requires_grad_(False)(PICTURE)
    assert macs == cost_of(vit, PICTURE).macs == counter.get_total_flops() // 2 > 10**6


def test_shared_parameters_count_once_and_frozen_ones_are_told_apart():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    cost = cost_of(nn.Sequential(first, second, nn.BatchNorm1d(8)), torch.zeros(1, 8))
    assert (cost.parameters, cost.trained_parameters) == (64 + 8 + 8 + 16, 64 + 8 + 16)


class _TwiceKept(nn.Module):
    """Keeps its input for two layers, and for a third the product of both outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(1024, 2048), nn.Linear(1024, 2048)
        self.last = nn.Linear(2048, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.left(x).relu() * self.right(x))


def test_activations_are_what_the_backward_pass_needs_each_once():
    # the input, which two layers need; the output of relu, which relu and the product need; the right factor; their
    # product. The last layer also needs its weight, which is no activation.
    kept = (1024 + 2048 + 2048 + 2048) * 4 / 2**20
    assert cost_of(_TwiceKept(), torch.zeros(1, 1024)).activation_mb == kept
    assert cost_of(_TwiceKept(), torch.zeros(7, 1024)).activation_mb == kept
    assert cost_of(_TwiceKept().half().requires_grad_(False), torch.zeros(1, 1024).half()).activation_mb == kept


def test_macs_are_of_one_of_a_batch():
    assert cost_of(nn.Linear(8, 4), torch.zeros(5, 8)).macs == 32


@pytest.mark.parametrize("gradient", [True, False])
def test_measuring_leaves_no_trace(gradient):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    network[0].requires_grad_(False)
    network[1].eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    grads = [p.grad.clone() for p in network.parameters()]
    modes, flags = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    drawn = torch.get_rng_state()
    with torch.set_grad_enabled(gradient):
        cost = cost_of(network, torch.randn(1, 3, 8, 8, generator=torch.Generator()))
    assert cost.activation_mb > 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), grads, strict=True))
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), drawn)


class _Drawing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(1)


def test_network_that_draws_leaves_the_random_numbers_alone():
    drawn = torch.get_rng_state()
    cost_of(_Drawing(), torch.zeros(1, 4))
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(
    "architecture",
    [
        {"temporal": TemporalSettings(width=16)},
        {"modalities": ("rgb", "depth"), "megatron": MegatronSettings(layers=1, feed_forward=16)},
    ],
)
def test_activations_of_a_clip_are_those_of_all_its_pictures_at_once(architecture):
    detector = Detector(Architecture(backbone="test_byobnet", size=64, **architecture)).eval()
    inputs = detector.example(frames=6)
    assert cost_of(detector, *inputs).activation_mb == pytest.approx(_activation_mb(detector, inputs), rel=0.01)
