"""``manifest.json``: all that an app developer needs to know of a bundle, and its published schema."""

import json
import math
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from compress.fidelity import Diagnosis
from compress.metrics import Threshold
from compress.scoring import ClipScores
from export.parity import Parity
from export.rules import ClipRule, CropGeometry, Frozen
from export.runtimes import ORT, PROGRAMS, Delegate, Method, ProgramName, Runtime, cannot_run, evaluated_by
from models.origin import DataSource, Parent, Weights
from stage import STATIC_INT8, Scheme

SCHEMA_VERSION = 10
PIXELS: Literal["golden/pixels.bin"] = "golden/pixels.bin"
"""Path of the golden inputs in a bundle."""


OWN_SCORES = "its own validation scores"
"""Origin of the threshold of an artifact that ran, or was evaluated, as it was exported."""
NOT_COMPARED = "not compared: "
"""What ``not_checked`` begins with."""


def rounded_up(value: float) -> float:
    """Return the least number with one significant digit that is not below ``value``: 0.03 for 0.0225."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit - 1e-9) * unit


class Tensor(Frozen):
    """An input or output of a program."""

    name: str
    dtype: Literal["uint8", "float32", "image"]
    layout: str
    shape: list[PositiveInt | None] = Field(min_length=1)
    """None where any number goes."""
    colours: Literal["RGB"] | None = None
    """Order of a picture's channels; None if the tensor is no picture."""
    range: tuple[float, float] | None = None
    """Least and greatest value; None where there is no bound."""
    meaning: str


class Program(Frozen):
    """A program in an artifact, which an app can call."""

    name: ProgramName
    """``forward`` scores a frame. A clip student has ``embed`` for each frame and ``score`` for a clip, or ``clip`` for
    both; in a ``.pte`` these are names of methods, elsewhere each is a file."""
    file: str
    sha256: str
    """SHA-256 of the file; for a folder (``.mlpackage``), of the names and hashes of its files."""
    bytes: PositiveInt
    inputs: list[Tensor] = Field(min_length=1)
    output: Tensor
    operators: list[str]
    """Operators that the app's build of the runtime must have; for a ``.pte``, portable kernels by their full names and
    the delegate."""
    macs: int
    """Multiply-accumulates of one sample: convolutions and matrix products."""

    @property
    def of_frame(self) -> bool:
        """Whether a sample is a frame, and not a clip."""
        return self.name in ("forward", "embed")


class Validation(Frozen):
    """Accuracy of an artifact on the validation clips, on which its threshold was set, and on their videos."""

    real: int
    fake: int
    auc: float
    found: float
    """Share of fake clips above the threshold."""
    real_videos: int
    """Number of real videos that these clips come from."""
    fake_videos: int
    video_false_positive_rate: float
    """Share of real videos whose mean over these clips is above the threshold. An app sees all clips of a video; a
    store holds as many as it was prepared with, one if not told otherwise."""
    videos_found: float
    """Share of fake videos whose mean is above the threshold."""

    @classmethod
    def of(cls, scores: ClipScores, threshold: float) -> "Validation":
        """Measure scores of clips of both labels."""
        figures, fakes = scores.metrics(threshold, intervals=False).clip, scores.labels == 1
        assert figures.auc is not None
        first, means = scores.by_video()
        called_fake, fake_videos = means > threshold, scores.labels[first] == 1
        return cls(
            real=figures.real,
            fake=figures.fake,
            auc=figures.auc,
            found=float((scores.clips[fakes] > threshold).mean()),
            real_videos=int((~fake_videos).sum()),
            fake_videos=int(fake_videos.sum()),
            video_false_positive_rate=float(called_fake[~fake_videos].mean()),
            videos_found=float(called_fake[fake_videos].mean()),
        )


class Artifact(Frozen):
    """One exported file, or a folder: for Core ML, and for the programs of a clip student."""

    file: str
    sha256: str
    bytes: PositiveInt
    runtime: Runtime
    scheme: Scheme
    minimum_os: str
    licence: str
    programs: list[Program]
    threshold: Threshold
    threshold_from: str
    validation: Validation | None
    """None if the artifact could not run on the exporting machine."""
    delegate: Delegate | None = None
    """Delegate to which a ``.pte`` hands operations; those that it does not take are among the programs' operators."""
    delegated_fraction: float | None = None
    phone_check: str = ""
    """What ONNX Runtime's mobile usability check says of a ``.onnx``."""
    companions: dict[str, str] = Field(default_factory=dict)
    """Files beside the artifact, and what each is for."""
    parity: list[Parity]
    """Step by step, from the trained network to the artifact, on the golden inputs."""
    untold: list[str] = Field(default_factory=list)
    """Mistakes of an integration that change the golden inputs' scores no more than rounding does."""
    not_checked: str = ""
    """Why the last step, the artifact itself, was not compared on the exporting machine."""
    evaluated_by: str | None = None
    """What gave its scores, and so parity, threshold and golden outputs, on the exporting machine in the runtime's
    place; None where the runtime itself did."""
    source_run: Parent
    student: str | None = None
    """SHA-256 of the fp32 run that the source run is, or was made from."""

    @property
    def method(self) -> Method:
        """How the artifact scores, by the names of its programs. Raises ValueError if they fit no method."""
        names = tuple(program.name for program in self.programs)
        for method, method_names in PROGRAMS.items():
            if names == method_names:
                return method
        raise ValueError(f"{self.file} has the programs {', '.join(names) or 'none'}")

    @property
    def batch(self) -> int | None:
        """Samples that its programs take at once; None: any number."""
        return self.programs[0].output.shape[0]

    @property
    def in_core_ml(self) -> bool:
        """Whether Core ML runs it, on cores and in threads of its own choice."""
        return "coreml" in (self.runtime, self.delegate)

    def cannot_run(self) -> str | None:
        """Return why it can neither run on this machine nor be evaluated in its runtime's place, or None."""
        int8_ort = self.scheme in STATIC_INT8 and self.programs[0].file.endswith(ORT)
        reason = cannot_run(self.runtime, self.delegate, int8_ort)
        return reason or (self._cannot_be_evaluated() if evaluated_by(self.runtime) else None)

    def _cannot_be_evaluated(self) -> str | None:
        """Return why Pocketproof's evaluation cannot stand for the runtime, or None if it can."""
        beside = next((step for step in self.parity if step.step == "evaluated"), None)  # on a Mac
        if beside and not beside.passed:
            return f"evaluated by Pocketproof, it departs from its runtime: {beside.failure}"
        if beside or self.evaluated_by:
            return None
        return self.not_checked.removeprefix(NOT_COMPARED) or "it has an operation that only its runtime computes"

    def near(self) -> str:
        """Return a text: how near it is to the program that it was written from, or why that was not compared."""
        for step in self.parity:
            if step.step == "lowered":
                nearness = f"within {rounded_up(step.max_difference):.1g}, {math.floor(step.logit_snr_db)} dB"
                return f"{nearness} (evaluated {self.evaluated_by})" if self.evaluated_by else nearness
        return self.not_checked


class Absent(Frozen):
    """An artifact that was asked for and does not exist, or must not be in a bundle."""

    file: str
    runtime: Runtime
    scheme: Scheme
    reason: str


class Golden(Frozen):
    """Raw input pixels and what each artifact gives on them."""

    pixels: Literal["golden/pixels.bin"] = PIXELS
    """File of uint8 [N, S, S, 3], or of clips [N, T, S, S, 3], RGB 0..255, C order, without a header."""
    shape: list[PositiveInt] = Field(min_length=4, max_length=5)
    sha256: str
    valid: list[list[bool]] | None = None
    """Which frames of each clip count, [N, T]; None where frames are scored."""
    outputs: dict[str, list[float]]
    """P(fake) [N] by artifact file; of an artifact that could not run here, its source run's in torch."""


class Manifest(Frozen):
    """``manifest.json``."""

    schema_version: int = SCHEMA_VERSION
    backbone: str
    crop: CropGeometry
    clip: ClipRule
    artifacts: list[Artifact]
    absent: list[Absent]
    """What was asked for and does not exist."""
    golden: Golden
    weights: Weights
    data: DataSource
    diagnoses: dict[str, Diagnosis]
    """What int8 cost, and in which layers, by int8 run."""
    tools: dict[str, str]
    """Versions on the exporting machine."""

    @property
    def trained_on(self) -> DataSource:
        """What its models were trained on, with how the crops were cut, which older bundles say elsewhere."""
        return self.data.model_copy(update={"crops": self.crop.rule.described(self.crop.detector)})

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Manifest":
        """Refuse parts that contradict each other."""
        size, clip, shape = self.crop.rule.size, self.clip, self.golden.shape
        pictures = [size, size, 3]
        if shape[1:] != (pictures if clip.per == "frame" else [clip.frames, *pictures]):
            raise ValueError(f"golden inputs of {shape} are no crops of {size} pixels in clips of {clip.frames}")
        files = [artifact.file for artifact in self.artifacts]
        if not files or len(set(files)) < len(files):
            raise ValueError("it has no artifact, or two of one name")
        for artifact in self.artifacts:
            if (artifact.method == "forward") != (clip.per == "frame"):
                raise ValueError(f"{artifact.file} does not score {clip.per}s")
            if artifact.programs[0].inputs[0].shape.count(size) < 2:
                raise ValueError(f"{artifact.file} does not take crops of {size} pixels")
        return self


def manifest_schema() -> str:
    """Return the JSON Schema of ``manifest.json``, as JSON text."""
    return json.dumps(Manifest.model_json_schema(), indent=2) + "\n"
