"""The evaluator of Core ML programs: each operation against torch, whole models against the programs in torch."""

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from compress.quantize import quantize
from compress.runs import pixel_detector
from export import coreml
from export.bundle import Bundle
from export.export import export
from export.forms import Form
from export.gate import SourceRun, gate
from export.golden import golden_inputs
from export.mil import MilProgram
from export.mil_operations import OPERATIONS
from export.programs import TorchProgram, pixel_input, probability
from export.runtimes import NotEvaluated, evaluated_by
from models.detector import Architecture, Detector
from models.pixels import ImageDetector, PixelDetector, Preprocessing
from models.run import Run
from stage import StageError
from tests.conftest import export_here

FLOAT32_OUTPUT = 65568
"""In Core ML's FeatureTypes.proto."""


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _saved(module, x, path, precision=ct.precision.FLOAT32):
    program = torch.export.export(module.eval(), (x,)).run_decompositions({})
    model = ct.convert(
        program,
        inputs=[ct.TensorType(name="x", shape=tuple(x.shape))],
        outputs=[ct.TensorType(name="y", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=precision,
        convert_to="mlprogram",
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def _types(package):
    functions = ct.utils.load_spec(str(package)).mlProgram.functions["main"].block_specializations
    return {operation.type for block in functions.values() for operation in block.operations}


PICTURE, TOKENS = (1, 6, 11, 9), (1, 5, 8)
CASES = {
    "convolution": ("conv", nn.Conv2d(6, 8, 3), PICTURE),
    "convolution, stride and padding": ("conv", nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), PICTURE),
    "convolution, uneven": ("conv", nn.Conv2d(6, 4, (5, 3), stride=(2, 1), padding=(2, 0)), PICTURE),
    "convolution, dilated": ("conv", nn.Conv2d(6, 4, 3, dilation=2, padding=2), PICTURE),
    "convolution, depthwise": ("conv", nn.Conv2d(6, 6, 3, padding=1, groups=6), PICTURE),
    "convolution, depthwise, twice as many": ("conv", nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6), PICTURE),
    "convolution, groups": ("conv", nn.Conv2d(6, 4, 3, groups=2), PICTURE),
    "convolution of single pixels": ("conv", nn.Conv2d(6, 4, 1), PICTURE),
    "mean over places": ("avg_pool", nn.AvgPool2d(3, stride=2, padding=1), PICTURE),
    "mean over places of the picture": (
        "avg_pool",
        nn.AvgPool2d((3, 2), stride=(2, 1), padding=1, count_include_pad=False),
        PICTURE,
    ),
    "mean over places, one more": ("avg_pool", nn.AvgPool2d(2, stride=2, padding=1, ceil_mode=True), PICTURE),
    "largest over places, one more": ("max_pool", nn.MaxPool2d(2, stride=2, ceil_mode=True), PICTURE),
    "largest over places": ("max_pool", nn.MaxPool2d(3, stride=2, padding=1), PICTURE),
    "padding": ("pad", Of(lambda x: functional.pad(x, (0, 1, 2, 3), value=1.5)), PICTURE),
    "gelu": ("gelu", nn.GELU(), PICTURE),
    "relu": ("relu", nn.ReLU(), PICTURE),
    "relu6": ("clip", Of(lambda x: x.clamp(-0.25, 0.5)), PICTURE),
    "sigmoid": ("sigmoid", nn.Sigmoid(), PICTURE),
    "tanh": ("tanh", nn.Tanh(), PICTURE),
    "silu": ("silu", nn.SiLU(), PICTURE),
    "softmax": ("softmax", nn.Softmax(-1), TOKENS),
    "linear": ("linear", nn.Linear(8, 3), TOKENS),
    "linear, no bias": ("linear", nn.Linear(8, 3, bias=False), TOKENS),
    "matmul": ("matmul", Of(lambda x: x @ x.transpose(1, 2)), TOKENS),
    "layer norm": ("layer_norm", nn.LayerNorm(8, eps=1e-3), TOKENS),
    "layer norm, plain": ("layer_norm", nn.LayerNorm((5, 8), elementwise_affine=False), TOKENS),
    "mean": ("reduce_mean", Of(lambda x: x.mean((2, 3), keepdim=True)), PICTURE),
    "largest": ("reduce_max", Of(lambda x: x.amax(1)), TOKENS),
    "sum": ("reduce_sum", Of(lambda x: x.sum(1)), TOKENS),
    "slice": ("slice_by_index", Of(lambda x: x[:, 1:4, ::2]), TOKENS),
    "one": ("slice_by_index", Of(lambda x: x[:, -1]), TOKENS),
    "split": ("split", Of(lambda x: torch.cat(x.split([1, 4], 1)[::-1], 1)), TOKENS),
    "join": ("concat", Of(lambda x: torch.cat([x, 2 * x], 2)), TOKENS),
    "reshape": ("reshape", Of(lambda x: x.reshape(1, 10, 4)), TOKENS),
    "transpose": ("transpose", Of(lambda x: x.permute(2, 0, 1)), TOKENS),
    "repeat": ("tile", Of(lambda x: x.repeat(1, 2, 3)), TOKENS),
    "select": ("select", Of(lambda x: torch.where(x > 0.5, x, x / 3 - 1)), TOKENS),
    "difference": ("sub", Of(lambda x: x - x.mean(1, keepdim=True)), TOKENS),
    "quotient": ("real_div", Of(lambda x: x / (1 + x.sigmoid().sum(1, keepdim=True))), TOKENS),
    "attention": (
        "matmul",
        Of(lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None] + 1, x[:, None] * 2)),
        TOKENS,
    ),
}


class Together(nn.Module):
    """Several modules side by side, their outputs one behind the other: each conversion takes a second."""

    def __init__(self, modules) -> None:
        super().__init__()
        self.several = nn.ModuleList(modules)

    def forward(self, x):
        return torch.cat([module(x).flatten() for module in self.several])


@pytest.mark.parametrize("shape", [PICTURE, TOKENS])
def test_operations_are_what_torch_computes(shape, tmp_path):
    x, cases = _drawn(*shape), {name: case for name, case in CASES.items() if case[2] == shape}
    package = _saved(Together(module for _, module, _ in cases.values()), x, tmp_path / "x.mlpackage")
    assert {operation for operation, *_ in cases.values()} <= _types(package)
    found = MilProgram(package)(x.numpy())
    assert found.dtype == np.float32
    for name, (_, module, _) in cases.items():
        with torch.inference_mode():
            expected = module(x).flatten().numpy()
        own, found = found[: len(expected)], found[len(expected) :]
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=2e-6, err_msg=name)
    assert not len(found)


def _built(build, x, path):
    """Save a program that no conversion from torch gives."""

    @Builder.program(input_specs=[Builder.TensorSpec(shape=tuple(x.shape))], opset_version=ct.target.iOS17)
    def program(x):
        return build(x)

    target = {"minimum_deployment_target": ct.target.iOS17, "compute_precision": ct.precision.FLOAT32}
    ct.convert(program, skip_model_load=True, **target).save(str(path))
    return MilProgram(path)


def test_same_padding_is_shared_out_as_the_definition_says(tmp_path):
    """As in torch, whose ``same`` puts the odd line below and to the right."""
    x, weight = _drawn(1, 2, 10, 9), _drawn(3, 2, 4, 3, seed=1)
    found = _built(lambda x: Builder.conv(x=x, weight=weight.numpy(), pad_type="same"), x, tmp_path / "x.mlpackage")
    expected = functional.conv2d(x, weight, padding="same")
    np.testing.assert_allclose(found(x.numpy()), expected, rtol=1e-5, atol=1e-5)


def test_gelu_by_tanh_is_what_torch_computes(tmp_path):
    """Coremltools makes torch's own an exact one, which the gate would refuse."""
    x = _drawn(*TOKENS)
    found = _built(lambda x: Builder.gelu(x=x, mode="TANH_APPROXIMATION"), x, tmp_path / "x.mlpackage")
    np.testing.assert_allclose(found(x.numpy()), functional.gelu(x, approximate="tanh"), rtol=1e-5, atol=2e-6)


def test_float16_is_rounded_at_every_step(tmp_path):
    x, module = _drawn(*TOKENS), nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    found = MilProgram(_saved(module, x, tmp_path / "x.mlpackage", ct.precision.FLOAT16))(x.numpy())
    with torch.inference_mode():
        exact, half = module(x).numpy(), module.half()(x.half()).float().numpy()
    assert 1e-5 < np.abs(found - exact).max() < 1e-2
    assert np.abs(found - half).max() < 2e-3


def test_an_unknown_operation_is_named(tmp_path):
    package = _saved(Of(torch.erf), _drawn(*TOKENS), tmp_path / "x.mlpackage")
    with pytest.raises(NotEvaluated, match=r"x.mlpackage has the operation erf, which only Core ML computes"):
        MilProgram(package)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv1d(5, 2, 3), "a conv of x.mlpackage has a form that only Core ML computes"),
        (
            Of(lambda x: functional.pad(x, (1, 1), mode="reflect")),
            "padding of mode reflect is computed only by",
        ),
    ],
)
def test_an_unknown_form_of_an_operation_is_named(module, message, tmp_path):
    program = MilProgram(_saved(module, _drawn(*TOKENS), tmp_path / "x.mlpackage"))
    with pytest.raises(NotEvaluated, match=message):
        program(_drawn(*TOKENS).numpy())


def test_the_int8_program_gives_what_it_gives_in_torch(bundle_path, int8_run, real_crops):
    """Integers by their definition: only the order of sums in float32 may turn a rounding round."""
    package = bundle_path / "test_byobnet-int8.mlpackage"
    assert {"quantize", "dequantize", "constexpr_affine_dequantize"} <= _types(package)
    program = coreml.evaluated(package)("forward")
    found = np.array([program(crop[None]).item() for crop in real_crops])
    with torch.inference_mode():
        expected = pixel_detector(Run(int8_run))(torch.from_numpy(real_crops)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    bundle = Bundle(bundle_path)
    fp32 = bundle.load(bundle.artifact("test_byobnet-fp32.onnx"))(real_crops)
    assert np.abs(found - fp32).mean() > 4 * np.abs(found - expected).mean()


def test_to_evaluate_a_package_writes_nothing_into_it(bundle_path, real_crops):
    package = bundle_path / "test_byobnet-int8.mlpackage"
    files = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in package.rglob("*")}
    Bundle(bundle_path).load(Bundle(bundle_path).artifact(package.name))(real_crops[:1])
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in package.rglob("*")} == files


def test_a_program_that_cannot_be_evaluated_is_not_compared(bundle_path, student_run, opened_store, monkeypatch):
    monkeypatch.delitem(OPERATIONS, "conv")
    inputs = golden_inputs(opened_store, "frame")
    source = SourceRun.load(student_run, inputs)
    found = gate(bundle_path / "test_byobnet-fp32.mlpackage", Form("coreml"), source, source.golden, inputs)
    if evaluated_by("coreml"):
        assert ([step.step for step in found.parity], found.scorer) == (["fused", "exported"], None)
        assert found.not_checked == (
            "not compared: test_byobnet-fp32.mlpackage has the operation conv, which only Core ML computes"
        )


def _operations(package):
    functions = ct.utils.load_spec(str(package)).mlProgram.functions["main"].block_specializations
    return [operation.type for block in functions.values() for operation in block.operations]


@pytest.fixture(scope="module")
def palette_run(student_run, demo_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("palette") / "run"
    quantize(student_run, demo_store, out, scheme="palette4", max_auc_drop=1.0)
    return out


def test_palettes_are_tables_that_hold_the_run_s_weights(palette_run, demo_store, tmp_path, real_crops):
    weights = load_file(palette_run / "model.safetensors")
    large = {len(weight.unique()) for name, weight in weights.items() if weight.ndim > 1 and weight.numel() > 2048}
    assert large == {16}
    export_here([palette_run], demo_store, tmp_path / "bundle", "onnx,coreml")
    bundle = Bundle(tmp_path / "bundle")
    (artifact,) = bundle.manifest.artifacts
    assert (artifact.scheme, artifact.runtime) == ("palette4", "coreml")
    operations = _operations(bundle.path / artifact.file)
    assert operations.count("constexpr_lut_to_dense") == sum(w.ndim > 1 and w.numel() > 2048 for w in weights.values())
    assert [(absent.runtime, absent.scheme) for absent in bundle.manifest.absent] == [("onnxruntime", "palette4")]
    assert [step.step for step in artifact.parity][:2] == ["exported", "lowered"]
    with torch.inference_mode():
        expected = pixel_detector(Run(palette_run))(torch.from_numpy(real_crops)).numpy()
    np.testing.assert_allclose(bundle.load(artifact)(real_crops), expected, atol=1e-2)


def test_a_palette_that_core_ml_would_lose_is_not_shipped(student_run, demo_store, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.quantized.with_norms_folded", lambda detector, _: detector)
    quantize(student_run, demo_store, tmp_path / "run", scheme="palette4", max_auc_drop=1.0)
    with pytest.raises(StageError, match=r"would store \d+ layers of forward without a palette \(.+\), as its"):
        export_here([tmp_path / "run"], demo_store, tmp_path / "bundle", "coreml")


def test_a_palette_for_other_runtimes_alone_is_refused(palette_run, demo_store, tmp_path):
    with pytest.raises(StageError, match=r"is in palette4, which only Core ML has: add coreml to --format"):
        export([palette_run], demo_store, tmp_path / "bundle", format="onnx,executorch")


def test_scores_near_one_stay_apart_in_float16(tmp_path, real_crops):
    """Float16 has nothing between 0.9995 and 1: a threshold of 1 % false positives often lies there."""
    torch.manual_seed(0)
    detector = Detector(Architecture(backbone="test_byobnet", size=64)).eval()
    with torch.no_grad():
        detector.classifier.bias.copy_(torch.tensor([0.0, 9.5]))
    preprocessing = Preprocessing.of("test_byobnet")
    image = ImageDetector(detector, preprocessing).eval()
    torch_program = TorchProgram("forward", image, (pixel_input(64, planar=True),), probability(), "fp16")
    coreml.write([torch_program], tmp_path / "x.mlpackage")
    spec = ct.models.MLModel(str(tmp_path / "x.mlpackage"), skip_model_load=True).get_spec()
    assert spec.description.output[0].type.multiArrayType.dataType == FLOAT32_OUTPUT
    found = coreml.evaluated(tmp_path / "x.mlpackage")("forward")(real_crops)
    with torch.inference_mode():
        expected = PixelDetector(detector, preprocessing)(torch.from_numpy(real_crops)).numpy()
    assert expected.min() > 0.9995
    np.testing.assert_allclose(1 - found.ravel(), 1 - expected, rtol=0.02)
    assert len(np.unique(found)) > 4
