"""int8: rebuilt from numbers, near its float source, and refused when the numbers do not fit."""

import json
import shutil

import numpy as np
import pytest
import torch

from compress.int8 import Quantization
from compress.quantize import calibration_pictures, quantize
from compress.runs import pixel_detector
from export.export import deployable
from export.parity import logits_of, snr_db
from models.detector import PixelDetector
from models.run import Run
from stage import StageError


def _scores(run_path, crops, dynamic_batch=True):
    with torch.inference_mode():
        detector = pixel_detector(Run(run_path), dynamic_batch)
        batches = [crops] if dynamic_batch else [crop[None] for crop in crops]
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
        "schema_version", "quantizer", "weights", "activations", "calibration_crops", "calibration_fingerprint",
        "tensors",
    }  # fmt: skip
    assert quantization["calibration_crops"] == 24


def test_int8_is_near_its_float_source(student_run, int8_run, real_crops):
    expected, actual = _scores(student_run, real_crops), _scores(int8_run, real_crops)
    assert snr_db(logits_of(expected), logits_of(actual)) >= 15.0
    assert not np.array_equal(expected, actual)


def test_rebuilding_gives_the_same_scores_every_time_and_at_batch_one(int8_run, real_crops):
    first = _scores(int8_run, real_crops)
    np.testing.assert_array_equal(first, _scores(int8_run, real_crops))
    np.testing.assert_allclose(first, _scores(int8_run, real_crops, dynamic_batch=False), atol=1e-5)


def test_weights_are_rounded_to_their_stored_scales(int8_run):
    run = Run(int8_run)
    quantization = Quantization.model_validate_json(run.read("quantization.json"))
    program = deployable(run, None, dynamic_batch=False).network
    stored = [value for value in program.state_dict().values() if value.dtype == torch.int8]
    per_channel = [tensor for tensor in quantization.tensors.values() if len(tensor.scale) > 1]
    assert len(stored) == len(per_channel)
    # Symmetric per channel: each channel's largest weight becomes 127, unless its scale is XNNPACK's floor.
    largest = torch.cat([integers.flatten(1).abs().amax(1) for integers in stored])
    above_floor = sum(scale > 2**-12 for tensor in per_channel for scale in tensor.scale)
    assert int((largest == 127).sum()) >= above_floor > 100
    head = next(tensor for tensor in per_channel if tensor.of == "head_weight")
    expected = (run.detector().head.weight.detach() / torch.tensor(head.scale)[:, None]).round().clamp(-127, 127)
    assert any(torch.equal(expected.to(torch.int8), integers) for integers in stored)


def test_calibration_takes_training_crops_of_both_labels(student_run, opened_store):
    run = Run(student_run)
    pixels_in = PixelDetector(run.detector(), run.info.preprocessing)
    pictures = torch.cat(calibration_pictures(pixels_in, opened_store, 16, seed=0))
    assert pictures.shape == (16, 3, 64, 64)
    train = torch.cat([pixels_in.pictures(torch.from_numpy(p)) for _, p in opened_store.scored_clips("train")])
    labels = np.repeat([c.label for c in opened_store.clips("train")], opened_store.frames)
    found = [int((train == picture).flatten(1).all(1).nonzero()[0]) for picture in pictures]
    assert sorted(labels[found]) == [0] * 8 + [1] * 8


def test_quantizing_twice_is_refused(int8_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"is quantized already \(int8\)"):
        quantize(int8_run, demo_store, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q["tensors"].popitem(), r"names \d+ tensors, the network has \d+ to quantize"),
        (lambda q: q.update(schema_version=2), "quantization.json is not valid"),
        (lambda q: q["tensors"].update(activation_post_process_0={"of": "elsewhere", "scale": [1], "zero_point": [0]}),
         "and they differ: quantize the run again"),
    ],
)  # fmt: skip
def test_numbers_of_another_network_are_refused(int8_run, tmp_path, change, message):
    copy = shutil.copytree(int8_run, tmp_path / "run")
    quantization = json.loads((copy / "quantization.json").read_text())
    change(quantization)
    (copy / "quantization.json").write_text(json.dumps(quantization))
    with pytest.raises(StageError, match=message):
        pixel_detector(Run(copy))
