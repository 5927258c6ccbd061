"""Artifacts against torch on real crops, the gate against broken artifacts, and the bundle's schema."""

import json
import shutil
import sys
from importlib.metadata import version

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from compress.runs import pixel_detector
from export import onnx as onnx_writer
from export.bundle import Bundle
from export.export import export
from export.programs import TorchProgram, pixel_input, probability
from files import sha256_of
from models.detector import Architecture, Detector
from models.fusing import fuse
from models.pixels import PixelDetector, Preprocessing
from models.run import Run
from resuming import Lock
from stage import StageError
from tests.conftest import export_here
from tests.export.conftest import RUNNABLE, SOURCES


def _torch_scores(run_path, crops):
    with torch.inference_mode():
        return pixel_detector(Run(run_path))(torch.from_numpy(crops)).numpy()


@pytest.mark.parametrize("file", RUNNABLE)
def test_artifact_scores_as_torch_does(bundle, file, real_crops, request):
    scheme = "int8" if "int8" in file else "fp32"
    expected = _torch_scores(request.getfixturevalue(SOURCES[scheme]), real_crops)
    actual = bundle.load(bundle.artifact(file))(real_crops)
    assert actual.shape == (len(real_crops),)
    np.testing.assert_allclose(actual, expected, atol=1e-4 if scheme == "fp32" else 0.1)


@pytest.mark.parametrize("file", RUNNABLE)
def test_strided_crops_score_as_contiguous_ones(bundle, file, real_crops):
    wide = np.zeros((*real_crops.shape[:-1], 4), np.uint8)
    wide[..., :3] = real_crops
    runner = bundle.load(bundle.artifact(file))
    np.testing.assert_array_equal(runner(wide[..., :3]), runner(real_crops))


def test_schemes_of_torch_alone_are_refused(drawn_run, demo_store, tmp_path):
    run = drawn_run(tmp_path / "run", {"kind": "student", "scheme": "autocast"})
    with pytest.raises(StageError, match=r"is in autocast, which no runtime of a phone has: bench the run itself"):
        export([run], demo_store, tmp_path / "bundle")


def test_int8_onnx_has_unsigned_activations_and_signed_weights(bundle):
    graph = onnx.load(bundle.path / "test_byobnet-int8.onnx").graph
    constants = {constant.name: constant for constant in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) > 10
    assert {constants[node.input[2]].data_type for node in quantized} == {TensorProto.UINT8}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert {constants[node.input[0]].data_type for node in weights} == {TensorProto.INT8}


def test_zero_points_move_by_128_and_nothing_else(int8_run, bundle):
    quantization = json.loads((int8_run / "quantization.json").read_text())
    stored = {t["zero_point"][0] + 128 for t in quantization["tensors"].values() if len(t["scale"]) == 1}
    graph = onnx.load(bundle.path / "test_byobnet-int8.onnx").graph
    constants = {constant.name: constant for constant in graph.initializer}
    found = {int(numpy_helper.to_array(constants[n.input[2]])) for n in graph.node if n.op_type == "QuantizeLinear"}
    assert found <= stored


def test_manifest_says_all_that_an_app_needs(bundle, opened_store):
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert set(manifest) == {
        "schema_version", "backbone", "crop", "clip", "artifacts", "absent", "golden", "weights", "data", "diagnoses",
        "tools",
    }  # fmt: skip
    assert manifest["crop"]["rule"] == {"size": 64, "margin": 1.3, "fit": "resize", "fill": 0}
    for example in manifest["crop"]["examples"]:
        square = opened_store.info.settings.crop.square(example["box"])
        assert square == (example["left"], example["top"], example["side"])
    assert [a["file"].rsplit(".")[-1] for a in manifest["artifacts"]] == ["pte", "onnx", "mlpackage"] * 2
    assert set(manifest["artifacts"][0]) == {
        "file", "sha256", "bytes", "runtime", "scheme", "minimum_os", "licence", "programs", "threshold",
        "threshold_from", "delegate", "delegated_fraction", "phone_check", "companions", "parity", "not_checked",
        "evaluated_by", "source_run", "student", "validation", "untold",
    }  # fmt: skip
    for artifact in manifest["artifacts"]:
        assert sha256_of(bundle.path / artifact["file"]) == artifact["sha256"]
        (program,) = artifact["programs"]
        assert set(program) == {"name", "file", "sha256", "bytes", "inputs", "output", "operators", "macs"}
        assert (program["sha256"], program["bytes"]) == (artifact["sha256"], artifact["bytes"])
        assert (program["name"], program["file"]) == ("forward", artifact["file"])
        (given,) = program["inputs"]
        layout = given["layout"], given["shape"]
        assert layout == (("RGB image", [64, 64]) if artifact["runtime"] == "coreml" else ("NHWC", [1, 64, 64, 3]))


def test_the_manifest_says_how_well_each_artifact_tells_validation_clips_apart(bundle, opened_store):
    clips = opened_store.clips("val")
    labels = np.array([clip.label for clip in clips])
    for file in RUNNABLE:
        artifact = bundle.artifact(file)
        scores = np.array([bundle.load(artifact)(opened_store.pixels(c)[c.valid]).mean() for c in clips])
        pairs = scores[labels == 1][:, None] - scores[labels == 0]
        said = artifact.validation
        assert (said.real, said.fake) == tuple(np.bincount(labels))
        assert said.auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
        assert said.found == (scores[labels == 1] > artifact.threshold.value).mean()


def test_the_manifest_says_how_many_videos_are_called_fake(bundle, opened_store):
    clips = opened_store.clips("val")
    for file in RUNNABLE:
        artifact = bundle.artifact(file)
        score, frames, labels = bundle.load(artifact), {}, {}
        for clip in clips:
            frames.setdefault(clip.video_id, []).extend(score(opened_store.pixels(clip)[clip.valid]))
            labels[clip.video_id] = clip.label
        called = [(labels[video], np.mean(own) > artifact.threshold.value) for video, own in frames.items()]
        said = artifact.validation
        assert (said.real_videos, said.fake_videos) == tuple(np.bincount([label for label, _ in called]))
        assert said.video_false_positive_rate == np.mean([fake for label, fake in called if not label])
        assert said.videos_found == np.mean([fake for label, fake in called if label])


def test_core_ml_package_takes_an_rgb_image_and_computes_in_float32(bundle):
    import coremltools as ct

    spec = ct.models.MLModel(str(bundle.path / "test_byobnet-fp32.mlpackage"), skip_model_load=True).get_spec()
    image = spec.description.input[0].type.imageType
    assert (image.width, image.height) == (64, 64)
    assert image.colorSpace == ct.proto.FeatureTypes_pb2.ImageFeatureType.RGB
    assert spec.description.output[0].name == "fake_probability"
    block = spec.mlProgram.functions["main"].block_specializations["CoreML7"]
    dtypes = {o.type.tensorType.dataType for op in block.operations if op.type == "conv" for o in op.outputs}
    assert dtypes == {ct.proto.MIL_pb2.DataType.FLOAT32}


def test_core_ml_package_says_what_it_is(bundle):
    import coremltools as ct

    said = ct.models.MLModel(str(bundle.path / "test_byobnet-int8.mlpackage"), skip_model_load=True)
    assert said.author.startswith("Pocketproof ") and said.version in said.author
    assert said.license == bundle.manifest.weights.licence != ""
    assert said.user_defined_metadata["classes"].startswith("real, fake")
    assert "probability" in said.short_description


def test_a_transformer_teacher_goes_to_phones(tiny_transformer, demo_store, tmp_path):
    """As a baseline to compare with on the phone."""
    formats = "executorch,coreml"  # ONNX has every operation of torch's
    export_here([tiny_transformer], demo_store, tmp_path / "bundle", formats)
    artifacts = Bundle(tmp_path / "bundle").manifest.artifacts
    assert [artifact.runtime for artifact in artifacts] == ["executorch", "coreml"]
    assert all(artifact.parity[-1].max_difference < 1e-4 and not artifact.not_checked for artifact in artifacts)


def test_core_ml_is_said_to_be_evaluated_off_a_mac(bundle):
    by = "by Pocketproof, not by Core ML, which needs macOS"
    for artifact in bundle.manifest.artifacts:
        evaluated = artifact.runtime == "coreml" and sys.platform != "darwin"
        assert artifact.evaluated_by == (by if evaluated else None)
        assert all(step.passed for step in artifact.parity) and artifact.not_checked == ""
        assert artifact.threshold_from == "its own validation scores"


def test_each_artifact_has_its_own_threshold(bundle, opened_store):
    from compress.scoring import score_split

    artifact = bundle.artifact("test_byobnet-int8.onnx")
    val = score_split(bundle.load(artifact), opened_store, "val")
    assert artifact.threshold == val.choose_threshold()
    assert artifact.threshold_from == "its own validation scores"


def test_unknown_format_lists_the_known(student_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"--format 'tflite' is unknown: give some of executorch,onnx,coreml"):
        export([student_run], demo_store, tmp_path / "out", format="onnx,tflite")


def test_repvit_is_fused_in_its_artifact(tmp_path):
    fused = fuse(Detector(Architecture(backbone="repvit_m0_9", size=64)), torch.zeros(1, 3, 64, 64))
    detector = PixelDetector(fused, Preprocessing.of("repvit_m0_9"))
    onnx_writer.write([TorchProgram("forward", detector, (pixel_input(64),), probability())], tmp_path / "repvit.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "repvit.onnx").graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 103


def test_two_exports_do_not_make_one_bundle(student_run, demo_store, tmp_path):
    with Lock(tmp_path / "bundle"), pytest.raises(StageError, match=r"bundle is being made by another process"):
        export([student_run], demo_store, tmp_path / "bundle")


def test_runs_of_two_students_are_refused(student_run, int8_run, demo_store, tmp_path):
    other = shutil.copytree(int8_run, tmp_path / "other-int8")
    model = json.loads((other / "model.json").read_text())
    for parent in model["parents"]:
        parent["sha256"] = "ab" * 32
    (other / "model.json").write_text(json.dumps(model))
    with pytest.raises(StageError, match=r"the runs come from different fp32 runs: export them into bundles of their"):
        export([student_run, other], demo_store, tmp_path / "bundle")


def test_a_bundle_says_whom_its_thresholds_know(student_run, demo_store, tmp_path, capsys):
    run = shutil.copytree(student_run, tmp_path / "run")
    told = json.loads((run / "model.json").read_text())
    told["data"] |= {"fingerprint": "of another store", "notes": ["Of another store."], "validation_persons": None}
    (run / "model.json").write_text(json.dumps(told))
    notes = export([run], demo_store, tmp_path / "bundle", format="onnx").manifest.data.notes
    assert notes[0] == "Of another store."
    assert " of persons in the training or validation of run: weights or thresholds that were chosen" in notes[-1]
    text, said = (tmp_path / "bundle" / "README.md").read_text(), capsys.readouterr().err
    assert all(f"Note: {note}\n" in text for note in notes) and f"note: {notes[-1]}\n" in said
    assert "fp32.onnx: forward: NNAPI could take " in said


def test_onnx_files_are_of_a_version_that_the_oldest_runtime_they_name_reads(bundle):
    artifact = bundle.artifact("test_byobnet-int8.onnx")
    model = onnx.load(bundle.path / artifact.file)
    assert (model.ir_version, model.opset_import[0].version) == (9, 20)
    assert "opset 20, IR version 9: version 1.17 or newer" in artifact.minimum_os
    assert bundle.manifest.tools["onnxruntime"] == version("onnxruntime")


def test_core_ml_packages_hold_what_core_ml_reads_and_no_more(bundle):
    assert sorted(path.name for path in (bundle.path / "test_byobnet-int8.mlpackage").iterdir()) == [
        "Data",
        "Manifest.json",
    ]
