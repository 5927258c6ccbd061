"""The machine and the package versions that a report's figures were measured with."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from export.runtimes import int8_instructions, lacks_int8_instructions
from stage import counted, usable_cores

PACKAGES = (
    "pocketproof", "torch", "torchvision", "timm", "torchao", "executorch", "onnx", "onnxruntime", "coremltools",
    "numpy", "opencv-python-headless", "av", "dlib-bin", "pyarrow",
)  # fmt: skip
BOARD = Path("/sys/firmware/devicetree/base/model")
"""File in which Linux gives the name of a board, ended by a zero byte."""


class Machine(BaseModel):
    """The machine that a figure was measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    cores: int
    memory_gb: float
    system: str
    python: str
    cpu_capability: str
    """The widest instructions that torch uses."""
    int8_instructions: str | None
    """Instructions for sums of products of bytes; None where the processor has none, or the system does not say."""
    accelerators: list[str]
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the machine in the rows of a report."""
        return f"{self.processor}, {counted(self.cores, 'core')}"


def _processor(cpuinfo: Path = Path("/proc/cpuinfo"), board: Path = BOARD) -> str:
    """Return the processor's name: its brand on a Mac; the board's name on Arm boards, whose processors give none."""
    if sys.platform == "darwin":
        brand = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, check=False)
        return brand.stdout.decode().strip() or platform.machine()
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    if name := fields.get("model name") or fields.get("Hardware"):
        return name
    if board.is_file():
        return board.read_bytes().rstrip(b"\0").decode(errors="replace")
    codes = (fields.get("CPU implementer"), fields.get("CPU part"))
    return " ".join([platform.machine(), *(code for code in codes if code)])


def slow_int8() -> str | None:
    """Return a note if this processor lacks the instructions that make int8 fast; None if not, or if not known."""
    if not lacks_int8_instructions():
        return None
    return (
        "This processor has no instructions for sums of products of bytes (VNNI, or Arm's dot products): int8 gains "
        "less speed here than on processors and phones that have them."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def describe_machine() -> Machine:
    """Return the description of this machine."""
    import psutil
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("Apple GPU (mps)")
    return Machine(
        processor=_processor(),
        cores=usable_cores(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        int8_instructions=int8_instructions(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        accelerators=accelerators,
        versions={package: _version(package) for package in PACKAGES},
    )
