"""int8: rebuilt from numbers, near its float source, and refused when the numbers do not fit."""

import json
import shutil

import numpy as np
import pytest
import torch
from timm.models.beit import Beit

from compress.fidelity import logits_of, snr_db
from compress.graph import layers_of, traced
from compress.int8 import Quantization, graph_of, observe, observers_of, quantized, simulated
from compress.quantize import quantize
from compress.runs import pixel_detector
from export import executorch
from export.programs import TorchProgram, pixel_input, probability
from models.detector import Architecture, Detector, create_backbone
from models.pixels import PixelDetector, Preprocessing
from models.run import Run
from stage import StageError
from tests.compress.small_network import SIZE, SmallNetwork, small_detector, some_pictures
from tests.conftest import forget_hashes


def _scores(run_path, crops, one_by_one=False):
    with torch.inference_mode():
        detector = pixel_detector(Run(run_path))
        batches = [crop[None] for crop in crops] if one_by_one else [crops]
        return np.concatenate([detector(torch.from_numpy(batch)).numpy() for batch in batches])


def test_files_of_an_int8_run(int8_run, student_run):
    assert sorted(p.name for p in int8_run.iterdir()) == [
        "metrics.json", "model.json", "model.safetensors", "quantization.json",
    ]  # fmt: skip
    info = Run(int8_run).info
    assert (info.scheme, info.kind, info.architecture.fused) == ("int8", "student", True)
    assert [parent.name for parent in info.parents] == [student_run.name]
    quantization = json.loads((int8_run / "quantization.json").read_text())
    assert set(quantization) == {
        "schema_version", "quantizer", "weights", "activations", "observer", "float_layers", "calibration_crops",
        "calibration_fingerprint", "tensors",
    }  # fmt: skip
    assert quantization["calibration_crops"] == 24
    assert quantization["float_layers"] == []


def test_int8_is_near_its_float_source(student_run, int8_run, real_crops):
    expected, actual = _scores(student_run, real_crops), _scores(int8_run, real_crops)
    assert snr_db(logits_of(expected), logits_of(actual)) >= 15.0
    assert not np.array_equal(expected, actual)


def test_rebuilding_gives_the_same_scores_every_time_and_at_batch_one(int8_run, real_crops):
    first = _scores(int8_run, real_crops)
    np.testing.assert_array_equal(first, _scores(int8_run, real_crops))
    np.testing.assert_allclose(first, _scores(int8_run, real_crops, one_by_one=True), atol=1e-5)


def test_weights_are_rounded_to_their_stored_scales(int8_run):
    run = Run(int8_run)
    quantization = Quantization.model_validate_json(run.read("quantization.json"))
    program = pixel_detector(run).network.backbone
    stored = [value for value in program.state_dict().values() if value.dtype == torch.int8]
    per_channel = {name: tensor for name, tensor in quantization.tensors.items() if name.endswith("_weight")}
    assert len(stored) == len(per_channel) and "head_weight" not in per_channel
    # Symmetric per channel: each channel's largest weight becomes 127, unless its scale is XNNPACK's floor.
    largest = torch.cat([integers.flatten(1).abs().amax(1) for integers in stored])
    above_floor = sum(scale > 2**-12 for tensor in per_channel.values() for scale in tensor.scale)
    assert int((largest == 127).sum()) >= above_floor > 100
    backbone = run.detector().backbone
    convolutions = {n: m for n, m in backbone.named_modules() if isinstance(m, torch.nn.Conv2d)}
    layer = next(name for name, module in convolutions.items() if module.bias is not None)  # no batch norm follows
    weight = backbone.get_submodule(layer).weight.detach()
    scale = torch.tensor(per_channel[f"{layer.replace('.', '_')}_weight"].scale)
    expected = (weight / scale[:, None, None, None]).round().clamp(-127, 127)
    # A half may be rounded either way: the program multiplies by 1 / scale.
    of_shape = [integers.float() for integers in stored if integers.shape == expected.shape]
    assert any((expected - i).abs().max() <= 1 and (expected != i).float().mean() < 0.01 for i in of_shape)


def test_a_layer_whose_bias_is_joined_may_stay_in_float32_and_has_a_constant_else(tmp_path):
    """XNNPACK takes no layer whose bias is computed, and ExecuTorch alone has no operation for its int8 weights."""
    torch.manual_seed(0)
    backbone = Beit(img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0).eval()
    detector = Detector(Architecture(backbone="beit_base_patch16_224", size=SIZE, fused=True), backbone).eval()
    pictures = some_pictures(8)
    tensors = observe(detector, [pictures])["minmax"]
    with torch.inference_mode():
        for float_layers in ([], ["blocks.0.attn.qkv"]):
            program = quantized(detector, _quantization(tensors, float_layers, "minmax"))
            expected = simulated(detector, tensors, float_layers)(pictures)
            torch.testing.assert_close(program(pictures), expected, rtol=1e-3, atol=1e-3)
            assert all(layer.args[2].op == "get_attr" for layer in layers_of(graph_of(program)))
    module = PixelDetector(program, Preprocessing.of("test_byobnet"))
    torch_program = TorchProgram("forward", module, (pixel_input(SIZE),), probability(), "int8")
    found = executorch.write([torch_program], tmp_path / "beit.pte")
    assert not [name for name in found["operators"]["forward"] if "dequantize_per_channel" in name]


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
    program = quantized(detector, _quantization(observe(detector, [pictures])["minmax"], [], "minmax"))
    exported = torch.export.export(program, (pictures[:1],))
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(pictures[:1]), program(pictures)[:1])
    assert not [node for node in exported.graph.nodes if "sym_size" in node.name]


def test_a_network_that_computes_its_weights_is_refused():
    backbone = create_backbone("test_nfnet", SIZE)
    detector = Detector(Architecture(backbone="test_nfnet", size=SIZE, fused=True), backbone).eval()
    with pytest.raises(StageError, match=r"^test_nfnet computes the weights of \d+ layers anew .* give --scheme fp16"):
        observe(detector, [some_pictures(4)])


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_the_program_is_its_simulation(observer):
    detector, pictures = small_detector(), some_pictures(16)
    quantization = _quantization(observe(detector, [pictures])[observer], [], observer)
    with torch.inference_mode():
        program = quantized(detector, quantization)(pictures)
        simulation = simulated(detector, quantization.tensors)(pictures)
    torch.testing.assert_close(program, simulation, rtol=1e-5, atol=1e-5)
    assert (program - detector(pictures)).abs().max() > 1e-3


def _quantization(tensors, floats, observer="minmax"):
    return Quantization(
        observer=observer, float_layers=floats, calibration_crops=1, calibration_fingerprint="", tensors=tensors
    )


def test_a_range_ends_where_the_next_clamp_cuts():
    detector, pictures = small_detector(), some_pictures(16)
    with torch.no_grad():
        detector.backbone.blocks[0].norm.weight *= 10  # far beyond 6
    tensors = observe(detector, [pictures])["minmax"]
    graph = graph_of(simulated(detector, tensors))
    (clamp,) = (node for node in graph.graph.nodes if node.target == torch.ops.aten.hardtanh.default)
    before = tensors[clamp.args[0].args[0].name]
    assert 255 * before.scale[0] == pytest.approx(6.0, rel=1e-4) and before.zero_point == [-128]


def test_layers_that_stay_in_float_are_exact():
    detector, pictures = small_detector(), some_pictures(16)
    tensors = observe(detector, [pictures])["minmax"]
    every = list(layers_of(traced(detector)).values())
    with torch.inference_mode():
        whole = simulated(detector, tensors, every)
        torch.testing.assert_close(whole(pictures), detector(pictures))
        half = quantized(detector, _quantization(tensors, every[:4]))
        error = (half(pictures) - detector(pictures)).square().mean()
        full = quantized(detector, _quantization(tensors, []))
        assert 0 < error < (full(pictures) - detector(pictures)).square().mean()
    assert not [name for name, _, _ in observers_of(graph_of(whole))]
    assert every == ["stem", *(f"blocks.0.{name}" for name in ("depthwise", "gate", "project")), "mix"]


def test_quantizing_twice_is_refused(int8_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"is quantized already \(int8\)"):
        quantize(int8_run, demo_store, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q["tensors"].popitem(), r"the network, whose \w+ has \d+ scales: quantize the run again"),
        (lambda q: q.update(schema_version=1), "quantization.json is not valid"),
        (lambda q: next(iter(q["tensors"].values()))["scale"].append(1.0), "does not fit the network"),
    ],
)  # fmt: skip
def test_numbers_of_another_network_are_refused(int8_run, tmp_path, change, message):
    copy = shutil.copytree(int8_run, tmp_path / "run")
    quantization = json.loads((copy / "quantization.json").read_text())
    change(quantization)
    (copy / "quantization.json").write_text(json.dumps(quantization))
    forget_hashes(copy)
    with pytest.raises(StageError, match=message):
        pixel_detector(Run(copy))


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
        program = quantized(detector, _quantization(tensors, []))
        torch.testing.assert_close(program.backbone(pictures), expected, rtol=0.1, atol=0.05)
        assert torch.equal(simulated(detector, tensors, ["stem", "same"]).backbone(pictures), expected)


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
        program = quantized(detector, _quantization(tensors, []))
        assert snr_db(expected.double().numpy(), program.backbone(pictures).double().numpy()) > 20
        exact = simulated(detector, tensors, ["stem", "mixer"]).backbone(pictures)
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_the_quantizer_changes_is_refused(monkeypatch):
    monkeypatch.setattr("compress.graph._keep_apart", lambda graph, norm: None)
    detector = small_detector().with_parts(backbone=_Shared().eval())
    with pytest.raises(StageError, match=r"preparing test_byobnet for int8 moves outputs by .* on 8 crops"):
        observe(detector, [some_pictures(8)])
