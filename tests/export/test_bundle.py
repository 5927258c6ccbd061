"""Bundles: what they give back, and spoiled ones, which are refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.bundle import Bundle
from export.runtimes import load_artifact
from stage import StageError
from tests.export.clip_student import clip_bundle
from tests.export.conftest import RUNNABLE


def test_golden_outputs_are_what_the_artifacts_give(bundle):
    (pixels,) = bundle.golden_inputs()
    assert pixels.shape == (32, 64, 64, 3)
    raw = (bundle.path / "golden" / "pixels.bin").read_bytes()
    assert len(raw) == pixels.size
    for file in RUNNABLE:
        actual = bundle.load(bundle.artifact(file))(pixels)
        np.testing.assert_allclose(actual, bundle.manifest.golden.outputs[file], atol=1e-6)


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


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs on a Mac")
def test_a_bundle_for_macs_alone_says_which_artifact_is_evaluated_elsewhere(bundle, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["artifacts"] = [entry for entry in manifest["artifacts"] if entry["runtime"] == "coreml"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    first = manifest["artifacts"][0]["file"]
    with pytest.raises(StageError, match=rf"can run on this machine: give --artifact {first}, which Pocketproof"):
        Bundle(copy).chosen(None)


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


def test_which_golden_frames_count_is_told_of_each_clip_and_frame(demo_store, tmp_path_factory, tmp_path):
    bundle = shutil.copytree(clip_bundle(demo_store, tmp_path_factory), tmp_path / "bundle")
    told = json.loads((bundle / "manifest.json").read_text())
    clips, frames = told["golden"]["shape"][:2]
    assert clips != frames
    told["golden"]["valid"] = [[True] * clips] * frames  # transposed
    (bundle / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(StageError, match=r"pixels\.bin is not of the shape that manifest\.json states"):
        Bundle(bundle).golden_inputs()
