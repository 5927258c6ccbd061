"""int8 of networks that join, attend, count, pad or share otherwise than the student."""

import pytest
import torch
from timm.layers import BlurPool2d
from timm.models.beit import Beit
from timm.models.edgenext import PositionalEncodingFourier as OfShape
from timm.models.xcit import PositionalEncodingFourier as OfSides

from compress.calibration import calibrate
from compress.equalization import equalize
from compress.fidelity import snr_db
from compress.graph import layers_of, traced
from compress.int8 import graph_of, observe, quantized, simulated
from compress.qat import as_trained, trainable, with_weights_of
from export import executorch
from export.programs import TorchProgram, pixel_input, probability
from models.detector import Architecture, Detector, create_backbone
from models.pixels import PixelDetector, Preprocessing
from stage import StageError
from tests.compress.small_network import SIZE, SmallNetwork, quantization_of, small_detector, some_pictures


def test_a_layer_whose_bias_is_joined_may_stay_in_float32_and_has_a_constant_else(tmp_path):
    """XNNPACK takes no layer whose bias is computed, and ExecuTorch alone has no operation for its int8 weights."""
    torch.manual_seed(0)
    backbone = Beit(img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0).eval()
    detector = Detector(Architecture(backbone="beit_base_patch16_224", size=SIZE, fused=True), backbone).eval()
    pictures = some_pictures(8)
    tensors = observe(detector, [pictures])["minmax"]
    with torch.inference_mode():
        for float_layers in ([], ["blocks.0.attn.qkv"]):
            program = quantized(detector, quantization_of(tensors, float_layers))
            expected = simulated(detector, tensors, float_layers)(pictures)
            torch.testing.assert_close(program(pictures), expected, rtol=1e-3, atol=1e-3)
            assert all(layer.args[2].op == "get_attr" for layer in layers_of(graph_of(program)))
    module = PixelDetector(program, Preprocessing.of("test_byobnet"))
    torch_program = TorchProgram("forward", module, (pixel_input(SIZE),), probability(), "int8")
    found = executorch.write([torch_program], tmp_path / "beit.pte")
    assert not [name for name in found["operators"]["forward"] if "dequantize_per_channel" in name]


class _Positions(torch.nn.Module):
    """Positions joined of numbers alone, moved, and convolved, as EdgeNeXt and XCiT add them: -> [N, 8]."""

    def __init__(self, encoding):
        super().__init__()
        self.stem, self.positions = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), encoding

    def forward(self, pictures):
        maps = self.stem(pictures)
        number, _, height, width = maps.shape
        shape = (number, height, width)
        positions = self.positions(shape) if isinstance(self.positions, OfShape) else self.positions(*shape)
        return (maps + positions).relu().mean((2, 3))


@pytest.mark.parametrize("encoding", [OfShape, OfSides])
def test_positions_that_are_joined_of_numbers_alone_pass_through(encoding):
    torch.manual_seed(3)
    detector = small_detector().with_parts(backbone=_Positions(encoding(4, 8)).eval())
    pictures = some_pictures(8)
    tensors = observe(detector, [pictures])["minmax"]
    assert "cat" not in tensors
    with torch.inference_mode():
        program = quantized(detector, quantization_of(tensors))
        expected = detector.backbone(pictures)
        assert snr_db(expected.double().numpy(), program.backbone(pictures).double().numpy()) > 20


class Counting(SmallNetwork):
    """float32 [N, 3, 32, 32] -> [N, 8], computed with N in numbers that a trace of one picture would not have."""

    def forward(self, pictures):
        """Join all pictures and part them again."""
        number = pictures.shape[0]
        joined = super().forward(pictures).reshape(1, number * 8)
        return (joined + joined).reshape(number, 8)


def test_a_program_is_exported_for_one_picture_whatever_its_network_does_with_their_number():
    torch.manual_seed(0)
    detector = Detector(Architecture(backbone="test_byobnet", size=SIZE, fused=True), Counting()).eval()
    pictures = some_pictures(16)
    program = quantized(detector, quantization_of(observe(detector, [pictures])["minmax"]))
    exported = torch.export.export(program, (pictures[:1],))
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(pictures[:1]), program(pictures)[:1])
    assert not [node for node in exported.graph.nodes if "sym_size" in node.name]


def test_a_network_that_computes_its_weights_is_refused():
    backbone = create_backbone("test_nfnet", SIZE)
    detector = Detector(Architecture(backbone="test_nfnet", size=SIZE, fused=True), backbone).eval()
    with pytest.raises(StageError, match=r"^test_nfnet computes the weights of \d+ layers anew .* give --scheme fp16"):
        observe(detector, [some_pictures(4)])


class _Branches(torch.nn.Module):
    """Two convolutions side by side, joined, and a mean: float32 [N, 3, 32, 32] -> [N, 8]."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (torch.nn.Conv2d(3, 4, 3, stride=2) for _ in "ab")

    def forward(self, pictures):
        return torch.cat([self.left(pictures), self.right(pictures)], 1).mean((2, 3))


def test_what_joins_float_layers_stays_float():
    torch.manual_seed(3)
    detector = small_detector().with_parts(backbone=_Branches().eval())
    pictures = some_pictures(4)
    tensors = observe(detector, [pictures])["minmax"]
    assert {"cat", "mean"} <= set(tensors)
    with torch.inference_mode():
        expected = detector.backbone(pictures)
        assert not torch.equal(simulated(detector, tensors, ["left"]).backbone(pictures), expected)
        assert torch.equal(simulated(detector, tensors, ["left", "right"]).backbone(pictures), expected)


class _Attention(torch.nn.Module):
    """Channel attention by a convolution along the channels (ECA), before a mean: [N, 3, 32, 32] -> [N, 8]."""

    def __init__(self):
        super().__init__()
        self.stem, self.along = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, pictures):
        maps = self.stem(pictures)
        gate = torch.sigmoid(self.along(maps.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)
        return (maps * gate).mean((2, 3))


def test_convolutions_along_channels_are_layers_too():
    torch.manual_seed(3)
    detector = small_detector().with_parts(backbone=_Attention().eval())
    assert list(layers_of(traced(detector)).values()) == ["stem", "along"]
    pictures = some_pictures(4)
    tensors = observe(detector, [pictures])["minmax"]
    with torch.inference_mode():
        expected = detector.backbone(pictures)
        assert not torch.equal(simulated(detector, tensors, ["stem"]).backbone(pictures), expected)
        torch.testing.assert_close(simulated(detector, tensors, ["stem", "along"]).backbone(pictures), expected)


class _Padded(torch.nn.Module):
    """Convolutions with their padding in words, as in ConvMixer, and a mean: float32 [N, 3, 32, 32] -> [N, 8]."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding="valid")
        self.same = torch.nn.Conv2d(8, 8, (5, 3), padding="same", dilation=(1, 2), groups=8, bias=False)
        self.uneven = torch.nn.Conv2d(8, 8, (1, 2), padding="same")

    def forward(self, pictures):
        return torch.relu(self.uneven(self.same(self.stem(pictures)))).mean((2, 3))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_with_padding_in_words_are_layers_too():
    torch.manual_seed(3)
    detector = small_detector().with_parts(backbone=_Padded().eval())
    pictures = some_pictures(4)
    graph = traced(detector)
    assert list(layers_of(graph).values()) == ["stem", "same"]
    tensors = observe(detector, [pictures])["minmax"]
    with torch.inference_mode():
        expected = detector.backbone(pictures)
        assert torch.equal(graph(pictures), expected)
        assert not torch.equal(simulated(detector, tensors, ["stem"]).backbone(pictures), expected)
        program = quantized(detector, quantization_of(tensors))
        torch.testing.assert_close(program.backbone(pictures), expected, rtol=0.1, atol=0.05)
        assert torch.equal(simulated(detector, tensors, ["stem", "same"]).backbone(pictures), expected)


class _Blurred(torch.nn.Module):
    """Two convolutions about a blur, whose filter is fixed and in no file of weights: [N, 3, 32, 32] -> [N, 8]."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 1)
        self.blur = BlurPool2d(8)

    def forward(self, pictures):
        return self.last(self.blur(self.stem(pictures))).relu().mean((2, 3))


def test_a_fixed_filter_is_int8_and_not_equalized():
    torch.manual_seed(3)
    detector = small_detector().with_parts(backbone=_Blurred().eval())
    pictures = some_pictures(8)
    equal = equalize(detector, [pictures])
    assert torch.equal(equal.backbone.blur.filt, detector.backbone.blur.filt)
    calibrated = calibrate(equal, [pictures], [(pictures,)])
    with torch.inference_mode():
        expected, found = (network(pictures).double().numpy() for network in (detector, calibrated.program))
        assert snr_db(expected, found) > 20
    as_trained(calibrated, with_weights_of(calibrated.detector, trainable(calibrated)))


class _Shared(torch.nn.Module):
    """A convolution whose output a batch norm and a shortcut take, as in FastViT: float32 [N, 3, 32, 32] -> [N, 8]."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8)
        self.mixer, self.up = torch.nn.Conv2d(8, 8, 1), torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
        torch.nn.init.uniform_(self.norm.running_mean, -1, 1)
        torch.nn.init.uniform_(self.norm.running_var, 2, 4)

    def forward(self, pictures):
        maps = self.stem(pictures)
        maps = maps + self.mixer(self.norm(maps))
        return torch.cat([maps.mean((2, 3)), self.up(maps).mean((2, 3))], 1)


def test_a_norm_behind_a_layer_that_something_else_takes_too_is_not_folded():
    torch.manual_seed(3)
    detector = small_detector().with_parts(backbone=_Shared().eval())
    pictures = some_pictures(8)
    tensors = observe(detector, [pictures])["mse"]
    with torch.inference_mode():
        expected = detector.backbone(pictures)
        program = quantized(detector, quantization_of(tensors))
        assert snr_db(expected.double().numpy(), program.backbone(pictures).double().numpy()) > 20
        exact = simulated(detector, tensors, ["stem", "mixer"]).backbone(pictures)
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_the_quantizer_changes_is_refused(monkeypatch):
    monkeypatch.setattr("compress.graph._keep_apart", lambda graph, norm: None)
    detector = small_detector().with_parts(backbone=_Shared().eval())
    with pytest.raises(StageError, match=r"preparing test_byobnet for int8 moves outputs by .* on 8 crops"):
        observe(detector, [some_pictures(8)])
