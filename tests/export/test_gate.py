"""The gate: an artifact that does not give what its run gives is in no bundle."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from compress.runs import pixel_detector
from export import executorch as pte
from export import onnx as onnx_writer
from export.bundle import Bundle
from export.forms import Form
from export.gate import NormalizedTwice, SourceRun, gate
from export.golden import golden_crops, golden_inputs
from export.parity import TOLERANCES, compare
from export.programs import TorchProgram, pixel_input, probability
from export.runtimes import UnfitArtifact
from stage import StageError
from tests.conftest import export_here
from tests.export.clip_student import frame_run
from tests.export.conftest import RUNNABLE


class Mistaken(nn.Module):
    """A detector whose graph swaps channels or transposes the picture."""

    def __init__(self, detector: nn.Module, mistake: str) -> None:
        super().__init__()
        self.detector, self.mistake = detector, mistake

    def forward(self, pixels):
        return self.detector(pixels.flip(-1) if self.mistake == "channels swapped" else pixels.transpose(1, 2))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A student of two convolutions, for what any network shows."""
    return frame_run(tmp_path_factory)


@pytest.fixture(scope="module")
def sources(student_run, int8_run, tiny_run, opened_store):
    crops = golden_inputs(opened_store, "frame")
    return {
        name: SourceRun.load(run, crops)
        for name, run in (("fp32", student_run), ("int8", int8_run), ("tiny", tiny_run))
    }


@pytest.fixture(scope="module")
def detectors(sources):
    return {name: pixel_detector(source.run) for name, source in sources.items()}


MISTAKES = ("channels swapped", "normalized twice", "transposed")


@pytest.mark.parametrize(
    ("runtime", "name", "mistake"),
    [("onnxruntime", name, mistake) for name in ("fp32", "int8") for mistake in MISTAKES]
    + [("executorch", "tiny", mistake) for mistake in MISTAKES],
)
def test_gate_refuses_a_mistaken_artifact(runtime, name, mistake, sources, detectors, opened_store, tmp_path):
    source, detector = sources[name], detectors[name]
    writer, suffix = (onnx_writer, "onnx") if runtime == "onnxruntime" else (pte, "pte")
    mistaken = NormalizedTwice(detector) if mistake == "normalized twice" else Mistaken(detector, mistake)
    path = tmp_path / f"mistaken.{suffix}"
    writer.write([TorchProgram("forward", mistaken, (pixel_input(64),), probability())], path)
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


def test_an_artifact_that_its_runtime_cannot_load_is_unfit_and_its_scratch_folder_is_not_named(
    sources, opened_store, tmp_path
):
    (tmp_path / "student.onnx").write_bytes(b"no model")
    source, form = sources["fp32"], Form("onnxruntime")
    with pytest.raises(UnfitArtifact, match=r"^student.onnx cannot be loaded by onnxruntime"):
        gate(tmp_path / "student.onnx", form, source, source.golden, golden_inputs(opened_store, "frame"))


def test_failed_gate_leaves_no_bundle(student_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "fp32", 0.0)
    with pytest.raises(StageError, match=r"test_byobnet-fp32.onnx failed the parity gate"):
        export_here([student_run], demo_store, tmp_path / "bundle", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_fails_the_gate_is_kept_out_and_the_others_are_there(
    tiny_run, demo_store, tmp_path, monkeypatch, capfd
):
    def unlike(path, *args):
        if path.suffix == ".onnx":
            raise UnfitArtifact(f"{path.name} failed the parity gate (lowered)")
        return gate(path, *args)

    monkeypatch.setattr("export.artifact.gate", unlike)
    with pytest.raises(StageError, match=r"bundle is written without test_tiny-fp32.onnx: the reasons are above"):
        export_here([tiny_run], demo_store, tmp_path / "bundle", "onnx,coreml")
    assert "no test_tiny-fp32.onnx: test_tiny-fp32.onnx failed the parity gate" in capfd.readouterr().err
    made = Bundle(tmp_path / "bundle")
    assert [artifact.file for artifact in made.manifest.artifacts] == ["test_tiny-fp32.mlpackage"]
    assert [absent.file for absent in made.manifest.absent] == ["test_tiny-fp32.onnx"]
    assert not (tmp_path / "bundle" / "test_tiny-fp32.onnx").exists() and made.check_files() > 5


def test_an_artifact_that_gives_a_validation_clip_no_number_is_kept_out(
    tiny_run, demo_store, tmp_path, monkeypatch, capfd
):
    def overflows(path, *args):
        gated = gate(path, *args)
        nan = lambda *inputs: np.full(len(inputs[0]), np.nan, np.float32)  # noqa: E731
        return replace(gated, scorer=nan) if path.suffix == ".onnx" else gated

    monkeypatch.setattr("export.artifact.gate", overflows)
    with pytest.raises(StageError, match=r"bundle is written without test_tiny-fp32.onnx: the reasons are above"):
        export_here([tiny_run], demo_store, tmp_path / "bundle", "onnx,coreml")
    assert "no test_tiny-fp32.onnx: test_tiny-fp32.onnx: score val: the score of clip " in capfd.readouterr().err
    assert [own.file for own in Bundle(tmp_path / "bundle").manifest.artifacts] == ["test_tiny-fp32.mlpackage"]


def test_a_compiler_that_fails_costs_only_its_own_artifact(tiny_run, demo_store, tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise AssertionError("guard failed\nin 100 lines")

    monkeypatch.setattr("export.onnx.write", broken)
    with pytest.raises(StageError, match=r"bundle is written without test_tiny-fp32.onnx: the reasons are above"):
        export_here([tiny_run], demo_store, tmp_path / "bundle", "onnx,coreml")
    assert "test_tiny-fp32.onnx cannot be written (AssertionError: guard failed)\n" in capfd.readouterr().err
    assert [own.file for own in Bundle(tmp_path / "bundle").manifest.artifacts] == ["test_tiny-fp32.mlpackage"]
