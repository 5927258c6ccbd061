"""A run: a folder with one trained model, its configuration and its metrics.

``model.json`` (RunInfo), ``model.safetensors``, ``metrics.json``, and ``quantization.json`` for static int8.
"""

import functools
import hashlib
import json
import platform
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from files import Lock, go_on_with, put_in_place, sha256_of, unfinished_of, written_whole
from models.detector import Architecture, Detector, Preprocessing
from models.origin import DataSource, Parent, Weights
from parsing import read_json
from stage import STATIC_INT8, Scheme, StageError, reason_of, say, speaks

SCHEMA_VERSION = 1
FILES = ("metrics.json", "model.json", "model.safetensors", "quantization.json")
"""What a run is; whatever else lies in its folder does not count."""
COMPUTING = ("model.safetensors", "quantization.json")
"""Those of them of which ``model.json`` has the hash."""
TOOLS = ("pocketproof", "torch", "torchvision", "timm", "torchao", "executorch", "numpy")


def versions_of(tools: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed packages."""
    return {tool: version(tool) for tool in tools}


class RunInfo(BaseModel):
    """``model.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: Literal["teacher", "student"]
    scheme: Scheme = "fp32"
    architecture: Architecture
    preprocessing: Preprocessing
    weights: Weights
    trained_steps: int
    """Optimizer steps of the head, with those of a run whose head was gone on from; 0: scores mean nothing."""
    parents: list[Parent] = Field(default_factory=list)
    data: DataSource
    seed: int
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what computes, ``model.safetensors`` and ``quantization.json``; older runs do not say."""
    tools: dict[str, str] = Field(default_factory=lambda: versions_of(TOOLS))
    python: str = Field(default_factory=platform.python_version)

    def asked(self) -> dict[str, Any]:
        """Return what decides a training, for ``UnfinishedRun``; whom it sees follows, and older runs do not say."""
        return self.model_dump(exclude={"data": {"persons"}})

    @property
    def integer(self) -> bool:
        """Whether the run is an integer program with scales of its own."""
        return self.scheme in STATIC_INT8

    @property
    def meaningless(self) -> str | None:
        """Say why this run's scores mean nothing, or None if they mean something."""
        if self.trained_steps > 0:
            return None
        what = "random weights" if self.weights.source == "random" else "a random head"
        return f"{what}, never trained: only latency, memory and size mean anything"


def _write(folder: Path, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state))  # save_file says of a full disk what is no OSError
    for name, text in ({"metrics": json.dumps(metrics, indent=2)} | files).items():
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    hashes = {name: sha256_of(folder / name) for name in COMPUTING if (folder / name).exists()}
    text = info.model_copy(update={"files": hashes}).model_dump_json(indent=2)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def save_run(out: Path, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
    """Write a run's folder, whole or not at all; ``files`` are further texts by file name without ``.json``."""
    with written_whole(out) as aside:
        aside.mkdir()
        _write(aside, info, detector, metrics, **files)


MEANING = {
    "fingerprint": "the store was another",
    **dict.fromkeys(("parents", "trained_steps", "weights"), "what it starts from or learns from was another"),
}


class UnfinishedRun:
    """The folder beside ``out`` in which a run trains, and which becomes the run at the end.

    ``checkpoints/`` is there while it trains, ``log/`` stays. An interrupted training goes on with it if ``asked``,
    all that decides the training, is as it was. Of several processes that train together, the first one makes it.
    Raises StageError if ``out`` exists or another command trains it, until the end of the ``with`` block.
    """

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        self.out, self.folder = out, unfinished_of(out)
        self.checkpoint, self.log = self.folder / "checkpoints" / "last.pt", self.folder / "log"
        if speaks():
            self._lock = Lock(out)
            said = json.dumps(asked, indent=2, default=str) + "\n"
            go_on_with(self.folder, f"{self.checkpoint.parent.name}/asked.json", said, self.checkpoint.exists, MEANING)

    def finish(self, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
        """Write the trained run and put it in its place, as ``save_run`` does; for the first process alone."""
        _write(self.folder, info, detector, metrics, **files)
        put_in_place(self.folder, self.out)
        shutil.rmtree(self.out / self.checkpoint.parent.name)
        self._lock.remove()

    def __enter__(self) -> "UnfinishedRun":
        return self

    def __exit__(self, *_: object) -> None:
        if not speaks():
            return
        # Stopped before its first checkpoint, there is nothing to go on with.
        if self.folder.exists() and not self.checkpoint.exists():
            shutil.rmtree(self.folder)
            self._lock.remove()
        self._lock.close()


class Run:
    """A run on disk. Raises StageError if the folder is missing, unfinished, damaged or of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        missing = f"{path} is not a run: it has no readable model.json"
        self.info = read_json(path / "model.json", RunInfo, SCHEMA_VERSION, missing)

    def read(self, file: str) -> str:
        """Return the text of one of the run's files."""
        self._check(file)
        try:
            return (self.path / file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise StageError(f"{self.path} is not a run: it has no readable {file}") from error

    def _check(self, file: str) -> None:
        """Raise StageError if a file is there and is not the one that the run was written with."""
        path, digest = self.path / file, self.info.files.get(file)
        if digest and path.is_file() and sha256_of(path) != digest:
            raise StageError(f"{path} is not the file that this run was written with: its SHA-256 differs")

    def detector(self) -> Detector:
        """Build the detector, in float32 and eval mode: of int8 with the weights before rounding, of fp16 after it."""
        try:
            detector = Detector(self.info.architecture)
        except Exception as error:  # timm's backbones have reasons of their own to be of no such size
            raise StageError(f"{self.path / 'model.json'} is of no network: {reason_of(error)}") from error
        path = self.path / "model.safetensors"
        self._check(path.name)
        try:
            detector.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise StageError(f"{path} is missing, damaged, or does not fit model.json") from error
        return detector.eval()

    def start(self, detector: Detector) -> bool:
        """Put this run's weights into a detector of the same backbone as its starting weights; its head if it fits.

        Returns whether that did. Raises StageError if the run cannot be gone on from.
        """
        own, wanted = self.info.architecture, detector.architecture
        if own.network != wanted.network or own.fused:
            holds = f"a fused {own.backbone} ({self.info.scheme})" if own.fused else f"a {own.backbone}"
            raise StageError(f"{self.path} holds {holds}, and --weights is to start a {wanted.backbone}")
        if self.info.meaningless:
            raise StageError(f"{self.path} is nothing to start from: {self.info.meaningless}")
        if own.activation != wanted.activation:
            say(f"{self.path} has {own.activation or 'GELU'}, and goes on with {wanted.activation or 'GELU'}")
        trained = self.detector()
        try:
            detector.backbone.load_state_dict(trained.backbone.state_dict())
        except RuntimeError as error:
            raise StageError(f"{self.path} takes {own.size} px crops, and its weights fit no other size") from error
        shapes = [{name: tensor.shape for name, tensor in d.head.state_dict().items()} for d in (trained, detector)]
        if shapes[0] != shapes[1]:
            say(f"the head of {self.path} is of another kind: the new one starts at random")
            return False
        detector.head.load_state_dict(trained.head.state_dict())
        return True

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of what the run is; its logs and what was evaluated since do not count."""
        files = [path for name in FILES if (path := self.path / name).is_file()]
        return hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in files).encode()).hexdigest()

    def as_parent(self) -> Parent:
        """Return how a child run names this one."""
        return Parent(name=self.path.resolve().name, sha256=self.sha256)
