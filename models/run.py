"""A run: a folder with one trained model, its configuration and its metrics.

``model.json`` (RunInfo), ``model.safetensors``, ``metrics.json``, and ``quantization.json`` for int8.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.detector import Architecture, Detector, Preprocessing
from models.weights import Weights
from stage import StageError, sha256_of, written_whole

SCHEMA_VERSION = 1
TOOLS = ("torch", "torchvision", "timm", "torchao", "executorch", "numpy")


class Parent(BaseModel):
    """A run from which another was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class DataSource(BaseModel):
    """The store on which a run was trained, and what that store says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    notes: list[str] = Field(default_factory=list)


class RunInfo(BaseModel):
    """``model.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: Literal["teacher", "student"]
    scheme: Literal["fp32", "int8"] = "fp32"
    modality: Literal["rgb"] = "rgb"
    architecture: Architecture
    preprocessing: Preprocessing
    weights: Weights
    trained_steps: int
    """Optimizer steps since the starting weights; 0 with random weights means that scores mean nothing."""
    parents: list[Parent] = Field(default_factory=list)
    data: DataSource
    seed: int
    tools: dict[str, str] = Field(default_factory=lambda: {tool: version(tool) for tool in TOOLS})
    python: str = Field(default_factory=platform.python_version)

    @property
    def meaningless(self) -> str | None:
        """Say why this run's scores mean nothing, or None if they mean something."""
        if self.weights.source == "random" and self.trained_steps == 0:
            return "random weights, never trained: only latency, memory and size mean anything"
        return None


def save_run(out: Path, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
    """Write a run's folder, whole or not at all; ``files`` are further texts by file name without ``.json``."""
    with written_whole(out) as aside:
        aside.mkdir()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
        save_file(state, aside / "model.safetensors")
        texts = {"model": info.model_dump_json(indent=2), "metrics": json.dumps(metrics, indent=2)} | files
        for name, text in texts.items():
            (aside / f"{name}.json").write_text(text + "\n", encoding="utf-8")


class Run:
    """A run on disk. Raises StageError if the folder is missing, unfinished, damaged or of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = self.read("model.json")
        try:
            self.info = RunInfo.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise StageError(f"{path / 'model.json'} is not valid: {where}: {first['msg']}") from error
        if self.info.schema_version != SCHEMA_VERSION:
            raise StageError(
                f"{path} is of schema version {self.info.schema_version}, this program reads {SCHEMA_VERSION}"
            )

    def read(self, file: str) -> str:
        """Return the text of one of the run's files."""
        try:
            return (self.path / file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise StageError(f"{self.path} is not a run: it has no readable {file}") from error

    def detector(self) -> Detector:
        """Build the float32 detector, in eval mode. For an int8 run, these are the weights before rounding."""
        detector = Detector(self.info.architecture)
        path = self.path / "model.safetensors"
        try:
            detector.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise StageError(f"{path} is missing, damaged, or does not fit model.json") from error
        return detector.eval()

    @property
    def sha256(self) -> str:
        """The hash of the whole folder."""
        return sha256_of(self.path)

    def as_parent(self) -> Parent:
        """Return how a child run names this one."""
        return Parent(name=self.path.name, sha256=self.sha256)
