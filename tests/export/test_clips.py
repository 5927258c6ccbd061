"""Clip students as artifacts: two programs that together give what the student gives in eager torch."""

import dataclasses
import json
import shutil

import coremltools as ct
import numpy as np
import pytest
import torch
from executorch.runtime import Runtime
from onnxruntime import InferenceSession
from torch import nn

from compress.quantize import quantize
from export import coreml, executorch
from export import onnx as onnx_writer
from export.bundle import Bundle
from export.evaluate import evaluate
from export.export import export
from export.forms import Form
from export.gate import SourceRun, gate, mistaken_scores
from export.golden import golden_clips, golden_inputs
from export.mil import MilProgram
from export.parity import compare
from export.programs import step_programs
from files import sha256_of
from models.pixels import PixelDetector, Preprocessing
from models.run import Run
from stage import StageError
from tests.conftest import export_here
from tests.export.clip_student import NAME, clip_bundle, clip_run, clip_student

RUNNABLE = (f"{NAME}.pte", f"{NAME}-onnx", f"{NAME}-coreml")
WHOLE = tuple(f"test_tiny-whole-clip-fp32.{ending}" for ending in ("pte", "onnx", "mlpackage"))
FRAMES = 4
FLOAT16 = 10
"""In Core ML's MIL.proto."""
BYTE, FLOAT = 0, 6
"""In ExecuTorch's scalar_type.fbs."""


@pytest.fixture(scope="module")
def run_path(demo_store, tmp_path_factory):
    return clip_run(demo_store, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(demo_store, tmp_path_factory) -> Bundle:
    return Bundle(clip_bundle(demo_store, tmp_path_factory))


@pytest.fixture(scope="module")
def eager(run_path) -> PixelDetector:
    run = Run(run_path)
    return PixelDetector(run.detector(), run.info.preprocessing).eval()


@pytest.fixture(scope="module")
def clips(opened_store):
    """Real clips of both labels, uint8 [6, 4, 64, 64, 3], in the first, third and fifth of which frames are missing."""
    pixels = np.stack([opened_store.pixels(clip) for clip in opened_store.clips("val")])
    valid = np.ones(pixels.shape[:2], np.bool_)
    valid[0, 1] = valid[2, 0] = valid[4, 2:] = False
    return pixels, valid


def _scores(detector, pixels, valid):
    with torch.inference_mode():
        return detector(torch.from_numpy(pixels), torch.from_numpy(valid)).numpy()


@pytest.mark.parametrize("file", [*RUNNABLE, *WHOLE])
def test_artifact_scores_as_eager_torch_with_and_without_invalid_frames(bundle, eager, clips, file):
    pixels, valid = clips
    runner = bundle.load(bundle.artifact(file))
    for flags in (valid, np.ones_like(valid)):
        expected = _scores(eager, pixels, flags)
        np.testing.assert_allclose(runner(pixels, flags), expected, atol=1e-4)
    assert np.abs(_scores(eager, pixels, valid) - expected)[[0, 2, 4]].min() > 1e-3
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("file", [*RUNNABLE, *WHOLE])
def test_pixels_of_an_invalid_frame_do_not_count(bundle, clips, file):
    pixels, valid = clips
    runner = bundle.load(bundle.artifact(file))
    noise = np.where(valid[..., None, None, None], pixels, 255 - pixels)
    np.testing.assert_allclose(runner(noise, valid), runner(pixels, valid), atol=1e-6)
    with pytest.raises(StageError, match="a clip has no valid frame"):
        runner(pixels, np.zeros_like(valid))


def test_core_ml_s_score_heeds_the_flags(bundle, eager):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(1, FRAMES, eager.network.embedding_size)).astype(np.float32)
    for flags in ([1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]):
        valid = np.array([flags], np.float32)
        with torch.inference_mode():
            logits = eager.network.head(torch.from_numpy(embeddings), torch.from_numpy(valid) > 0)
        package = bundle.path / f"{NAME}-coreml" / "score.mlpackage"
        found = MilProgram(package)(embeddings, valid)
        np.testing.assert_allclose(found, logits.softmax(-1)[:, 1], atol=1e-5)


def test_manifest_describes_both_programs(bundle, eager):
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    files = [file for pair in zip(RUNNABLE, WHOLE, strict=True) for file in pair]
    assert [artifact["file"] for artifact in manifest["artifacts"]] == files
    assert manifest["clip"]["aggregation"] == "score"
    assert manifest["clip"]["frames"] == FRAMES
    width = eager.network.embedding_size
    for artifact in manifest["artifacts"]:
        assert sha256_of(bundle.path / artifact["file"]) == artifact["sha256"]
        if artifact["file"] in WHOLE:
            (clip,) = artifact["programs"]
            assert (clip["name"], clip["file"]) == ("clip", artifact["file"])
            assert [given["shape"] for given in clip["inputs"]] == [[1, FRAMES, 64, 64, 3], [1, FRAMES]]
            assert clip["inputs"][0]["dtype"] == ("float32" if artifact["runtime"] == "coreml" else "uint8")
            assert clip["output"]["shape"] == [1]
            continue
        embed, score = artifact["programs"]
        assert (embed["name"], score["name"]) == ("embed", "score")
        for program in (embed, score):
            assert sha256_of(bundle.path / program["file"]) == program["sha256"]
        assert embed["inputs"][0]["shape"] == ([64, 64] if artifact["runtime"] == "coreml" else [1, 64, 64, 3])
        assert embed["output"]["shape"] == [1, width]
        assert [given["shape"] for given in score["inputs"]] == [[1, FRAMES, width], [1, FRAMES]]
        assert [given["name"] for given in score["inputs"]] == ["embeddings", "valid"]
        assert embed["operators"] and score["operators"]


def test_pte_has_the_manifest_s_methods(bundle, clips):
    program = Runtime.get().load_program(bundle.path / f"{NAME}.pte")
    assert program.method_names == {"embed", "score"}
    for described in bundle.artifact(f"{NAME}.pte").programs:
        metadata = program.metadata(described.name)
        shapes = [list(metadata.input_tensor_meta(i).sizes()) for i in range(metadata.num_inputs())]
        assert shapes == [given.shape for given in described.inputs]
        assert list(metadata.output_tensor_meta(0).sizes()) == described.output.shape
        kinds = [metadata.input_tensor_meta(i).dtype() for i in range(metadata.num_inputs())]
        assert kinds == [{"uint8": BYTE, "float32": FLOAT}[given.dtype] for given in described.inputs]


@pytest.mark.parametrize("file", [f"{NAME}-onnx", WHOLE[1]])
def test_onnx_takes_and_gives_what_the_manifest_says(bundle, file):
    for described in bundle.artifact(file).programs:
        session = InferenceSession(bundle.path / described.file)
        found = [(given.name, given.type, given.shape) for given in (*session.get_inputs(), *session.get_outputs())]
        types = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
        assert found == [(own.name, types[own.dtype], own.shape) for own in (*described.inputs, described.output)]


def test_golden_clips_are_of_both_labels_and_one_lacks_a_frame(bundle):
    pixels, valid = bundle.golden_inputs()
    assert pixels.shape == (6, FRAMES, 64, 64, 3)
    assert valid.shape == (6, FRAMES) and not valid.all() and valid.any(1).all()
    for file in RUNNABLE:
        actual = bundle.load(bundle.artifact(file))(pixels, valid)
        np.testing.assert_allclose(actual, bundle.manifest.golden.outputs[file], atol=1e-6)


def test_a_gap_in_one_golden_clip_leaves_the_others_to_tell_whether_flags_are_heeded(opened_store, monkeypatch):
    clips = opened_store.clips("val")
    gap = dataclasses.replace(clips[0], valid=np.array([True, False, True, True]))
    monkeypatch.setattr(opened_store, "clips", lambda split: [gap, *clips[1:]])
    pixels, valid = golden_clips(opened_store)
    assert (~valid).sum(axis=1).tolist() == [1] * 6
    first = int(np.flatnonzero((valid == gap.valid).all(axis=1))[0])
    np.testing.assert_array_equal(pixels[first], opened_store.pixels(gap))  # its gap has pictures of its own
    assert sum(picture.any() for picture in pixels[~valid]) == 1


class Swapped(nn.Module):
    """An ``embed`` with swapped channels."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, pixels):
        return self.embed(pixels.flip(-1))


class Heedless(nn.Module):
    """A ``score`` that takes every frame for valid."""

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, embeddings, valid):
        return self.score(embeddings, valid * 0 + 1)


@pytest.fixture(scope="module")
def source(run_path, opened_store) -> SourceRun:
    return SourceRun.load(run_path, golden_inputs(opened_store, "clip"))


@pytest.mark.parametrize(("program", "mistaken"), [("embed", Swapped), ("score", Heedless)])
def test_gate_refuses_a_mistaken_program(bundle, eager, run_path, source, tmp_path, program, mistaken):
    path, form = shutil.copytree(bundle.path / f"{NAME}-onnx", tmp_path / "artifact"), Form("onnxruntime", "steps")
    inputs = bundle.golden_inputs()
    assert all(step.passed for step in gate(path, form, source, source.golden, inputs).parity)
    torch_programs = step_programs(eager.network, Run(run_path).info.preprocessing, False, FRAMES)
    (right,) = (torch_program for torch_program in torch_programs if torch_program.name == program)
    onnx_writer.write([dataclasses.replace(right, module=mistaken(right.module))], path)
    with pytest.raises(
        StageError, match=r"artifact failed the parity gate .lowered. on 6 real inputs: scores differ by"
    ):
        gate(path, form, source, source.golden, inputs)


def test_every_mistake_is_beyond_the_tolerance(bundle, eager, source):
    inputs = bundle.golden_inputs()
    assert compare(source.golden, _scores(eager, *inputs), "fp32").passed
    for scores in mistaken_scores(eager, inputs).values():
        assert not compare(source.golden, scores, "fp32").passed


def test_both_programs_of_a_clip_student_go_to_core_ml_s_delegate(tmp_path):
    torch_programs = step_programs(clip_student(), Preprocessing.of("test_tiny"), False, FRAMES)
    written = executorch.write(torch_programs, tmp_path / "x.pte", "coreml")
    assert {name: operators[-1] for name, operators in written["operators"].items()} == {
        "embed": "CoreMLBackend", "score": "CoreMLBackend",
    }  # fmt: skip
    assert written["delegated_fraction"] > 0.9


@pytest.mark.parametrize(
    ("scheme", "formats", "batch"), [("int8", "executorch,onnx", "dynamic"), ("fp16", "coreml", "1")]
)
def test_a_clip_student_in_fewer_bits_is_exported(
    run_path, eager, demo_store, tmp_path, monkeypatch, scheme, formats, batch
):
    def forms(_info, asked):  # each in one of two ways, for the sake of time
        return [dataclasses.replace(f, method="steps" if f.runtime == "executorch" else "clip") for f in asked]

    monkeypatch.setattr("export.export.forms_of", forms)
    quantize(run_path, demo_store, tmp_path / "run", scheme=scheme, max_auc_drop=1.0)
    export_here([tmp_path / "run"], demo_store, tmp_path / "bundle", formats, batch=batch)
    made = Bundle(tmp_path / "bundle")
    exact = _scores(eager, *made.golden_inputs())
    for artifact in made.manifest.artifacts:
        assert artifact.method == ("steps" if artifact.runtime == "executorch" else "clip")
        assert artifact.scheme == scheme
        if artifact.runtime == "onnxruntime":
            assert artifact.batch is None
        if artifact.runtime == "coreml":
            assert _numbers_of_convolutions(tmp_path / "bundle" / artifact.programs[0].file) == {FLOAT16}
        else:
            assert np.abs(made.golden_outputs(artifact) - exact).max() > 1e-5  # not fp32


def _numbers_of_convolutions(package):
    """Return the data types that the convolutions of an ``.mlpackage`` give."""
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    outputs = [output for operation in block.operations if operation.type == "conv" for output in operation.outputs]
    return {output.type.tensorType.dataType for output in outputs}


def test_frame_and_clip_student_need_bundles_of_their_own(run_path, student_run, demo_store, tmp_path):
    with pytest.raises(StageError, match="the runs hold different students: export them into bundles of their own"):
        export([run_path, student_run], demo_store, tmp_path / "bundle")


def test_other_settings_reach_onnx_and_core_ml(tmp_path):
    detector = clip_student(pooling="max", layers=2, heads=4)
    embeddings = np.random.default_rng(0).normal(size=(1, FRAMES, detector.embedding_size)).astype(np.float32)
    valid = np.array([[0, 1, 1, 0]], np.float32)
    with torch.inference_mode():
        expected = detector.head(torch.from_numpy(embeddings), torch.from_numpy(valid) > 0).softmax(-1)[:, 1]
    torch_programs = step_programs(detector, Preprocessing.of("test_tiny"), False, FRAMES)[1:]
    onnx_writer.write(torch_programs, tmp_path / "x")
    coreml.write(torch_programs, tmp_path / "x")
    found = onnx_writer.opened(tmp_path / "x", 1)("score")(embeddings, valid)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = MilProgram(tmp_path / "x" / "score.mlpackage")(embeddings, valid)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_clips_of_another_length_than_in_training_are_refused(demo_store, tmp_path, tmp_path_factory):
    run = shutil.copytree(clip_run(demo_store, tmp_path_factory), tmp_path / "run")
    model = json.loads((run / "model.json").read_text())
    model["data"]["frames"] = 20
    (run / "model.json").write_text(json.dumps(model))
    message = r"was trained on clips of 20 frames, and .* holds clips of 4"
    with pytest.raises(StageError, match=message):
        export([run], demo_store, tmp_path / "bundle")
    with pytest.raises(StageError, match=message):
        evaluate(run, demo_store)
    assert not (run / "evaluations").exists()
