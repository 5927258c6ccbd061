"""What ExecuTorch's programs leave to portable kernels, and what is rewritten so that XNNPACK takes it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from export import coreml
from export.bundle import Bundle
from export.executorch import drop_idle_ceilings, keep_pooled_dimensions, native_runtime, opened, write
from export.forms import parse_forms
from export.programs import programs_of
from export.runtimes import load_artifact
from models.detector import Architecture, Detector
from models.pixels import PixelDetector, Preprocessing
from tests import tiny  # noqa: F401  (timm knows it from then on)


class Mean(nn.Module):
    """A mean over some dimensions."""

    def __init__(self, dims, keepdim):
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, pictures):
        """Average, and count on."""
        return pictures.relu().mean(self.dims, keepdim=self.keepdim) * 2


@pytest.mark.parametrize(
    ("dims", "keepdim", "rewritten"),
    [((2, 3), False, True), ((-1, -2), False, True), ((2, 3), True, False), ((1, 2), False, False)],
)
def test_only_pools_that_drop_their_dimensions_are_rewritten(dims, keepdim, rewritten):
    pictures = torch.randn(1, 8, 5, 4, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Mean(dims, keepdim), (pictures,))
    expected = program.module()(pictures)
    keep_pooled_dimensions(program)
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert (torch.ops.aten.view.default in operators) == rewritten
    assert torch.equal(program.module()(pictures), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides", "idle"),
    [
        (2, 2, 0, (6, 4), True), (2, 2, 0, (5, 4), False), (3, 2, 1, (5, 7), True), (3, 2, 1, (6, 5), False),
        ((1, 2), None, 0, (5, 4), True), ((2, 1), None, 0, (5, 4), False), ((2,), None, 0, (6, 4), True),
    ],
)  # fmt: skip
def test_a_pool_loses_its_ceiling_where_that_changes_nothing(kernel, stride, padding, sides, idle):
    pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode=True, count_include_pad=False)
    pictures = torch.randn(1, 8, *sides, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(nn.Sequential(nn.ReLU(), pool), (pictures,))
    expected = program.module()(pictures)
    drop_idle_ceilings(program)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d.default)
    assert node.args[4] == (not idle)
    assert torch.equal(program.module()(pictures), expected)


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_students_pool_inside_the_delegate_and_cast_pixels_with_the_fast_kernel(bundle_path, scheme):
    operators = Bundle(bundle_path).artifact(f"test_byobnet-{scheme}.pte").programs[0].operators
    assert not any(name.startswith(("aten::mean", "aten::avg_pool2d")) for name in operators)
    assert "aten::_to_copy.out" in operators


def test_who_loads_a_program_waits_for_no_library_of_metrics():
    """Bench and apps count what is imported as the model's load time and memory."""
    code = "import sys, export.executorch, export.onnx; print({'sklearn', 'pandas', 'timm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_program_runs_on_the_threads_that_are_asked_for(bundle_path):
    path = bundle_path / "test_byobnet-fp32.pte"
    for threads in (2, 1):
        opened(path, threads)
        assert native_runtime()._threadpool_get_thread_count() == threads


@pytest.mark.parametrize("runtime", ["executorch", "coreml"])
def test_a_gelu_by_tanh_stays_one(runtime, tmp_path, real_crops):
    torch.manual_seed(0)
    network = Detector(Architecture(backbone="test_tiny", size=64))
    network.backbone.act = nn.GELU(approximate="tanh")
    preprocessing = Preprocessing.of("test_tiny")
    detector = PixelDetector(network, preprocessing).eval()
    weights, architecture = SimpleNamespace(licence=""), network.architecture
    info = SimpleNamespace(preprocessing=preprocessing, scheme="fp32", weights=weights, architecture=architecture)
    form = next(form for form in parse_forms(runtime, "1", "xnnpack", False, False) if form.method == "forward")
    torch_programs = programs_of(detector, info, form, 1)
    path = tmp_path / ("a.pte" if runtime == "executorch" else "a.mlpackage")
    if runtime == "executorch":
        write(torch_programs, path, "xnnpack", False)
    else:
        coreml.write(torch_programs, path)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(real_crops)).numpy()
        network.backbone.act = nn.GELU()
        exact = detector(torch.from_numpy(real_crops)).numpy()
    found = load_artifact(path, runtime, 1, "forward")(real_crops)
    assert abs(found - expected).max() < abs(exact - expected).max() / 10
    assert isinstance(detector.network.backbone.act, nn.GELU)
