"""Artifacts against torch on real crops, the gate against broken artifacts, and the bundle's schema."""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.runs import pixel_detector
from export import executorch as pte
from export import onnx as onnx_writer
from export.bundle import Bundle
from export.export import export
from export.forms import Form
from export.gate import NormalizedTwice, SourceRun, gate
from export.golden import golden_crops, golden_inputs
from export.parity import TOLERANCES, UnfitArtifact, compare
from export.programs import Graph, pixel_input, probability
from export.runtimes import load_artifact
from files import Lock, sha256_of
from models.detector import Architecture, Detector, PixelDetector, Preprocessing
from models.fusing import fuse
from models.run import Run
from stage import StageError
from tests.conftest import export_here

SOURCES = {"fp32": "student_run", "int8": "int8_run"}
RUNNABLE = tuple(f"test_byobnet-{scheme}.{suffix}" for suffix in ("pte", "onnx", "mlpackage") for scheme in SOURCES)


@pytest.fixture(scope="module")
def bundle(bundle_path) -> Bundle:
    return Bundle(bundle_path)


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


class Mistaken(nn.Module):
    """A detector whose graph swaps channels or transposes the picture."""

    def __init__(self, detector: nn.Module, mistake: str) -> None:
        super().__init__()
        self.detector, self.mistake = detector, mistake

    def forward(self, pixels):
        return self.detector(pixels.flip(-1) if self.mistake == "channels swapped" else pixels.transpose(1, 2))


@pytest.fixture(scope="module")
def sources(student_run, int8_run, opened_store):
    crops = golden_inputs(opened_store, "frame")
    return {scheme: SourceRun.load(run, crops) for scheme, run in (("fp32", student_run), ("int8", int8_run))}


@pytest.fixture(scope="module")
def detectors(sources):
    return {scheme: pixel_detector(source.run, dynamic_batch=False) for scheme, source in sources.items()}


MISTAKES = ("channels swapped", "normalized twice", "transposed")


@pytest.mark.parametrize(
    ("runtime", "scheme", "mistake"),
    [("onnxruntime", scheme, mistake) for scheme in ("fp32", "int8") for mistake in MISTAKES]
    + [("executorch", "fp32", "channels swapped")],
)
def test_gate_refuses_a_mistaken_artifact(runtime, scheme, mistake, sources, detectors, opened_store, tmp_path):
    source, detector = sources[scheme], detectors[scheme]
    writer, suffix = (onnx_writer, "onnx") if runtime == "onnxruntime" else (pte, "pte")
    mistaken = NormalizedTwice(detector) if mistake == "normalized twice" else Mistaken(detector, mistake)
    path = tmp_path / f"mistaken.{suffix}"
    writer.write([Graph("forward", mistaken, (pixel_input(64),), probability())], path)
    with pytest.raises(StageError, match=rf"mistaken.{suffix} failed the parity gate .lowered. on 32 real .* is"):
        gate(path, Form(runtime), source, source.golden, (golden_crops(opened_store),))


@pytest.mark.parametrize("file", RUNNABLE)
@pytest.mark.parametrize("mistake", ["channels swapped", "transposed"])
def test_every_artifact_on_mistaken_pixels_is_beyond_the_tolerance(bundle, file, mistake, sources):
    source = sources["int8" if "int8" in file else "fp32"]
    (pixels,) = bundle.golden_inputs()
    wrong = pixels[..., ::-1] if mistake == "channels swapped" else pixels.transpose(0, 2, 1, 3)
    runner = bundle.load(bundle.artifact(file))
    assert compare(source.golden, runner(pixels), source.run.info.scheme, source.least_snr_db).passed
    assert not compare(source.golden, runner(wrong), source.run.info.scheme, source.least_snr_db).passed


def test_grey_pictures_pass_and_their_colours_are_said_to_be_untold(student_run, bundle, opened_store):
    grey = np.repeat(golden_crops(opened_store)[..., 1:2], 3, axis=-1)
    source = SourceRun.load(student_run, (grey,))
    assert source.untold == ["swapped colours"] and source.fused.passed
    path = bundle.path / "test_byobnet-fp32.onnx"
    assert all(step.passed for step in gate(path, Form("onnxruntime"), source, source.golden, (grey,)).parity)


def test_schemes_of_torch_alone_are_refused(drawn_run, demo_store, tmp_path):
    run = drawn_run(tmp_path / "run", {"kind": "student", "scheme": "autocast"})
    with pytest.raises(StageError, match=r"is in autocast, which no runtime of a phone has: bench the run itself"):
        export([run], demo_store, tmp_path / "bundle")


def test_failed_gate_leaves_no_bundle(student_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "fp32", 0.0)
    with pytest.raises(StageError, match=r"test_byobnet-fp32.onnx failed the parity gate"):
        export_here([student_run], demo_store, tmp_path / "bundle", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_fails_the_gate_is_kept_out_and_the_others_are_there(
    student_run, demo_store, tmp_path, monkeypatch, capfd
):
    def unlike(path, *args):
        if path.suffix == ".onnx":
            raise UnfitArtifact(f"{path.name} failed the parity gate (lowered)")
        return gate(path, *args)

    monkeypatch.setattr("export.artifact.gate", unlike)
    with pytest.raises(StageError, match=r"bundle is written without test_byobnet-fp32.onnx: the reasons are above"):
        export_here([student_run], demo_store, tmp_path / "bundle", "onnx,coreml")
    assert "no test_byobnet-fp32.onnx: test_byobnet-fp32.onnx failed the parity gate" in capfd.readouterr().err
    made = Bundle(tmp_path / "bundle")
    assert [artifact.file for artifact in made.manifest.artifacts] == ["test_byobnet-fp32.mlpackage"]
    assert [absent.file for absent in made.manifest.absent] == ["test_byobnet-fp32.onnx"]
    assert not (tmp_path / "bundle" / "test_byobnet-fp32.onnx").exists() and made.check_files() > 5


def test_a_compiler_that_fails_costs_only_its_own_artifact(student_run, demo_store, tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise AssertionError("guard failed\nin 100 lines")

    monkeypatch.setattr("export.onnx.write", broken)
    with pytest.raises(StageError, match=r"bundle is written without test_byobnet-fp32.onnx: the reasons are above"):
        export_here([student_run], demo_store, tmp_path / "bundle", "onnx,coreml")
    assert "test_byobnet-fp32.onnx cannot be written (AssertionError: guard failed)\n" in capfd.readouterr().err
    assert [own.file for own in Bundle(tmp_path / "bundle").manifest.artifacts] == ["test_byobnet-fp32.mlpackage"]


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


def test_golden_outputs_are_what_the_artifacts_give(bundle):
    (pixels,) = bundle.golden_inputs()
    assert pixels.shape == (32, 64, 64, 3)
    raw = (bundle.path / "golden" / "pixels.bin").read_bytes()
    assert len(raw) == pixels.size
    for file in RUNNABLE:
        actual = bundle.load(bundle.artifact(file))(pixels)
        np.testing.assert_allclose(actual, bundle.manifest.golden.outputs[file], atol=1e-6)


def test_each_artifact_has_its_own_threshold(bundle, opened_store):
    from compress.scoring import score_split

    artifact = bundle.artifact("test_byobnet-int8.onnx")
    val = score_split(bundle.load(artifact), opened_store, "val")
    assert artifact.threshold == val.choose_threshold()
    assert artifact.threshold_from == "its own validation scores"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "test_byobnet-fp32.onnx").write_bytes(b"other"), r"SHA-256 differs"),
        (lambda path: (path / "test_byobnet-fp32.onnx").unlink(), "lacks its artifact test_byobnet-fp32.onnx"),
        (lambda path: (path / "manifest.json").unlink(), "is not a bundle: it has no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is not valid: backbone"),
    ],
)
def test_spoiled_bundle_is_refused(bundle, tmp_path, spoil, message):
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    spoil(copy)
    with pytest.raises(StageError, match=message):
        opened = Bundle(copy)
        opened.load(opened.artifact("test_byobnet-fp32.onnx"))


def test_path_out_of_the_bundle_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"test_byobnet-fp32.onnx"', '"../elsewhere.onnx"'))
    (tmp_path / "elsewhere.onnx").write_bytes((copy / "test_byobnet-fp32.onnx").read_bytes())
    opened = Bundle(copy)
    with pytest.raises(StageError, match=r"lacks its artifact \.\./elsewhere.onnx"):
        opened.load(opened.artifact("../elsewhere.onnx"))


@pytest.mark.parametrize(("suffix", "runtime"), [("onnx", "onnxruntime"), ("pte", "executorch")])
def test_file_that_is_no_program_gets_one_line(tmp_path, suffix, runtime):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"not a program at all" * 250)
    with pytest.raises(StageError, match=rf"x.{suffix} cannot be loaded by {runtime}: "):
        load_artifact(path, runtime, 1)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [("Identity", TensorProto.UINT8), ("Cast", TensorProto.FLOAT), ("ReduceMax", TensorProto.FLOAT)],
)
def test_a_program_that_gives_no_probabilities_gets_one_line(tmp_path, operator, kind):
    """The pixels as they are, as numbers beyond 1, and the largest of them."""
    given = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 8, 8, 3])
    found = helper.make_tensor_value_info("p", kind, None)
    first = helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT)
    last = helper.make_node(operator, ["numbers" if operator == "ReduceMax" else "pixels"], ["p"],
                            **{"Cast": {"to": kind}, "ReduceMax": {"keepdims": 1}}.get(operator, {}))  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(helper.make_graph([first, last], "g", [given], [found]), opset_imports=opset,
                                ir_version=10), tmp_path / "x.onnx")  # fmt: skip
    run = load_artifact(tmp_path / "x.onnx", "onnxruntime", 1)
    with pytest.raises(StageError, match=r"x\.onnx: forward does not give P\(fake\) of each of 2 samples"):
        run(np.full((2, 8, 8, 3), 200, np.uint8))


def test_unknown_format_lists_the_known(student_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"--format 'tflite' is unknown: give some of executorch,onnx,coreml"):
        export([student_run], demo_store, tmp_path / "out", format="onnx,tflite")


def test_repvit_is_fused_in_its_artifact(tmp_path):
    fused = fuse(Detector(Architecture(backbone="repvit_m0_9", size=64)), torch.zeros(1, 3, 64, 64))
    detector = PixelDetector(fused, Preprocessing.of("repvit_m0_9"))
    onnx_writer.write([Graph("forward", detector, (pixel_input(64),), probability())], tmp_path / "repvit.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "repvit.onnx").graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 103


def _changed(bundle: Bundle, out: Path, **changes: object) -> Path:
    """Write a bundle of the manifest and the golden pixels alone, with other values at ``changes``."""
    out.mkdir()
    shutil.copytree(bundle.path / "golden", out / "golden")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | changes))
    return out


def test_a_bundle_of_another_schema_version_is_told_by_its_version(bundle, tmp_path):
    path = _changed(bundle, tmp_path / "old", schema_version=1, artifacts=[{"input": "as it was in version 1"}])
    with pytest.raises(StageError, match=r"manifest.json is of schema version 1, this program reads 10"):
        Bundle(path)


def test_an_artifact_that_is_the_folder_above_is_refused(bundle, tmp_path):
    artifacts = [bundle.manifest.artifacts[0].model_copy(update={"file": ".."}).model_dump(mode="json")]
    opened = Bundle(_changed(bundle, tmp_path / "out", artifacts=artifacts))
    with pytest.raises(StageError, match=r"lacks its artifact \.\.: export it again"):
        opened.load(opened.artifact(".."))


def test_golden_pixels_of_another_shape_are_refused(bundle, tmp_path):
    golden = bundle.manifest.golden.model_dump() | {"shape": [31, 64, 64, 3]}
    opened = Bundle(_changed(bundle, tmp_path / "out", golden=golden))
    with pytest.raises(StageError, match=r"is not of the shape that manifest.json states: export the bundle again"):
        opened.golden_inputs()


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
