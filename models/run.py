"""A run: a folder with one trained model, its configuration and its metrics.

``model.json`` (RunInfo), ``model.safetensors``, ``metrics.json``, and ``quantization.json`` for static int8.
"""

import functools
import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from files import name_of, put_in_place, remove_stale, sha256_of, written_whole
from models.detector import Architecture, Detector
from models.origin import DataSource, Parent, Weights
from models.pixels import Preprocessing
from parsing import read_json
from resuming import Lock, discard, go_on_with, unfinished_of, versions_of
from stage import STATIC_INT8, Scheme, StageError, reason_of, say, speaks

SCHEMA_VERSION = 1
FILES = ("metrics.json", "model.json", "model.safetensors", "quantization.json")
"""The files that make up a run; other files in its folder do not count."""
COMPUTING = ("model.safetensors", "quantization.json")
"""The files whose hashes are in ``model.json``."""
TOOLS = ("pocketproof", "torch", "torchvision", "timm", "torchao", "executorch", "numpy")


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
    """Optimizer steps of the head, including those of the run whose head it started from; 0: scores mean nothing."""
    parents: list[Parent] = Field(default_factory=list)
    data: DataSource
    seed: int
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of ``model.safetensors`` and ``quantization.json`` by file name; empty in older runs."""
    tools: dict[str, str] = Field(default_factory=lambda: versions_of(TOOLS))
    python: str = Field(default_factory=platform.python_version)

    def asked(self) -> dict[str, Any]:
        """Return the settings that a training depends on, for ``UnfinishedRun``.

        Persons, crops and notes are left out: they follow from the store and the parents. So are names of what has a
        hash.
        """
        following = {"persons", "validation_persons", "crops", "notes"}
        asked = self.model_dump(exclude={"data": following, "parents": {"__all__": {"name"}}})
        if self.weights.sha256:
            del asked["weights"]["name"]
        return asked

    @property
    def integer(self) -> bool:
        """Whether the run is an integer program with scales in ``quantization.json``."""
        return self.scheme in STATIC_INT8

    @property
    def meaningless(self) -> str | None:
        """The reason why this run's scores mean nothing; None if they do mean something."""
        if self.trained_steps > 0:
            return None
        untrained = "random weights" if self.weights.source == "random" else "a random head"
        return f"{untrained}, never trained: only latency, memory and size mean anything"


def _write(folder: Path, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
    """Write the files of a run into an existing folder, ``model.json`` last; ``files`` as in ``save_run``."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state))  # for a full disk, save_file raises no OSError
    for name, text in ({"metrics": json.dumps(metrics, indent=2)} | files).items():
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    hashes = {name: sha256_of(folder / name) for name in COMPUTING if (folder / name).exists()}
    text = info.model_copy(update={"files": hashes}).model_dump_json(indent=2)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def save_run(out: Path, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
    """Write a run's folder, whole or not at all.

    ``metrics``: contents of ``metrics.json``; ``files``: texts of further files, by file name without ``.json``.
    """
    with written_whole(out) as aside:
        aside.mkdir()
        _write(aside, info, detector, metrics, **files)


MEANING = {
    "fingerprint": "the store was another",
    "clips": "its clips were others: of another store, or files were damaged, lost or repaired since",
    **dict.fromkeys(("parents", "trained_steps", "sha256"), "what it starts from or learns from was another"),
}


class UnfinishedRun:
    """The folder beside ``out`` in which a run trains; at the end it is renamed to ``out``.

    ``checkpoints/`` exists only during training, ``log/`` stays. An interrupted training resumes in it if ``asked``,
    the settings that the training depends on, is unchanged. Of several processes that train together, the first one
    creates it. It is locked until the end of the ``with`` block. Raises StageError if ``out`` exists or another command
    trains it.
    """

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        self.out, self.folder = out, unfinished_of(out)
        self.checkpoint, self.log = self.folder / "checkpoints" / "last.pt", self.folder / "log"
        if speaks():
            self._lock = Lock(out)
            settings = json.dumps(asked, indent=2, default=str) + "\n"
            settings_file = f"{self.checkpoint.parent.name}/asked.json"
            go_on_with(self.folder, settings_file, settings, self.checkpoint.exists, MEANING)
            remove_stale(self.checkpoint)

    def finish(self, info: RunInfo, detector: Detector, metrics: dict[str, Any], **files: str) -> None:
        """Write the trained run and rename its folder to ``out``; parameters as of ``save_run``. First process only."""
        _write(self.folder, info, detector, metrics, **files)
        put_in_place(self.folder, self.out)
        shutil.rmtree(self.out / self.checkpoint.parent.name)
        self._lock.remove()

    def __enter__(self) -> "UnfinishedRun":
        return self

    def __exit__(self, *_: object) -> None:
        if not speaks():
            return
        # Without a checkpoint there is nothing to resume.
        if self.folder.exists() and not self.checkpoint.exists():
            discard(self.folder)
            self._lock.remove()
        self._lock.close()


class Run:
    """A run on disk. Raises StageError if the folder is missing, unfinished, damaged or of another schema version."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, name_of(path)
        missing = f"{path} is not a run: it has no readable model.json"
        self.info = read_json(path / "model.json", RunInfo, SCHEMA_VERSION, missing, "train or quantize it again")

    def read(self, file: str) -> str:
        """Return the text of one of the run's files. Raises StageError if it is unreadable or not the original."""
        self._check(file)
        try:
            return (self.path / file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise StageError(f"{self.path} is not a run: it has no readable {file}") from error

    def _check(self, file: str) -> None:
        """Raise StageError if a file exists and its SHA-256 is not the recorded one."""
        path, digest = self.path / file, self.info.files.get(file)
        if digest and path.is_file() and sha256_of(path) != digest:
            raise StageError(f"{path} is not the file that this run was written with: its SHA-256 differs")

    def detector(self) -> Detector:
        """Return the detector with its weights, in float32 and eval mode.

        The weights of an int8 run are those before rounding, those of an fp16 run are rounded. Raises StageError if
        ``model.json`` and the weights do not make a network.
        """
        try:
            detector = Detector(self.info.architecture)
        except Exception as error:  # timm's backbones raise various errors for impossible sizes
            raise StageError(f"{self.path / 'model.json'} is of no network: {reason_of(error)}") from error
        path = self.path / "model.safetensors"
        self._check(path.name)
        try:
            detector.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise StageError(f"{path} is missing, damaged, or does not fit model.json") from error
        return detector.eval()

    def start(self, detector: Detector) -> bool:
        """Load this run's weights into a detector of the same backbone as starting weights, with the head if it fits.

        Returns whether the head was loaded. Raises StageError if the backbones differ, or if the run is fused or was
        never trained.
        """
        source, target = self.info.architecture, detector.architecture
        if source.network != target.network or source.fused:
            network = f"a fused {source.backbone} ({self.info.scheme})" if source.fused else f"a {source.backbone}"
            raise StageError(f"{self.path} holds {network}, and --weights is to start a {target.backbone}")
        if self.info.meaningless:
            raise StageError(f"{self.path} is nothing to start from: {self.info.meaningless}")
        if source.activation != target.activation:
            say(f"{self.path} has {source.activation or 'GELU'}, and goes on with {target.activation or 'GELU'}")
        trained = self.detector()
        try:
            detector.backbone.load_state_dict(trained.backbone.state_dict())
        except RuntimeError as error:
            raise StageError(f"{self.path} takes {source.size} px crops, and its weights fit no other size") from error
        trained_shapes = {name: tensor.shape for name, tensor in trained.head.state_dict().items()}
        target_shapes = {name: tensor.shape for name, tensor in detector.head.state_dict().items()}
        others = [
            f"{name} {value}" for name, value in source.of_head.items() if target.of_head.get(name, value) != value
        ]
        if trained_shapes != target_shapes or others:
            made_for = f" ({', '.join(others)})" if others else ""
            say(f"the head of {self.path} is of another kind{made_for}: the new one starts at random")
            return False
        detector.head.load_state_dict(trained.head.state_dict())
        return True

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 over the names and hashes of the run's files; logs and later evaluations do not count."""
        files = [path for name in FILES if (path := self.path / name).is_file()]
        return hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in files).encode()).hexdigest()

    def as_parent(self) -> Parent:
        """Return this run's name and hash, as a child run records them."""
        return Parent(name=self.name, sha256=self.sha256)
