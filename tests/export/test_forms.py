"""Other forms of artifacts: batches for servers, ONNX Runtime's own format, and the names that tell them apart."""

import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from export.bundle import Bundle
from export.export import export
from export.forms import Form, parse_forms
from export.onnx import session_options
from export.runtimes import in_batches
from export.verify import verify
from models.detector import Architecture
from models.run import Run
from models.temporal import TemporalSettings
from stage import StageError
from tests.conftest import export_here, shared
from tests.export.clip_student import clip_run

CLIP = {"activation": "relu", "temporal": TemporalSettings()}


@pytest.fixture(scope="module")
def for_servers(demo_store, student_run, int8_run, tmp_path_factory) -> Bundle:
    """Programs of 5 crops at once, as ``.onnx`` and ``.ort``."""
    runs, options = [student_run, int8_run], {"formats": "onnx", "batch": "5", "ort": True}
    return Bundle(shared(tmp_path_factory, "servers", lambda out: export_here(runs, demo_store, out, **options)))


def exact_sums():
    """Return the options without which int8 sums overflow on x86 processors that have no VNNI."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@pytest.mark.parametrize("instructions", [None, "avx512_vnni", "i8mm"])
def test_only_processors_whose_byte_sums_overflow_pay_for_exact_ones(monkeypatch, instructions):
    monkeypatch.setattr("export.onnx.int8_instructions", lambda: instructions)
    options = session_options(3)
    assert options.intra_op_num_threads == 3
    if instructions is None:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("ending", ["onnx", "ort"])
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_a_batch_scores_as_its_crops_alone(for_servers, bundle_path, real_crops, scheme, ending):
    artifact = for_servers.artifact(f"test_byobnet-{scheme}-batch5.{ending}")
    if reason := artifact.cannot_run():
        assert (ending, scheme) == ("ort", "int8") and artifact.not_checked == f"not compared: {reason}"
        pytest.skip(reason)
    assert artifact.batch == 5 and artifact.programs[0].inputs[0].shape == [5, 64, 64, 3]
    session = onnxruntime.InferenceSession(str(for_servers.path / artifact.file), exact_sums())
    assert session.get_inputs()[0].shape == [5, 64, 64, 3] and session.get_outputs()[0].shape == [5]
    alone = Bundle(bundle_path)
    expected = alone.load(alone.artifact(f"test_byobnet-{scheme}.onnx"))(real_crops)
    atol = 1e-5 if scheme == "fp32" else 0.02  # kernels for Arm round at other places
    found = for_servers.load(artifact)(real_crops)  # 24 crops: the last batch has four
    np.testing.assert_allclose(found, expected, atol=atol)
    (direct,) = session.run(None, {"pixels": real_crops[:5]})
    np.testing.assert_array_equal(found[:5], direct)


def test_a_program_of_any_batch(demo_store, int8_run, bundle_path, real_crops, tmp_path):
    export_here([int8_run], demo_store, tmp_path / "bundle", "onnx", batch="dynamic")
    made = Bundle(tmp_path / "bundle")
    artifact = made.artifact("test_byobnet-int8-batch-dynamic.onnx")
    assert artifact.batch is None and artifact.programs[0].inputs[0].shape == [None, 64, 64, 3]
    alone = Bundle(bundle_path)
    expected = alone.load(alone.artifact("test_byobnet-int8.onnx"))(real_crops)
    text = (made.path / "README.md").read_text()
    assert "take any number of crops at once" in text and "longArrayOf(1, 64, 64, 3)" in text
    session = onnxruntime.InferenceSession(str(made.path / artifact.file), exact_sums())
    for count in (1, 2, 24):
        (found,) = session.run(None, {"pixels": real_crops[:count]})
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_beside_an_ort_lie_the_operators_that_it_needs(for_servers, scheme):
    artifact = for_servers.artifact(f"test_byobnet-{scheme}-batch5.ort")
    ((name, meaning),) = artifact.companions.items()
    assert artifact.phone_check == "" and "--include_ops_by_config" in meaning
    lines = (for_servers.path / name).read_text().split("\n")
    assert any(line.startswith("ai.onnx;") for line in lines) and not any("/" in line for line in lines)
    assert ("QLinearConv" in "\n".join(lines)) == (scheme == "int8")
    operators = artifact.programs[0].operators
    assert ("com.microsoft.QLinearAdd" in operators) == (scheme == "int8") and "ai.onnx.Softmax" in operators
    assert all(re.fullmatch(r"[a-z.]+\.[A-Za-z]+", name) for name in operators)
    assert f"`{name}`, beside `{artifact.file}`" in (for_servers.path / "README.md").read_text()
    verify(for_servers.path)


def test_onnx_runtime_s_check_for_phones_is_in_the_manifest_and_the_readme(for_servers):
    check = r"forward: NNAPI could take \d+% of the nodes in \d+ parts? \(.*worth it\), Core ML could take"
    plain = [artifact for artifact in for_servers.manifest.artifacts if artifact.file.endswith(".onnx")]
    assert len(plain) == 2 and all(re.match(check, artifact.phone_check) for artifact in plain)
    assert (
        f"for phones: {for_servers.manifest.artifacts[0].phone_check}" in (for_servers.path / "README.md").read_text()
    )


def test_the_readme_s_program_scores_in_batches(for_servers):
    (program,) = re.findall(r"```python\n(.*?)```", (for_servers.path / "README.md").read_text(), re.DOTALL)
    assert "crop[None].repeat(5, axis=0)" in program
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=for_servers.path, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[0].rpartition(" ")[2]) < 1e-5


def test_the_readme_s_kotlin_fills_the_tensors_of_a_batch(for_servers):
    text = (for_servers.path / "README.md").read_text()
    assert "ByteArray of 5 * 64 * 64 * 3 bytes" in text and "longArrayOf(5, 64, 64, 3)" in text
    assert "as FloatArray }  // 5, one of each crop" in text and "take 5 crops at once" in text


def test_files_hold_no_traces_of_how_they_were_made(for_servers):
    assert all(b"/export/programs.py" not in path.read_bytes() for path in for_servers.path.glob("*.on*"))


def test_a_clip_student_in_batches(demo_store, tmp_path_factory, tmp_path, opened_store):
    export_here([clip_run(demo_store, tmp_path_factory)], demo_store, tmp_path / "bundle", "onnx", batch="3", ort=True)
    bundle = Bundle(tmp_path / "bundle")
    files = [artifact.file for artifact in bundle.manifest.artifacts]
    steps, whole = "test_tiny-clip-fp32-batch3", "test_tiny-whole-clip-fp32-batch3"
    assert sorted(files) == [f"{steps}-onnx", f"{steps}-ort", f"{whole}.onnx", f"{whole}.ort"]
    expected = bundle.golden_outputs(bundle.artifact(f"{steps}-onnx"))
    for artifact in bundle.manifest.artifacts:
        np.testing.assert_allclose(bundle.golden_outputs(artifact), expected, atol=1e-5)
    assert (bundle.path / f"{steps}-ort" / "embed.ort").exists()
    text = (bundle.path / "README.md").read_text()
    assert "embeddings: FloatArray(3 * 4 * 32), valid: FloatArray(3 * 4)" in text
    assert "longArrayOf(3, 4, 32)" in text and "ByteArray of 3 * 64 * 64 * 3 bytes" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": "onnx,tflite"}, "--format 'tflite' is unknown: give some of executorch,onnx,coreml"),
        ({"batch": "0"}, "--batch '0' is neither a number from 1 to 1024 nor dynamic"),
        ({"batch": "-3"}, "--batch '-3' is neither"),
        ({"batch": "many"}, "--batch 'many' is neither"),
        ({"delegate": "qnn"}, "--delegate 'qnn' is unknown: give some of xnnpack,coreml,vulkan"),
        ({"formats": "coreml", "batch": "2"}, "--batch is for onnx: add it to --format"),
        ({"formats": "executorch", "ort": True}, "--ort is for onnx: add it to --format"),
        ({"formats": "onnx", "delegate": "vulkan"}, "--delegate is for executorch: add it to --format"),
        ({"formats": "onnx", "etrecord": True}, "--etrecord is for executorch: add it to --format"),
    ],
)
def test_forms_that_do_not_exist_are_refused(options, message, student_run, demo_store, tmp_path):
    formats = options.pop("formats", "executorch,onnx")
    with pytest.raises(StageError, match=re.escape(message)):
        export([student_run], demo_store, tmp_path / "bundle", formats, **options)
    assert list(tmp_path.iterdir()) == []


def test_forms_of_the_options():
    plain = parse_forms("coreml,onnx,executorch", "1", "xnnpack", False, False)
    assert plain == [Form("executorch", delegate="xnnpack"), Form("onnxruntime"), Form("coreml")]
    many = parse_forms("onnx,executorch", "dynamic", "vulkan,xnnpack", True, True)
    assert [(form.delegate, form.batch, form.ort, form.etrecord) for form in many] == [
        ("xnnpack", 1, False, True),
        ("vulkan", 1, False, True),
        (None, None, False, False),
        (None, None, True, False),
    ]


@pytest.mark.parametrize(
    ("count", "batch", "calls"), [(7, 3, [3, 3, 3]), (6, 3, [3, 3]), (7, None, [7]), (2, 1, [1, 1])]
)
def test_any_number_of_samples_goes_in_batches(count, batch, calls):
    seen = []

    def run(first, second):
        seen.append(len(first))
        assert first.flags["C_CONTIGUOUS"]
        return first.sum(axis=1) + second

    values = np.arange(count * 4, dtype=np.float32).reshape(4, count).T
    found = in_batches(run, batch)(values, np.ones(count, np.float32))
    np.testing.assert_array_equal(found, values.sum(axis=1) + 1)
    assert seen == calls


@pytest.mark.parametrize(
    ("changes", "form", "name"),
    [
        ({}, Form("onnxruntime"), "repvit_m0_9-fp32.onnx"),
        ({}, Form("onnxruntime", batch=8), "repvit_m0_9-fp32-batch8.onnx"),
        ({}, Form("onnxruntime", batch=None, ort=True), "repvit_m0_9-fp32-batch-dynamic.ort"),
        ({}, Form("executorch", delegate="vulkan"), "repvit_m0_9-fp32-vulkan.pte"),
        ({"activation": "relu"}, Form("executorch", delegate="xnnpack"), "repvit_m0_9-relu-fp32.pte"),
        (CLIP, Form("onnxruntime", "steps"), "repvit_m0_9-relu-clip-fp32-onnx"),
        (CLIP, Form("onnxruntime", "steps", ort=True), "repvit_m0_9-relu-clip-fp32-ort"),
        (CLIP, Form("coreml", "clip"), "repvit_m0_9-relu-whole-clip-fp32.mlpackage"),
    ],
)
def test_name_of_an_artifact_tells_its_student_and_form(student_run, changes, form, name):
    architecture = Architecture(backbone="repvit_m0_9", size=64, **changes)
    info = Run(student_run).info.model_copy(update={"architecture": architecture})
    assert form.file(info) == name
