"""Where trainings run: several processes against one, parts of a batch against the whole, and mixed precision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress import qat
from compress.compute import prepare_compute, samples_of_part, training_speed
from compress.distill import distill
from models.schemes import fast_dtype
from stage import StageError

ROOT = Path(__file__).parents[2]
# Without dropout and batch norms, which differ by the share of a batch that they see.
STUDENT = {"student": "test_vit", "epochs": 2, "precision": "fp32", "batch_size": 8, "views": 2}


def difference(a: Path, b: Path) -> float:
    """Largest root mean square of the difference of a tensor: of single weights Adam can make steps of their rounding.

    Not of the biases of queries, keys and values: a key's has no gradient but rounding.
    """
    left, right = (load_file(path / "model.safetensors") for path in (a, b))
    apart = {name: left[name] - right[name] for name in left if not name.endswith("qkv.bias")}
    return max(float(tensor.square().mean().sqrt()) for tensor in apart.values())


@pytest.fixture(scope="module")
def alone(teacher_run: Path, demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student trained by one process, each batch at once."""
    out = tmp_path_factory.mktemp("alone") / "run"
    distill(demo_store, out, teacher_run, **STUDENT)
    return out


@pytest.mark.parametrize("balance", ["batches", "weights"])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(
    balance: str, alone: Path, teacher_run: Path, demo_store: Path, tmp_path: Path
) -> None:
    """With as many reals as fakes, weights are 1 and differ from batches in the order alone."""
    distill(demo_store, tmp_path / "whole", teacher_run, balance=balance, **STUDENT)
    distill(demo_store, tmp_path / "parts", teacher_run, balance=balance, accumulate=2, **STUDENT)
    assert difference(tmp_path / "whole", tmp_path / "parts") < 1e-5
    assert (difference(tmp_path / "whole", alone) == 0) == (balance == "batches")


def test_two_processes_train_as_one(alone: Path, teacher_run: Path, demo_store: Path, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in STUDENT.items()]
    places = [f"--teacher={teacher_run}", f"--data={demo_store}", f"--out={tmp_path / 'run'}"]
    places.append(f"--cache={tmp_path / 'cache'}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*torchrun, "-m", "compress.distill", *places, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"processes": 2' in (tmp_path / "run" / "metrics.json").read_text()
    assert done.stderr.count("pass 4 of 4") == 1
    assert difference(tmp_path / "run", alone) < 1e-5


def test_variables_that_a_launcher_left_behind_end_with_one_line() -> None:
    work = "import command; from compress.compute import prepare_compute; command.call(lambda: prepare_compute('fp32'))"
    told = os.environ | {"LOCAL_RANK": "0", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, env=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no training can begin here (")
    assert line.endswith("unset what launchers have left in the environment (ACCELERATE_USE_CPU, LOCAL_RANK)")


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    assert samples_of_part(16, 2, 4) == 2
    with pytest.raises(StageError, match=r"--batch-size 12 .*: give a multiple of 8 \(2 labels x --accumulate 4 x 1"):
        samples_of_part(12, 4, 1)


def test_timing_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Flatten(0)
    )

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.network(inputs).mean()

    objective = Mean().eval()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    random = torch.get_rng_state()
    found = training_speed(prepare_compute("bf16"), objective, (torch.randn(16, 4),))
    assert set(found["step_ms"]) == {"fp32", "bfloat16"}
    fp32, bf16 = found["step_ms"].values()
    assert found["autocast_speedup"] == pytest.approx(fp32 / bf16, abs=0.01)
    torch.set_rng_state(random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not objective.training


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_what_was_asked_for(precision: str, dtype: torch.dtype | None) -> None:
    compute = prepare_compute(precision)
    assert (compute.dtype, compute.precision) == (dtype, precision)
    with compute.context():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


@pytest.mark.parametrize("name", ["avx512_bf16", "bf16", "sve_bf16"])
def test_bfloat16_of_x86_and_of_arm_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64", name: True})
    assert fast_dtype(torch.device("cpu")) == torch.bfloat16


def test_int8_qat_keeps_off_apple_s_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("compress.qat.prepare_compute", lambda precision, on_cpu: asked.append((precision, on_cpu)))
    qat.compute_of_rounding()
    assert asked == [("fp32", True)]


def test_a_gpu_that_is_full_while_steps_are_timed_stops_no_training() -> None:
    class Full(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")

    found = training_speed(prepare_compute("bf16"), Full(2, 2), (torch.zeros(1, 2),))
    assert found == {"step_ms": {}, "reason": "not timed: a step in fp32 does not fit into this device's memory"}


def test_a_processor_without_fast_16_bit_numbers_trains_in_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert prepare_compute("autocast").precision == "fp32 (autocast asked for; no bfloat16 instructions)"
    assert "training in fp32 instead of autocast" in capfd.readouterr().err
