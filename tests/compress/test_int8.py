"""int8: rebuilt from numbers, near its float source, and refused when the numbers do not fit."""

import json
import shutil

import numpy as np
import pytest
import torch

from compress.fidelity import logits_of, snr_db
from compress.graph import layers_of, traced
from compress.int8 import Quantization, graph_of, observe, observers_of, quantized, simulated
from compress.quantize import quantize
from compress.runs import pixel_detector
from models.run import Run
from stage import StageError
from tests.compress.small_network import quantization_of, small_detector, some_pictures
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


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_the_program_is_its_simulation(observer):
    detector, pictures = small_detector(), some_pictures(16)
    quantization = quantization_of(observe(detector, [pictures])[observer], [], observer)
    with torch.inference_mode():
        program = quantized(detector, quantization)(pictures)
        simulation = simulated(detector, quantization.tensors)(pictures)
    torch.testing.assert_close(program, simulation, rtol=1e-5, atol=1e-5)
    assert (program - detector(pictures)).abs().max() > 1e-3


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
        half = quantized(detector, quantization_of(tensors, every[:4]))
        error = (half(pictures) - detector(pictures)).square().mean()
        full = quantized(detector, quantization_of(tensors))
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
